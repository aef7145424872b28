"""Each check of `jmerge verify` fails for what it is about, alone; a sound folder passes all, with a ledger or without."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import jmerge
from jmerge.ckpt.safetensors import encode_header
from jmerge.ckpt.source import LocalSource
from jmerge.ckpt.writer import LEDGER
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama
from jmerge.tokens.pieces import message_class
from jmerge.verify.checks import DEEP, QUICK, Verified, verify
from jmerge.verify.values import PART_BYTES, THREADS, read_values

INDEX = "model.safetensors.index.json"
SIZES: dict[str, Any] = {"layers": 4, "hidden": 8, "vocab": 16}


def write_model(folder: Path, seed: int = 0) -> Path:
    """A sound model of four layers in several files, with a tokenizer."""
    write_checkpoint(folder, llama_tensors(seed, **SIZES), llama_config(**SIZES), shard_bytes=2000)
    (folder / "tokenizer.json").write_text(words(15, "last"))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 15]}))
    return folder


def words(count: int, *added: str) -> str:
    """The tokenizer.json of that many words and these added tokens."""
    made = Tokenizer(WordLevel({f"t{i}": i for i in range(count)}, unk_token="t0"))
    made.add_tokens(list(added))
    return str(made.to_str())


def other_tokenizer(**files: str | bytes) -> Callable[[Path], None]:
    """A damage: the tokenizer in files of another kind, whose names have `__` for a dot."""

    def damage(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (folder / name.replace("__", ".")).write_bytes(data)

    return damage


def sentencepiece(count: int) -> bytes:
    """A sentencepiece model of that many pieces."""
    model = message_class()()
    for i in range(count):
        model.pieces.add(piece=f"p{i}", score=-i, type=2 if i == 0 else 1)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge of two such models, by jmerge, so with a ledger."""
    folder = tmp_path_factory.mktemp("merged")
    names = [write_model(folder / name, seed) for seed, name in enumerate("ab")]
    models = "".join(f"- model: {name}\n  parameters: {{weight: 1}}\n" for name in names)
    (folder / "x.yml").write_text(f"merge_method: linear\nmodels:\n{models}")
    jmerge.merge(folder / "x.yml", folder / "out", shard_size=2000)
    return folder / "out"


def verified(folder: Path, deep: bool = True) -> Verified:
    (found,) = verify(LocalSource(folder), deep=deep)
    return found


def problems(folder: Path, deep: bool = True) -> dict[str, list[str]]:
    """Check -> the lines of its problems."""
    found = verified(folder, deep)
    return {
        check.name: [f"{each.file}: {each.tensor}: {each.message}" for each in check.problems]
        for check in found.checks
        if check.problems
    }


def notes(folder: Path) -> dict[str, str]:
    """Check -> its first warning."""
    return {
        check.name: check.findings[0].message
        for check in verified(folder).checks
        if check.findings and not check.problems
    }


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda config: config.update(changes))


def write_tensors(change: Callable[[dict[str, Any]], Any], **config: Any) -> Callable[[Path], None]:
    """A damage: the whole model written anew, with other tensors and config."""

    def damage(folder: Path) -> None:
        for path in (*folder.glob("*.safetensors"), folder / INDEX):
            path.unlink()
        tensors = llama_tensors(0, **SIZES)
        change(tensors)
        write_checkpoint(folder, tensors, llama_config(**SIZES) | config)

    return damage


