"""Time whole merges against the floor: reading all inputs, copying one, and syncing the copy.

Makes Llama-shaped checkpoints of a given size (seeded, written a tensor at a time, kept for the next run), then
runs each recipe and the floor in turns and prints medians: wall seconds, the ratio to the floor, peak resident
memory of the largest process, and bytes per second. A second program that takes `RECIPE FOLDER` can be timed too.

    python tools/bench.py --folder /tmp/bench --size 1.1b --merges linear,slerp --repeats 5
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import shutil
import statistics
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from jmerge.ckpt.dtypes import TensorSpec
from jmerge.ckpt.shards import index_json, plan_files

# layers, hidden, intermediate, key-value width, vocabulary
SIZES = {
    "tiny": (4, 64, 160, 32, 512),
    "0.3b": (12, 1280, 3456, 256, 32000),
    "1.1b": (22, 2048, 5632, 256, 32000),
    "2.2b": (44, 2048, 5632, 256, 32000),
}
RECIPES = {
    "linear": (2, "merge_method: linear\nmodels:\n{weighted}"),
    "slerp": (
        2,
        "merge_method: slerp\nbase_model: {m[0]}\nmodels:\n{plain}parameters: {{t: 0.4}}\n",
    ),
    "task_arithmetic": (4, "merge_method: task_arithmetic\nbase_model: {m[0]}\nmodels:\n{others}"),
    "ties": (4, "merge_method: ties\nbase_model: {m[0]}\nmodels:\n{others}"),
    "dare_linear": (4, "merge_method: dare_linear\nbase_model: {m[0]}\nmodels:\n{others}"),
    "dare_ties": (4, "merge_method: dare_ties\nbase_model: {m[0]}\nmodels:\n{others}"),
    "passthrough": (1, "merge_method: passthrough\nmodels:\n{plain}"),
}


def specs(size: str) -> dict[str, TensorSpec]:
    """The tensors of a Llama-shaped model."""
    layers, hidden, inner, kv, vocab = SIZES[size]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        shapes |= {
            f"model.layers.{i}.input_layernorm.weight": (hidden,),
            f"model.layers.{i}.mlp.down_proj.weight": (hidden, inner),
            f"model.layers.{i}.mlp.gate_proj.weight": (inner, hidden),
            f"model.layers.{i}.mlp.up_proj.weight": (inner, hidden),
            f"model.layers.{i}.post_attention_layernorm.weight": (hidden,),
            f"model.layers.{i}.self_attn.k_proj.weight": (kv, hidden),
            f"model.layers.{i}.self_attn.o_proj.weight": (hidden, hidden),
            f"model.layers.{i}.self_attn.q_proj.weight": (hidden, hidden),
            f"model.layers.{i}.self_attn.v_proj.weight": (kv, hidden),
        }
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    return {name: TensorSpec("BF16", shape) for name, shape in shapes.items()}


def make_model(folder: Path, size: str, seed: int) -> None:
    """Write a checkpoint of normal numbers (deviation 0.02) unless it is there; models of one size share a base."""
    layers, hidden, inner, kv, vocab = SIZES[size]
    if (folder / "config.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tensors = specs(size)
    files = plan_files(tensors, 5 * 10**9)
    for file in files:
        with (folder / file.name).open("wb") as out:
            out.write(file.header)
            for name in file.starts:
                key = list(tensors).index(name)
                count = tensors[name].size
                values = np.random.default_rng([0, key]).standard_normal(count, np.float32)
                values *= 0.02
                if seed:
                    change = np.random.default_rng([seed, key]).standard_normal(count, np.float32)
                    values += change * np.float32(0.002)
                out.write(values.astype(ml_dtypes.bfloat16).tobytes())
    index = index_json(files, tensors, "bench")
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": kv // 64 or 1,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def write_recipe(folder: Path, name: str, models: list[Path]) -> Path:
    """The recipe called `name` on the first of these models."""
    count, text = RECIPES[name]
    used = models[:count]

    def listing(paths: list[Path], parameters: str) -> str:
        return "".join(f"  - model: {path}\n{parameters}" for path in paths)

    weight = "    parameters: {weight: 0.3, density: 0.5}\n"
    text = text.format(
        m=used,
        weighted=listing(used, weight),
        plain=listing(used, ""),
        others=listing(used[1:], weight),
    )
    path = folder / f"{name}.yml"
    path.write_text(text + "dtype: bfloat16\n")
    return path


def timed(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident bytes of the largest process of a command."""
    pid = os.posix_spawnp(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    began = time.perf_counter()
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{shlex.join(command)} failed with {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_maxrss * 1024


def floor(models: list[Path], out: Path) -> float:
    """Seconds to read every model and copy the first, with the copy on disk at the end."""
    shutil.rmtree(out, ignore_errors=True)
    inputs = " ".join(shlex.quote(str(p)) for m in models for p in sorted(m.glob("*.safetensors")))
    first, copy = shlex.quote(str(models[0])), shlex.quote(str(out))
    script = f"cat {inputs} > /dev/null && cp -r {first} {copy} && sync -f {copy}"
    seconds, _ = timed(["sh", "-c", script])
    shutil.rmtree(out)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("/tmp/jmerge-bench"), help="for models and results"
    )
    parser.add_argument("--size", choices=SIZES, default="1.1b", help="parameters of each model")
    parser.add_argument(
        "--merges", default="linear,slerp,task_arithmetic,passthrough", help="which recipes"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="of each recipe; medians are printed"
    )
    parser.add_argument(
        "--program", default=f"{Path(sys.executable).parent}/jmerge", help="the jmerge to time"
    )
    parser.add_argument(
        "--other", help="a second program, called with RECIPE and FOLDER, timed in turns"
    )
    options = parser.parse_args()

    merges = options.merges.split(",")
    count = max(RECIPES[name][0] for name in merges)
    models = [options.folder / f"{options.size}-{i}" for i in range(count)]
    spawn = multiprocessing.get_context("spawn")  # memory used here would count as our children's
    for i, model in enumerate(models):
        maker = spawn.Process(target=make_model, args=(model, options.size, i))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit(f"{model} could not be made")
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; models of {options.size}, bf16"
    )
    out = options.folder / "out"
    for name in merges:
        recipe = write_recipe(options.folder, name, models)
        used = models[: RECIPES[name][0]]
        moved = sum(p.stat().st_size for m in used for p in m.glob("*.safetensors"))
        moved += sum(p.stat().st_size for p in used[0].glob("*.safetensors"))
        floor(used, out)  # warms the page cache
        rows: dict[str, list[tuple[float, float]]] = {"floor": [], "jmerge": [], "other": []}
        for _ in range(options.repeats):
            rows["floor"].append((floor(used, out), 0.0))
            rows["jmerge"].append(
                timed([options.program, "--config", str(recipe), "--out", str(out), "--quiet"])
            )
            shutil.rmtree(out)
            if options.other:
                rows["other"].append(timed([*shlex.split(options.other), str(recipe), str(out)]))
                shutil.rmtree(out)
        base = statistics.median(seconds for seconds, _ in rows["floor"])
        for who, runs in rows.items():
            if runs:
                seconds = statistics.median(s for s, _ in runs)
                memory = max(m for _, m in runs)
                line = f"{name:<16} {who:<7} {seconds:7.2f} s  {seconds / base:5.2f} x floor  {moved / seconds / 1e9:5.2f} GB/s"
                print(line + (f"  peak RSS {memory / 1e9:.2f} GB" if memory else ""), flush=True)


if __name__ == "__main__":
    main()
