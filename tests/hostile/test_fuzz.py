"""Damaged and random headers, indexes and configs: a plan, or problems of one line each; never anything else.

`jmerge verify` of the same folders makes a report, whatever is in them.

Each kind of file has a strategy that makes its bytes; one more kind is one more row of FILES.
"""

from __future__ import annotations

import copy
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostilekit import (
    INDEX,
    header_file,
    plan_refused,
    refused,
    split_file,
    tokenizer,
    two_models,
    union_recipe,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jmerge.ckpt.source import LocalSource
from jmerge.ckpt.writer import LEDGER
from jmerge.report.verify import verify_json, verify_text
from jmerge.testing.tiny import llama_config
from jmerge.tokens.pieces import message_class
from jmerge.verify.checks import verify

NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**4000]),
    st.sampled_from([-(2**63), -(10**4000)]),
)
WORDS = st.one_of(
    st.sampled_from(
        ["", "0", ".", "..", "../model.safetensors", "/etc/passwd", "model.safetensors", "a\nb", "\x1b[2J", "\0"]
        + ["model.layers.0.w", "model.layers.999999999999.w", "layers.00.w", "layers.٣.w", "lm_head.weight", "{}.{}"]
        + ["x" * 5000, "\ud800", "config", "F32", "BF16", "U8", "F4", "I64", "é", "__metadata__"]
    ),
    st.text(max_size=8),
)  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.sampled_from([0.0, 1.5, float("nan"), float("inf"), -float("inf"), 1e308]),
    WORDS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=8,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in `value` with every key of it."""
    found: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        item = todo.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item))
        for key in keys:
            found.append((item, key))
            if isinstance(item[key], dict | list):
                todo.append(item[key])
    return found


@st.composite
def damaged(draw: st.DrawFn, valid: dict[str, Any]) -> dict[str, Any]:
    """`valid` with one to three changes somewhere in it: a value put in the place of another, renamed, dropped, moved."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        found = places(value)
        if not found:
            break
        holder, key = found[draw(st.integers(0, len(found) - 1))]
        action = draw(st.sampled_from(["set", "set", "drop", "add", "swap", "rename"]))
        if action == "set":
            holder[key] = draw(VALUES)
        elif action == "drop":
            del holder[key]
        elif action == "swap":
            other, at = found[draw(st.integers(0, len(found) - 1))]
            holder[key] = copy.deepcopy(other[at])
        elif isinstance(holder, list):
            holder.append(draw(VALUES))
        elif action == "add":
            holder[draw(WORDS)] = draw(VALUES)
        else:
            holder[draw(WORDS)] = holder.pop(key)
    return value