def first(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def truncate(folder: Path) -> None:
    path = first(folder)
    path.write_bytes(path.read_bytes()[:-1])


def move_in_index(folder: Path) -> None:
    def change(index: dict[str, Any]) -> None:
        files = sorted(set(index["weight_map"].values()))
        name = next(n for n, file in index["weight_map"].items() if file == files[0])
        index["weight_map"][name] = files[1]

    edit_json(folder / INDEX, change)


def drop_from_index(folder: Path) -> None:
    edit_json(folder / INDEX, lambda index: index["weight_map"].pop("model.norm.weight"))


def add_shard(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        write_checkpoint(folder / "more", {"x": np.ones(2, np.float32)})
        (folder / "more" / "model.safetensors").rename(folder / name)
        shutil.rmtree(folder / "more")

    return damage


def single_beside_shards(folder: Path) -> None:
    """The whole model in one file, which transformers takes, beside shards."""
    write_checkpoint(folder, llama_tensors(0, **SIZES))


def same_tensor_in_two_shards(folder: Path) -> None:
    write_tensors(lambda tensors: None)(folder)
    tensors = llama_tensors(0, **SIZES)
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    halves = (names[:20], names[19:])
    entries: dict[str, Any] = {}
    for number, half in enumerate(halves, 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        half_of = {name: tensors[name] for name in half}
        if number == 2:
            half_of[names[19]] = half_of[names[19]] + 1
        write_checkpoint(folder / "more", half_of)
        (folder / "more" / "model.safetensors").rename(folder / file)
        entries |= dict.fromkeys(half, file)
    shutil.rmtree(folder / "more")
    # the index and the order of files do not agree, so what is loaded is not what is meant
    entries[names[19]] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": entries}))


def stale_index(folder: Path) -> None:
    """A single file with an index of shards that are gone."""
    write_tensors(lambda tensors: None)(folder)
    entries = dict.fromkeys(llama_tensors(0, **SIZES), "model-00001-of-00002.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": entries}))


NAN = np.array([1, np.nan, np.inf, 1, 1, 1, 1, 1], np.float32)
LAYER = "model.layers.2."

# check -> damages that make it fail, and it alone
DAMAGES: dict[str, list[Callable[[Path], Any]]] = {
    "readable": [
        truncate,
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        lambda folder: (folder / "generation_config.json").write_bytes(b"\xff"),
        lambda folder: (folder / "vocab.txt").write_bytes(b"\xff"),
    ],
    "index": [
        move_in_index, drop_from_index,
        lambda folder: edit_json(folder / INDEX, lambda index: index["weight_map"].clear()),
    ],
    "duplicates": [same_tensor_in_two_shards],
    "stale": [
        single_beside_shards, add_shard("model-00001-of-00099.safetensors"), stale_index,
    ],
    "companions": [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / INDEX).unlink(),
        edit_config(auto_map={"AutoConfig": "configuration_x.X"}),
    ],
    # more of these in test_kinds.py
    "names": [write_tensors(lambda t: t.update({"module.lm_head.weight": t["lm_head.weight"]}))],
    "places": [write_tensors(lambda t: t.update({"score.weight": np.ones((2, 8), np.float32)}))],
    "config": [edit_config(num_layers=5)],
    "numbers": [write_tensors(lambda t: t.update({"lm_head.weight": t["lm_head.weight"].astype(np.uint8),
                                                  "lm_head.scale": np.ones(16, np.float32)}))],
    "layers": [
        edit_config(num_hidden_layers=5),
        edit_config(num_hidden_layers=3),
        write_tensors(lambda t: t.pop(f"{LAYER}mlp.up_proj.weight")),
        write_tensors(lambda t: t.pop(f"{LAYER}input_layernorm.weight")),
        write_tensors(lambda t: [t.pop(n) for n in list(t) if n.startswith(LAYER)]),
        write_tensors(lambda t: [t.pop(n) for n in list(t) if ".layers." in n]),
    ],
    "shapes": [
        edit_config(hidden_size=9),
        edit_config(vocab_size=15),
        write_tensors(lambda t: t.pop("model.embed_tokens.weight")),
        write_tensors(lambda t: t.update({"lm_head.weight": np.ones((17, 8), np.float32)})),
        write_tensors(lambda t: t.update({f"{LAYER}mlp.up_proj.weight": np.ones((5, 8), np.float32)})),
    ],
    "dtypes": [edit_config(torch_dtype="bfloat16")],
    "ties": [
        write_tensors(lambda t: t.pop("lm_head.weight")),
        write_tensors(lambda t: t.update({"lm_head.weight": np.ones((16, 4), np.float32)}),
                      tie_word_embeddings=True, embedding_size=4),
    ],
    "tokens": [
        lambda folder: (folder / "tokenizer.json").write_text(words(15, "x", "y")),
        lambda folder: (folder / "tokenizer.json").write_text(words(17)),
        lambda folder: (folder / "added_tokens.json").write_text('{"x": 16}'),
        lambda folder: (folder / "special_tokens_map.json").write_text('{"pad_token": "x"}'),
        lambda folder: (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"16": {"content": "x"}}}'),
        other_tokenizer(tokenizer__model=sentencepiece(17)),
        other_tokenizer(vocab__txt="".join(f"t{i}\n" for i in range(14)) + "[UNK]\n[CLS]\n[SEP]\n"),
        other_tokenizer(vocab__json=json.dumps({f"t{i}": i for i in range(17)}), merges__txt="#version: 0.2\n"),
    ],
    "nonfinite": [write_tensors(lambda t: t.update({"model.norm.weight": NAN}))],
}  # fmt: skip


