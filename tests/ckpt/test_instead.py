"""Folders that hold no weights to merge: one line that says what is there and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jmerge.ckpt.open import open_checkpoint
from jmerge.ckpt.source import LocalSource, inside
from jmerge.ckpt.weights import find_weights
from jmerge.errors import CheckpointError
from jmerge.testing.tiny import write_llama

ADAPTER = json.dumps({"base_model_name_or_path": "org/base"})
# Files of a folder (with what is in those that are read), and words of the line, {} being the folder.
KINDS: dict[str, tuple[dict[str, str], list[str]]] = {
    "adapter": (
        {"adapter_config.json": ADAPTER, "adapter_model.safetensors": ""},
        ["PEFT adapter of 'org/base'", "merge_and_unload()"],
    ),
    "adapter without config": ({"adapter_model.bin": ""}, ["PEFT adapter, not", "its base"]),
    "adapter, broken config": ({"adapter_config.json": "{"}, ["PEFT adapter, not"]),
    "pickles": (
        {
            "config.json": '{"model_type": "llama"}',
            "pytorch_model-00001-of-00002.bin": "",
            "optimizer.pt": "",
        },
        ["pytorch_model-00001-of-00002.bin", "convert", "from_pretrained('{}').save_pretrained"],
    ),
    "pickles beside states of all kinds": (
        {"aa_optimizer.bin": "", "data.pt": "", "rng_state_0.pth": "", "sampler_1.pt": "", "scheduler_1.bin": "", "weights.pth": ""},
        ["pickled", "(weights.pth)"],
    ),
    "a folder called as DeepSpeed's file": (
        {"latest/pytorch_model.bin": "", "optimizer_0/pytorch_model.bin": ""},
        ["latest in it has only pickled weights"],
    ),
    "pickle of a name of its own": ({"weights.pth": ""}, ["pickled", "weights.pth", "convert", "save_file"]),
    "meta": ({"consolidated.00.pth": "", "params.json": "{}"}, ["convert_llama_weights_to_hf"]),
    "gguf": (
        {"x-Q4_K_M.gguf": "", "config.json": "{}"},
        ["GGUF", "from_pretrained('{}', gguf_file='x-Q4_K_M.gguf')"],
    ),
    "trainer": (
        {
            "checkpoint-500/model.safetensors": "",
            "checkpoint-1500/model.safetensors": "",
            "checkpoint-2000/optimizer.pt": "",
            "training_args.bin": "",
        },
        ["3 checkpoints of a training run", "the last is {}/checkpoint-1500"],
    ),
    "cache": (
        {
            "snapshots/aa/model.safetensors": "",
            "snapshots/bb/model.safetensors": "",
            "refs/main": "aa",
            "blobs/x": "",
        },
        ["Hub's cache", "{}/snapshots/aa"],
    ),
    "cache without refs": ({"snapshots/bb/model.safetensors": ""}, ["{}/snapshots/bb"]),
    "snapshots of a cache": ({"aa/model.safetensors": ""}, ["the folder in it", "{}/aa"]),
    "zero": (
        {"global_step9/zero_pp_rank_0_mp_rank_00_optim_states.pt": "", "zero_to_fp32.py": ""},
        ["DeepSpeed ZeRO", "python zero_to_fp32.py {} OUT --safe_serialization"],
    ),
    "zero, the step itself": (
        {"mp_rank_00_model_states.pt": "", "zero_pp_rank_0_mp_rank_00_optim_states.pt": ""},
        ["DeepSpeed ZeRO", "python zero_to_fp32.py {}/.. OUT"],
    ),
    "dcp": ({".metadata": "", "__0_0.distcp": ""}, ["accelerate merge-weights {} OUT"]),
    "fsdp of accelerate": (
        {"pytorch_model_fsdp_0/__0_0.distcp": "", "optimizer_0/__0_0.distcp": ""},
        ["FSDP", "accelerate merge-weights {}/pytorch_model_fsdp_0 OUT"],
    ),
    "verl": (
        {"model_world_size_2_rank_0.pt": "", "config.json": "{}"},
        ["verl.model_merger merge --backend fsdp --local_dir {} --target_dir OUT"],
    ),
    "steps of verl": (
        {"global_step_9/actor/model_world_size_2_rank_0.pt": "", "global_step_10/data.pt": "",
         "latest_checkpointed_iteration.txt": "10"},
        ["--local_dir {}/global_step_10/actor"],
    ),
    "ranks": ({"ep1-rank0.pt": ""}, ["one for each process (ep1-rank0.pt)", "program that wrote"]),
    "tensor parallel": (
        {"model.tp0.safetensors": "", "model.tp1.safetensors": "", "config.json": "{}"},
        ["one for each process (model.tp0.safetensors)"],
    ),
    "steps of dcp": (
        {"step-900/.metadata": "", "step-1000/.metadata": ""},
        ["accelerate merge-weights {}/step-1000 OUT"],
    ),
    "megatron of many": ({"common.pt": "", "metadata.json": "{}", "__0_0.distcp": ""}, ["Megatron"]),
    "nemo": ({"x.nemo": ""}, ["NeMo"]),
    "orbax": ({"0/default/manifest.ocdbt": "", "0/_METADATA": ""}, ["0 in it", "Orbax"]),
    "adapter of mlx": (
        {"adapters.safetensors": "", "adapter_config.json": '{"model": "org/base"}'},
        ["mlx_lm.fuse --model org/base --adapter-path {} --save-path OUT"],
    ),
    "adapter beside what it made": (
        {"adapter_config.json": ADAPTER, "merged/model.safetensors": ""},
        ["PEFT adapter", "or name {}/merged"],
    ),
    "adapter by its name": (
        {"default/adapter_config.json": ADAPTER, "README.md": ""},
        ["default in it holds a PEFT adapter of 'org/base'"],
    ),
    "cache of all": ({"hub/models--a--b/refs/main": "", "token": ""}, ["hub in it", "such as a/b"]),
    "cache, nothing fetched": ({"blobs/x": "", "refs/main": "aa"}, ["without a snapshot", "download"]),
    "step inside": (
        {"_actor/global_step10/mp_rank_00_model_states.pt": "", "_actor/zero_to_fp32.py": ""},
        ["_actor in it holds the shards of a DeepSpeed ZeRO", "zero_to_fp32.py {}/_actor OUT"],
    ),
    "projector": (
        {"mm_projector.bin": "", "config.json": '{"model_type": "llava"}'},
        ["part of a model (mm_projector.bin)", "base"],
    ),
    "openvino": (
        {"openvino_model.bin": "", "openvino_model.xml": "", "config.json": '{"model_type": "bert"}'},
        ["exported program (openvino_model.xml)", "name the original model"],
    ),
    "onnx in a folder": ({"onnx/model.onnx": "", "config.json": "{}"}, ["exported program", "name the original model"]),
    "paddle": ({"model_state.pdparams": ""}, ["PaddlePaddle"]),
    "litgpt": ({"lit_model.pth": ""}, ["litgpt convert_from_litgpt {} OUT"]),
    "archive": ({"model.tar.gz": ""}, ["archive (model.tar.gz)", "unpack"]),
    "ollama": ({"blobs/sha256-a": "", "manifests/x": ""}, ["Ollama", "name the original model"]),
    "megatron": ({"latest_checkpointed_iteration.txt": "9", "iter_9/x": ""}, ["Megatron"]),
    "mlx": ({"weights.npz": "", "config.json": "{}"}, ["MLX", "mlx_lm.convert"]),
    "flax": ({"flax_model.msgpack": ""}, ["Flax", "from_flax=True"]),
    "tensorflow": ({"tf_model.h5": ""}, ["TensorFlow", "from_tf=True"]),
    "onnx": ({"model.onnx": "", "config.json": "{}"}, ["exported program", "name the original model"]),
    "diffusers": (
        {"model_index.json": "{}", "vae/diffusion_pytorch_model.safetensors": "",
         "unet/diffusion_pytorch_model.safetensors": "", "scheduler/x.json": ""},
        ["diffusers pipeline", "(unet, vae)", "{}/unet"],
    ),
    "another name": ({"mine.safetensors": ""}, ["mine.safetensors", "rename it"]),
    "other names": ({"a.safetensors": "", "b.safetensors": ""}, ["2 safetensors", "write the index"]),
    "folders": (
        {"a/model.safetensors": "", "b/model.safetensors.index.json": ""},
        ["2 folders that do (a, b)", "{}/b"],
    ),
    "interrupted": (
        {"config.json": "{}", ".cache/huggingface/download/model.incomplete": ""},
        ["no model.safetensors", "interrupted", "download it again"],
    ),
    "config alone": ({"config.json": "{}"}, ["no model.safetensors", "config.json"]),
    "empty": ({}, ["is empty", "model.safetensors"]),
}  # fmt: skip


def make(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    (problem,) = caught.value.problems
    assert "\n" not in str(problem)
    return str(problem)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_there_instead(kind: str, tmp_path: Path) -> None:
    files, words = KINDS[kind]
    folder = make(tmp_path / "m", files)
    line = refusal(folder)
    for word in words:
        assert word.replace("{}", str(folder)) in line, line
    assert "delete" not in line


def test_weights_beside_what_else_may_lie_there(tmp_path: Path) -> None:
    """Nothing of all that keeps a model from being read."""
    folder = make(tmp_path / "m", {n: "x" for files, _ in KINDS.values() for n in files})
    (folder / "config.json").unlink()
    write_llama(folder, 0)
    assert open_checkpoint(folder).config["model_type"] == "llama"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.safetensors", ["name the folder that holds it: {}"]),
        ("pytorch_model.bin", ["name the folder that holds it: {}"]),
        ("x.gguf", ["GGUF", "from_pretrained('{}', gguf_file='x.gguf')"]),
        ("notes.txt", ["name the folder of a model"]),
    ],
)
def test_a_file_in_the_place_of_a_folder(name: str, words: list[str], tmp_path: Path) -> None:
    folder = make(tmp_path / "m", {name: ""})
    line = refusal(folder / name)
    assert "is a file, not a folder" in line
    for word in words:
        assert word.replace("{}", str(folder)) in line


def test_a_folder_inside_says_the_same(tmp_path: Path) -> None:
    make(tmp_path / "m", {"sub/x.gguf": ""})
    with pytest.raises(CheckpointError, match="m/sub: holds GGUF"):
        find_weights(inside(LocalSource(tmp_path / "m"), "sub"))
