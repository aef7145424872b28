"""Which files of the donor come along, which stay behind, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from jmerge.ckpt.donor import check_donor_files, companions, is_tokenizer_file
from jmerge.ckpt.filekinds import (
    CARD,
    HIDDEN,
    LARGE,
    MADE,
    PEOPLE,
    PICKLE,
    QUANTISED,
    STATE,
    WEIGHTS,
)
from jmerge.ckpt.source import LocalSource
from jmerge.errors import CheckpointError
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama

MODEL = ("model.safetensors",)
TAKEN = (
    "LICENSE",
    "NOTICE.txt",
    "USE_POLICY.md",
    "additional_chat_templates/tool.jinja",
    "bpe.codes",
    "configuration.json",
    "configuration_x.py",
    "dict.txt",
    "generation_config.json",
    "mel_filters.npz",
    "modules/code.py",
    "params.json",
    "preprocessor_config.json",
    "qwen.tiktoken",
    "sentencepiece.bpe.model",
    "source.spm",
    "speaker_embeddings/v2_en_0.npy",
    "spk_dict.pt",
    "spm.model",
    "target.spm",
    "tekken.json",
    "tokenizer.json",
    "vocab.bpe",
    "voices/af_bella.pt",
)
LEFT = {
    ".gitattributes": HIDDEN,
    ".cache/": HIDDEN,
    "__pycache__/": HIDDEN,
    "README.md": CARD,
    "README_zh.md": CARD,
    "adapter_config.json": WEIGHTS,
    "adapter_model.safetensors": WEIGHTS,
    "all_results.json": STATE,
    "checkpoint-500/config.json": STATE,
    "checkpoint-500/model.safetensors": STATE,
    "ckpt/epoch=3.ckpt": WEIGHTS,
    "consolidated.00.pth": WEIGHTS,
    "figures/arch.PNG": PEOPLE,
    "flax_model.msgpack": WEIGHTS,
    "global_step7/x_optim_states.pt": STATE,
    "jmerge.lock.json": MADE,
    "jmerge.tokens.jsonl": MADE,
    "mergekit_config.yml": MADE,
    "model-Q4.gguf": WEIGHTS,
    "data.pt": STATE,
    "dataloader_1.bin": STATE,
    "dataloader_1.pt": STATE,
    "hf_optimizer.bin": STATE,
    "imatrix.dat": STATE,
    "nohup.out": STATE,
    "optim.pt": STATE,
    "optimizer.pt": STATE,
    "sampler.bin": STATE,
    "pytorch_model-00001-of-00002.bin": WEIGHTS,
    "pytorch_model.bin.index.json": WEIGHTS,
    "quantize_config.json": QUANTISED,
    "rng_state_0.pth": STATE,
    "runs/x/events.out.tfevents.1": STATE,
    "runs/x/notes.txt": STATE,
    "sampler_1.pt": STATE,
    "scaler_1.pt": STATE,
    "scheduler.pt": STATE,
    "scheduler_1.bin": STATE,
    "tf_model.h5": WEIGHTS,
    "trainer_state.json": STATE,
    "training_args.bin": STATE,
    "model_state.pt": WEIGHTS,
    "zero_to_fp32.py": STATE,
    "onnx/model.onnx": WEIGHTS,
}


def fill(folder: Path, files: Mapping[str, object]) -> None:
    for name, data in files.items():
        path = folder / name
        if name.endswith("/"):
            path = path / "x"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else str(data).encode())


def sorted_files(folder: Path) -> tuple[set[str], dict[str, str]]:
    found = companions(LocalSource(folder), (), MODEL)
    assert not found.left.keys() & set(found.taken)
    return set(found.taken), found.left


def test_by_names(tmp_path: Path) -> None:
    """Every file is of one kind or the other."""
    write_llama(tmp_path, 0)
    fill(tmp_path, dict.fromkeys((*TAKEN, *LEFT), "x"))
    taken, left = sorted_files(tmp_path)
    assert taken == set(TAKEN)
    assert left == LEFT


def test_by_sizes(tmp_path: Path) -> None:
    write_llama(tmp_path, 0)
    weights = (tmp_path / "model.safetensors").stat().st_size
    fill(tmp_path, {"voice.pt": b"x" * (weights // 8), "codec.pt": b"x" * (weights // 8 + 1)})
    with (tmp_path / "huge.dat").open("wb") as file:
        file.truncate(64_000_001)
    taken, left = sorted_files(tmp_path)
    assert taken == {"voice.pt"} and left == {"codec.pt": PICKLE, "huge.dat": LARGE}


@pytest.mark.parametrize(
    ("teller", "text"),
    [
        ("config.json", json.dumps({"talker": {"file": ["{}"]}})),
        ("tokenizer_config.json", json.dumps({"path": "./{}"})),
        ("preprocessor_config.json", json.dumps({"path": "org/model/{}"})),
        ("modeling_x.py", 'VOICES = torch.load(os.path.join(path, "{}"))'),
    ],
)
@pytest.mark.parametrize("name", ["codec.pt", "banks.onnx", "cover.png", "huge.dat", "in/v.pt"])
def test_what_a_config_or_code_names(teller: str, text: str, name: str, tmp_path: Path) -> None:
    """Comes along although name or size speak against it; without the word it does not."""
    write_llama(tmp_path, 0)
    fill(tmp_path, {name: b"x"})
    with (tmp_path / name).open("r+b") as file:
        file.truncate(64_000_001)
    assert name in sorted_files(tmp_path)[1]
    shown = name.rpartition("/")[2] if teller.endswith(".py") else name
    fill(tmp_path, {teller: text.replace("{}", shown)})
    assert name in sorted_files(tmp_path)[0]


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "optimizer.pt", "best.ckpt.pt", "README.md"]
)
def test_weights_and_states_stay_whoever_names_them(name: str, tmp_path: Path) -> None:
    write_llama(tmp_path, 0)
    fill(tmp_path, {name: "x", "modeling_x.py": name, "x_config.json": json.dumps({"a": name})})
    assert name in sorted_files(tmp_path)[1]


def component(folder: Path, kind: str, layers: int = 1) -> None:
    tensors = llama_tensors(9, layers=layers)
    write_checkpoint(folder, tensors, llama_config() | {"model_type": kind})
    (folder / "preprocessor_config.json").write_text("{}")


def test_a_part_with_weights_of_its_own(tmp_path: Path) -> None:
    """The codec that a speech model's loader looks for comes along whole."""
    write_llama(tmp_path, 0)
    component(tmp_path / "speech_tokenizer", "codec")
    fill(tmp_path, {"speech_tokenizer/optimizer.pt": "x", "speech_tokenizer/README.md": "x"})
    taken, left = sorted_files(tmp_path)
    names = ("config.json", "model.safetensors", "preprocessor_config.json")
    assert taken == {f"speech_tokenizer/{name}" for name in names}
    assert set(left) == {"speech_tokenizer/optimizer.pt", "speech_tokenizer/README.md"}