@pytest.mark.parametrize(
    ("check", "damage"),
    [(check, damage) for check, damages in DAMAGES.items() for damage in damages],
)
def test_a_check_fails_alone(check: str, damage: Callable[[Path], Any], tmp_path: Path) -> None:
    write_model(tmp_path)
    assert problems(tmp_path) == {} == notes(tmp_path)
    damage(tmp_path)
    found = problems(tmp_path)
    assert list(found) == [check], found


def flip(folder: Path) -> None:
    """Another sign of the last number of a file."""
    path = first(folder)
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(data)


def edit_entry(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(
        folder / LEDGER, lambda ledger: ledger["tensors"]["model.norm.weight"].update(changes)
    )


# of folders that jmerge made
LEDGERED: dict[str, list[Callable[[Path], Any]]] = {
    "checksums": [flip],
    "stale": [add_shard("adapter.safetensors")],
    "readable": [lambda folder: (folder / LEDGER).write_text("{")],
    "ledger": [
        lambda folder: (folder / "README.md").unlink(),
        lambda folder: (folder / "README.md").write_text("other"),
        lambda folder: edit_json(folder / LEDGER, lambda ledger: ledger["tensors"].pop("model.norm.weight")),
        lambda folder: edit_json(folder / LEDGER, lambda ledger: ledger.pop("files")),
        lambda folder: edit_json(folder / LEDGER, lambda ledger: ledger["files"].update({"../x": 1})),
        lambda folder: edit_json(folder / LEDGER, lambda ledger: ledger["tensors"].update({"y": ledger["tensors"]["model.norm.weight"]})),
        edit_entry(shape=[4, 2]),
        edit_entry(dtype="F99"),
        edit_entry(crc32="x"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("check", "damage"),
    [(check, damage) for check, damages in LEDGERED.items() for damage in damages],
)
def test_a_check_of_a_merged_folder_fails_alone(
    check: str, damage: Callable[[Path], Any], merged: Path, tmp_path: Path
) -> None:
    shutil.copytree(merged, tmp_path / "m")
    assert problems(tmp_path / "m") == {} == notes(tmp_path / "m")
    damage(tmp_path / "m")
    found = problems(tmp_path / "m")
    assert list(found) == [check], found


def test_every_check_has_a_damage() -> None:
    assert {*DAMAGES, *LEDGERED, *STRANGE} == {*QUICK, *DEEP}
    assert {*QUICK, *DEEP} - {*DAMAGES, *LEDGERED} == {"same table"}  # which is never a problem


def test_quick_checks_read_no_values(merged: Path, tmp_path: Path) -> None:
    shutil.copytree(merged, tmp_path / "m")
    flip(tmp_path / "m")
    assert problems(tmp_path / "m", deep=False) == {}
    assert "checksums" not in {check.name for check in verified(tmp_path / "m", False).checks}


def test_checks_that_say_nothing_are_left_out(tmp_path: Path) -> None:
    write_llama(tmp_path, 0)
    names = {check.name for check in verified(tmp_path).checks}
    assert names.isdisjoint({"index", "ledger", "checksums", "same table"})


STRANGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "tokens": (lambda folder: (edit_config(pad_token_id=16)(folder), (folder / "generation_config.json").write_text('{"eos_token_id": [1, 15]}')), "pad_token_id is 16"),
    "stale": (add_shard("consolidated.safetensors"), "does not use it"),
    "index": (lambda folder: edit_json(folder / INDEX, lambda i: i["metadata"].update(total_size=1)), "total_size"),
    "companions": (lambda folder: (folder / "tokenizer.json").unlink(), "vocabulary"),
    "readable": (other_tokenizer(vocab__txt="a\nb\n"), "lacks the token '[UNK]'"),
    "shapes": (write_tensors(lambda t: t.update({"model.embed_tokens.weight": np.ones((18, 8), np.float32)})), "has 18 rows"),
    "nonfinite": (write_tensors(lambda t: t.update({"rotary_emb.inv_freq": NAN})), "infinite"),
    "same table": (edit_config(tie_word_embeddings=True), "load one of them for both"),
}  # fmt: skip


@pytest.mark.parametrize("check", STRANGE)
def test_what_is_strange_is_no_problem(check: str, tmp_path: Path) -> None:
    damage, message = STRANGE[check]
    damage(write_model(tmp_path))
    assert problems(tmp_path) == {}
    found = notes(tmp_path)
    assert list(found) == [check] and message in found[check]


SOUND: dict[str, Callable[[Path], Any]] = {
    "a tied model": lambda folder: write_llama(folder, 0, tied=True),
    "a stored head that is the embedding": lambda folder: write_checkpoint(
        folder,
        llama_tensors(0) | {"lm_head.weight": llama_tensors(0)["model.embed_tokens.weight"]},
        llama_config(tied=True),
    ),
    "more rows than tokens": lambda folder: (write_model(folder) / "tokenizer.json").write_text(words(1)),
    "pieces of sentencepiece": lambda folder: other_tokenizer(tokenizer__model=sentencepiece(16))(write_model(folder)),
    "a list of token ids": lambda folder: (write_model(folder) / "config.json").write_text(
        json.dumps(llama_config(**SIZES) | {"eos_token_id": [1, 2], "pad_token_id": -1})
    ),
    "code of another model": lambda folder: edit_config(
        auto_map={"AutoConfig": "org/other--configuration_x.X", "AutoTokenizer": [None, None]}
    )(write_model(folder)),
    "pickles beside it": lambda folder: (write_model(folder) / "pytorch_model.bin").write_bytes(b"x"),
    "an embedding of another width": lambda folder: write_tensors(
        lambda t: t.update({"model.embed_tokens.weight": np.ones((16, 4), np.float32)}), input_embedding_size=4
    )(write_model(folder)),
    "a layer of another shape that is listed": lambda folder: write_tensors(
        lambda t: t.update({f"{LAYER}self_attn.rel_pos": np.ones((9, 8), np.float32)} | {
            f"model.layers.{i}.self_attn.rel_pos": np.ones((3, 8), np.float32) for i in (0, 1, 3)}),
        global_attn_indexes=[2],
    )(write_model(folder)),
    "a head of one module, an embedding of another": lambda folder: write_checkpoint(
        folder,
        {f"text.{name}": each for name, each in llama_tensors(0, tied=True).items()}
        | {f"action.{name}": each for name, each in llama_tensors(1).items() if "embed" not in name},
        {"text_config": llama_config(tied=True), "action_config": llama_config(tied=True)},
    ),
    "packed weights of all layers but one": lambda folder: write_checkpoint(
        folder,
        llama_tensors(0, **SIZES)
        | {f"model.layers.{i}.mlp.up_proj.{name}": np.ones((4, 1), np.uint8)
           for i in (0, 1, 3) for name in ("weight", "weight.absmax")},
        llama_config(**SIZES) | {"quantization_config": {"quant_method": "bitsandbytes"}},
    ),
    "layers of two kinds": lambda folder: write_checkpoint(
        folder,
        llama_tensors(0, **SIZES) | {"model.layers.0.self_attn.q_proj.weight": np.ones((4, 8), np.float32)},
        llama_config(**SIZES) | {"layer_types": ["x", "y", "y", "y"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_folder_passes(case: str, tmp_path: Path) -> None:
    SOUND[case](tmp_path)
    assert problems(tmp_path) == {} == notes(tmp_path)


@pytest.mark.parametrize("content", [[], {}, {"model": 3}, {"model": {"vocab": 3}, "added_tokens": 4},
                                     {"model": {"vocab": {"a": "x"}}, "added_tokens": [5, {"id": None}]}])  # fmt: skip
def test_tokenizers_of_any_shape_break_nothing(content: Any, tmp_path: Path) -> None:
    write_model(tmp_path)
    for name in ("tokenizer.json", "vocab.json", "added_tokens.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps(content))
    assert set(problems(tmp_path)) <= {"readable"}


def test_several_models_of_one_merge(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        write_model(tmp_path / name, seed)
    (tmp_path / "x.yml").write_text(
        f"merge_method: emr\nbase_model: {tmp_path}/base\n"
        f"models:\n- model: {tmp_path}/a\n- model: {tmp_path}/b\n"
    )
    jmerge.merge(tmp_path / "x.yml", tmp_path / "out")
    found = verify(LocalSource(tmp_path / "out"), deep=True)
    assert [Path(each.label).name for each in found] == ["a", "b"]
    assert all(each.fine for each in found)
    assert all("checksums" in {check.name for check in each.checks} for each in found)
    flip(tmp_path / "out" / "b")
    assert [each.fine for each in verify(LocalSource(tmp_path / "out"), deep=True)] == [True, False]
    shutil.rmtree(tmp_path / "out" / "b")
    (outer, a) = verify(LocalSource(tmp_path / "out"))
    assert a.fine and not outer.fine
    gone = [
        each.file for check in outer.checks for each in check.problems if "is gone" in each.message
    ]
    assert "b/model.safetensors" in gone or "b/README.md" in gone


def test_a_ledger_of_names_longer_than_any(tmp_path: Path) -> None:
    name = "x" * 300
    write_model(tmp_path)
    ledger = {"files": {name: 1}, "tensors": {"a": {"file": f"{name}/model.safetensors"}}}
    (tmp_path / LEDGER).write_text(json.dumps(ledger))
    (found,) = verify(LocalSource(tmp_path))
    assert not found.fine


def test_deep_reading_takes_a_few_buffers(tmp_path: Path) -> None:
    """Of a tensor far larger than that."""
    spec = jmerge.open_checkpoint(write_checkpoint(tmp_path, {"x": np.ones(4, np.float32)}))
    size = 50 * PART_BYTES
    head = encode_header({"x": spec.index["x"].spec._replace(shape=(size // 4,))})
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    (found,) = verify(LocalSource(tmp_path))
    told: list[int] = []
    tracemalloc.start()
    values = read_values(found.folder, told.append)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(told) == size
    assert peak < (THREADS + 1) * PART_BYTES
    assert values["x"].nonfinite == 0


FILES = ["config.json", "tokenizer.json", INDEX, "model-00001-of-00005.safetensors", LEDGER]


@pytest.mark.parametrize("name", [*FILES, "generation_config.json", "vocab.txt"])
@pytest.mark.parametrize("target", ["itself", "gone", "folder", "/dev/zero"])
def test_links_to_no_file_are_told(name: str, target: str, merged: Path, tmp_path: Path) -> None:
    shutil.copytree(merged, tmp_path / "m")
    path = tmp_path / "m" / name
    path.unlink(missing_ok=True)
    (tmp_path / "m" / "folder").mkdir()
    path.symlink_to(name if target == "itself" else target)
    found = problems(tmp_path / "m")
    if target == "folder":  # as if nothing were there
        assert bool(found) == (name not in (LEDGER, "vocab.txt"))
    else:
        assert any(name in line for lines in found.values() for line in lines), found