def text_of(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def cut(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` as it is, cut off, with bytes changed, or with a key of it twice."""
    action = draw(st.sampled_from(["keep"] * 5 + ["end", "flip", "insert", "twice"]))
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    if action == "end":
        return data[:at]
    if action == "flip":
        return data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at + 1 :]
    if action == "insert":
        return data[:at] + draw(
            st.sampled_from([b"[" * 3000, b'{"a":' * 3000, b"\xff", b"NaN", b"\0", b'"'])
        )
    if action == "twice" and data.startswith(b"{"):
        return data[:-1] + b"," + data[1:]
    return data  # fmt: skip


class Bench:
    """A folder with a valid model to damage, and the bytes of its files."""

    def __init__(self, folder: Path) -> None:
        self.recipe = two_models(folder)
        self.bad = folder / "bad"
        self.header, self.data = split_file(self.bad / "model.safetensors")
        self.valid = (self.bad / "model.safetensors").read_bytes()
        self.parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        self.config = llama_config(layers=1, hidden=4, inner=4, vocab=8)
        self.plain, self.union = self.recipe, union_recipe(folder)
        words = json.loads(tokenizer("a", "b", "c"))
        merges = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
        scores = {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["b", -1.0]]}
        self.tokenizers = [words, words | {"model": merges}, words | {"model": scores}]
        model = message_class()()
        for number, piece in enumerate(("<unk>", "a", "b", "ab")):
            model.pieces.add(piece=piece, score=-number, type=1 if number else 2)
        model.trainer_spec.model_type = 2
        self.pieces = bytes(model.SerializeToString())

    def reset(self) -> None:
        self.recipe = self.plain
        for path in self.bad.iterdir():
            path.unlink()
        (self.bad / "model.safetensors").write_bytes(self.valid)
        (self.bad / "config.json").write_text(json.dumps(self.config))

    def index(self) -> dict[str, Any]:
        """A valid index, of two files, which are made."""
        names = list(self.header)
        names.remove("__metadata__")
        halves = (names[: len(names) // 2], names[len(names) // 2 :])
        entries = {}
        for file, half in zip(self.parts, halves, strict=True):
            header, data = {}, b""
            for name in half:
                start, stop = self.header[name]["data_offsets"]
                header[name] = self.header[name] | {
                    "data_offsets": [len(data), len(data) + stop - start]
                }
                data += self.data[start:stop]
                entries[name] = file
            header_file(self.bad / file, header, data)
        (self.bad / "model.safetensors").unlink()
        return {"metadata": {"total_size": len(self.data)}, "weight_map": entries}  # fmt: skip


def random_header(draw: st.DrawFn, bench: Bench) -> None:
    """Any bytes, or any header, in the place of the weights."""
    length = draw(st.sampled_from([None, 0, 2, 100, 10**8, 10**8 + 1, 2**63, 2**64 - 1]))
    text = draw(st.one_of(st.binary(max_size=64), VALUES.map(text_of)))
    head = struct.pack("<Q", len(text) if length is None else length)
    (bench.bad / "model.safetensors").write_bytes(head + text + draw(st.binary(max_size=16)))


def damaged_header(draw: st.DrawFn, bench: Bench) -> None:
    """The header of the model with some changes."""
    text = cut(draw, text_of(draw(damaged(bench.header))))
    data = bench.data if draw(st.booleans()) else cut(draw, bench.data)
    header_file(bench.bad / "model.safetensors", text, data)


def damaged_index(draw: st.DrawFn, bench: Bench) -> None:
    """The index with some changes."""
    (bench.bad / INDEX).write_bytes(cut(draw, text_of(draw(damaged(bench.index())))))


def random_index(draw: st.DrawFn, bench: Bench) -> None:
    """Any bytes, or any JSON, for an index."""
    bench.index()
    (bench.bad / INDEX).write_bytes(draw(st.one_of(st.binary(max_size=64), VALUES.map(text_of))))


def damaged_config(draw: st.DrawFn, bench: Bench) -> None:
    """config.json with some changes; of what a nested one may have, too."""
    config = bench.config | {
        "layer_types": ["full"],
        "text_config": {"vocab_size": 8, "num_hidden_layers": 1},
        "quantization_config": None,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "id2label": {"0": "a"},
    }
    (bench.bad / "config.json").write_bytes(cut(draw, text_of(draw(damaged(config)))))


def random_config(draw: st.DrawFn, bench: Bench) -> None:
    """Any bytes, or any JSON, for config.json."""
    (bench.bad / "config.json").write_bytes(
        draw(st.one_of(st.binary(max_size=64), VALUES.map(text_of)))
    )


def damaged_tokenizer(draw: st.DrawFn, bench: Bench) -> None:
    """tokenizer.json with some changes."""
    bench.recipe = bench.union
    valid = draw(st.sampled_from(bench.tokenizers))
    (bench.bad / "tokenizer.json").write_bytes(cut(draw, text_of(draw(damaged(valid)))))


def damaged_companions(draw: st.DrawFn, bench: Bench) -> None:
    """What stands beside tokenizer.json, with some changes, and ids in the configs."""
    bench.recipe = bench.union
    (bench.bad / "tokenizer.json").write_text(json.dumps(bench.tokenizers[0]))
    files: dict[str, dict[str, Any]] = {
        "tokenizer_config.json": {
            "added_tokens_decoder": {"3": {"content": "<s>", "special": True}},
            "bos_token": "<s>",
            "extra_special_tokens": ["<x>"],
            "chat_template": [{"name": "default", "template": "x"}],
        },
        "special_tokens_map.json": {"pad_token": {"content": "<p>", "lstrip": True}},
        "added_tokens.json": {"<y>": 4},
        "generation_config.json": {"eos_token_id": [3]},
        "config.json": bench.config | {"eos_token_id": [3], "image_token_id": 2},
    }
    for name in draw(st.lists(st.sampled_from(list(files)), min_size=1, max_size=3, unique=True)):
        (bench.bad / name).write_bytes(cut(draw, text_of(draw(damaged(files[name])))))


def damaged_vocabulary(draw: st.DrawFn, bench: Bench) -> None:
    """A vocabulary without tokenizer.json, with some changes."""
    bench.recipe = bench.union
    kind = draw(st.sampled_from(["pieces", "merges", "words"]))
    if kind == "pieces":
        (bench.bad / "tokenizer.model").write_bytes(cut(draw, bench.pieces))
    elif kind == "merges":
        vocab = {"a": 0, "b": 1, "ab": 2}
        (bench.bad / "vocab.json").write_bytes(cut(draw, text_of(draw(damaged(vocab)))))
        (bench.bad / "merges.txt").write_bytes(cut(draw, b"#version: 0.2\na b\n"))
    else:
        (bench.bad / "vocab.txt").write_bytes(cut(draw, b"[UNK]\n[CLS]\n[SEP]\na\n"))
    if draw(st.booleans()):
        config = {"unk_token": {"content": "[UNK]"}, "do_lower_case": True, "add_bos_token": True}
        (bench.bad / "tokenizer_config.json").write_bytes(text_of(draw(damaged(config))))


def damaged_modules(draw: st.DrawFn, bench: Bench) -> None:
    """modules.json of Sentence Transformers with some changes; as a map, so that all of it can be changed."""
    entries = {
        "modules": [{"path": "", "type": "x.Transformer"}, {"path": "1_P", "type": "x.Pooling"}]
    }
    modules = draw(damaged(entries)).get("modules")
    (bench.bad / "modules.json").write_bytes(cut(draw, text_of(modules)))


Damage = Callable[[st.DrawFn, Bench], None]
FILES: dict[str, Damage] = {
    "random header": random_header,
    "damaged header": damaged_header,
    "random index": random_index,
    "damaged index": damaged_index,
    "random config": random_config,
    "damaged config": damaged_config,
    "damaged tokenizer": damaged_tokenizer,
    "damaged companions": damaged_companions,
    "damaged vocabulary": damaged_vocabulary,
    "damaged modules": damaged_modules,
}


def damaged_ledger(draw: st.DrawFn, bench: Bench) -> None:
    """jmerge's ledger of the model with some changes."""
    tensors = {
        name: {
            "file": "model.safetensors",
            "dtype": entry["dtype"],
            "shape": entry["shape"],
            "crc32": "0" * 8,
        }
        for name, entry in bench.header.items()
        if name != "__metadata__"
    }
    ledger = {"files": {"model.safetensors": len(bench.valid)}, "tensors": tensors}
    (bench.bad / LEDGER).write_bytes(cut(draw, text_of(draw(damaged(ledger)))))


VERIFIED = FILES | {"damaged ledger": damaged_ledger}


def plan(bench: Bench) -> None:
    plan_refused(bench.recipe)


def look_over(bench: Bench) -> None:
    """Verify the folder, as text and as JSON."""

    def look() -> None:
        found = verify(LocalSource(bench.bad), deep=True)
        text = verify_text(found)
        assert all(line.isprintable() for line in text.split("\n"))
        json.loads(verify_json(found))

    assert refused(look) is None


def show(damage: Damage, act: Callable[[Bench], None], examples: int) -> None:
    """Do something with that many damaged models."""
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def attempt(data: st.DataObject) -> None:
            bench.reset()
            damage(data.draw, bench)  # type: ignore[arg-type]
            act(bench)

        attempt()


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_file_gives_a_plan_or_problems(kind: str) -> None:
    show(FILES[kind], plan, 40)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_ten_thousand_damaged_files(kind: str) -> None:
    """Over all kinds together."""
    show(FILES[kind], plan, -(-10_000 // len(FILES)))


@pytest.mark.parametrize("kind", VERIFIED)
def test_a_damaged_folder_gives_a_report(kind: str) -> None:
    show(VERIFIED[kind], look_over, 40)


@pytest.mark.slow
@pytest.mark.parametrize("kind", VERIFIED)
def test_two_thousand_damaged_folders(kind: str) -> None:
    """Over all kinds together."""
    show(VERIFIED[kind], look_over, -(-2000 // len(VERIFIED)))


def test_the_undamaged_model_gives_a_plan(tmp_path: Path) -> None:
    """Else nothing behind the reader would be tried."""
    assert plan_refused(two_models(tmp_path)) is None
    (tmp_path / "bad" / "tokenizer.json").write_text(tokenizer("a", "b", "c"))
    assert plan_refused(union_recipe(tmp_path)) is None