@pytest.mark.parametrize(("kind", "layers"), [("llama", 1), ("codec", 3)])
def test_another_state_of_the_model_is_no_part(kind: str, layers: int, tmp_path: Path) -> None:
    """A checkpoint of the same type, and a model that is larger than this one."""
    write_llama(tmp_path, 0)
    component(tmp_path / "before", kind, layers)
    taken, left = sorted_files(tmp_path)
    assert not taken and left["before/model.safetensors"] == WEIGHTS
    assert left["before/config.json"] == "is beside other weights"


def test_a_link_to_the_folder_itself(tmp_path: Path) -> None:
    write_llama(tmp_path, 0)
    fill(tmp_path, {"in/vocab.json": "{}"})
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(".")
    assert sorted_files(tmp_path)[0] == {"in/vocab.json"}


def test_folders_without_end(tmp_path: Path) -> None:
    write_llama(tmp_path, 0)
    fill(tmp_path, {"/".join("abcdefgh") + "/x.json": "{}"})
    taken, left = sorted_files(tmp_path)
    assert not taken and left == {"a/b/c/d/e/": "is too deep in folders, or after too many files"}


def test_the_index_of_the_merged_shards_is_neither(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, llama_tensors(0), llama_config(), shard_bytes=600)
    shards = [path.name for path in tmp_path.glob("*.safetensors")]
    assert companions(LocalSource(tmp_path), (), shards) == ([], {})


def test_a_file_that_was_not_fetched_is_told_before_the_merge(tmp_path: Path) -> None:
    write_llama(tmp_path, 0)
    component(tmp_path / "speech_tokenizer", "codec")
    check_donor_files(LocalSource(tmp_path), (), MODEL)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    fill(tmp_path, {"spm.model": pointer, "speech_tokenizer/model.safetensors": pointer})
    with pytest.raises(CheckpointError) as caught:
        check_donor_files(LocalSource(tmp_path), (), MODEL)
    assert len(caught.value.problems) == 2 and str(caught.value).count("git lfs pull") == 2


@pytest.mark.parametrize(
    ("name", "home", "is_one"),
    [
        ("spm.model", "", True),
        ("target.spm", "", True),
        ("bpe.codes", "", True),
        ("target_vocab.json", "", True),
        ("additional_chat_templates/x.jinja", "", True),
        ("0_T/tokenizer.json", "0_T", True),
        ("speech_tokenizer/vocab.json", "", False),
        ("spk_dict.pt", "", False),
        ("generation_config.json", "", False),
    ],
)
def test_files_of_the_tokenizer(name: str, home: str, is_one: bool) -> None:
    assert is_tokenizer_file(name, home) == is_one
