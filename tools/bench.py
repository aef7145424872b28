"""Time whole merges against the floor: reading all inputs, copying one, and syncing the copy.

Makes Llama-shaped checkpoints of a given size (seeded, written a tensor at a time, kept for the next run), then
runs each recipe and the floor in turns and prints medians: wall seconds, processor seconds (of all its processes), the
ratio of wall seconds to the floor's, peak resident memory of the largest process, and at how many bytes per second it
did what the floor does. Programs are compiled by a run before that, which is not timed. Where others work on the machine too, trust the processor seconds. A second program that takes `RECIPE FOLDER` can be timed too.

    python tools/bench.py --folder /tmp/bench --size 1.1b --merges linear,slerp --repeats 5

With --methods it times methods instead of whole merges: one tensor goes through the engine, its result nowhere, in a
process for each method. Printed are the median seconds, elements per second, the ratio to the weighted mean of three
models (timed in turns with it), and how far resident memory rose, inputs mapped at the time included.

    python tools/bench.py --methods ties,dare_ties --elements 4000000

With --trees it times `merge_trees` on the leaves of Llama-3-8B, every axis divided by 8, beside a jnp loop; with --large
on one leaf of 2^32 + 7 numbers in 8 bits, which takes 14 GB of memory.
With --device it times the programs of methods on what lies on the device that JAX prefers, beside a copy there.
With --xla it times programs with what `jmerge/methods/xla.py` does to XLA, and without.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import multiprocessing
import os
import platform
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jmerge.ckpt.shards import index_json, plan_files
from jmerge.dtypes import TensorSpec
from jmerge.names import did_you_mean

# layers, hidden, intermediate, key-value width, vocabulary
SIZES = {
    "tiny": (4, 64, 160, 32, 512),
    "0.3b": (12, 1280, 3456, 256, 32000),
    "1.1b": (22, 2048, 5632, 256, 32000),
    "2.2b": (44, 2048, 5632, 256, 32000),
}
# models, and how the recipe goes on after its method
ON_A_BASE = (4, "base_model: {m[0]}\nmodels:\n{others}")
RECIPES = {
    "linear": (2, "models:\n{weighted}"),
    "passthrough": (2, "slices:\n{halves}"),
    "slerp": (2, "base_model: {m[0]}\nmodels:\n{plain}parameters: {{t: 0.4}}\n"),
    "nuslerp": (2, "models:\n{weighted}"),
    **dict.fromkeys(("task_arithmetic", "ram", "model_stock", "sce"), ON_A_BASE),
    **dict.fromkeys(("dare_linear", "dare_ties", "ties", "breadcrumbs", "della"), ON_A_BASE),
}
BASE, MODELS = "base", ("a", "b", "c")  # for methods


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


def write_tensors(folder: Path, tensors: dict[str, TensorSpec], seed: int) -> None:
    """Write normal numbers (deviation 0.02) as a new folder; what other seeds than 0 give are changes of that."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
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


def make_model(folder: Path, size: str, seed: int) -> None:
    """Write a Llama-shaped checkpoint unless it is there; models of one size share a base."""
    layers, hidden, inner, kv, vocab = SIZES[size]
    if (folder / "config.json").exists():
        return
    write_tensors(folder, specs(size), seed)
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


def write_recipe(folder: Path, name: str, models: list[Path], layers: int) -> Path:
    """The recipe called `name` on the first of these models; a passthrough stack has half the layers of each."""
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
        halves="".join(
            f"  - sources: [{{model: {path}, layer_range: [{i * layers // 2}, {(i + 1) * layers // 2}]}}]\n"
            for i, path in enumerate(used[:2])
        ),
    )
    path = folder / f"{name}.yml"
    path.write_text(f"merge_method: {name}\n{text}dtype: bfloat16\n")
    return path


class Spent(NamedTuple):
    """What a command took."""

    seconds: float
    processor: float  # seconds of all its processes, in the kernel too
    memory: float  # peak resident bytes of its largest process


def timed(command: list[str]) -> Spent:
    """Run a command to its end, and say what it took; what fails ends the program."""
    pid = os.posix_spawnp(
        command[0],
        command,
        # as an installed program has it: bytecode is kept
        {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    began = time.perf_counter()
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{shlex.join(command)} failed with {os.waitstatus_to_exitcode(status)}")
    return Spent(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def floor(models: list[Path], out: Path) -> Spent:
    """Read every model and copy the first, with the copy on disk at the end."""
    shutil.rmtree(out, ignore_errors=True)
    inputs = " ".join(shlex.quote(str(p)) for m in models for p in sorted(m.glob("*.safetensors")))
    first, copy = shlex.quote(str(models[0])), shlex.quote(str(out))
    script = f"cat {inputs} > /dev/null && cp -r {first} {copy} && sync -f {copy}"
    spent = timed(["sh", "-c", script])
    shutil.rmtree(out)
    return spent


class Nowhere:
    """A sink that keeps nothing."""

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Do nothing."""


class Timed(NamedTuple):
    """What a method took."""

    seconds: float
    linear: float  # seconds of the weighted mean
    memory: float  # bytes by which resident memory rose; NaN where the system does not say


def tensor_folder(folder: Path, elements: int) -> Path:
    """Where a base and three models of one tensor lie, of whole rows of 4096 elements; made unless they are there."""
    width = min(elements, 4096)
    elements -= elements % width
    folder = folder.resolve() / f"tensor-{elements}"
    if folder.exists():
        return folder
    tensor = TensorSpec("BF16", (elements // width, width))
    part = folder.with_name(folder.name + ".part")
    for seed, name in enumerate((BASE, *MODELS)):
        write_tensors(part / name, {"weight": tensor}, seed)
    part.rename(folder)
    return folder


def time_method(folder: Path, name: str, repeats: int, results: Connection) -> None:
    """Time a method and the weighted mean in turns on the tensors in `folder`, and send a `Timed`; in a new process."""
    from jmerge.process import prepare

    prepare()  # as the command does, before JAX is imported
    from jmerge.api.plan import plan as make_plan
    from jmerge.engine.run import run
    from jmerge.engine.schedule import make_schedule
    from jmerge.methods import REGISTRY
    from jmerge.report.methods import minimal_recipe

    def runner(method: str) -> Callable[[], float]:
        file = folder / f"{method}.yml"
        models = [str(folder / model) for model in MODELS]
        file.write_text(minimal_recipe(REGISTRY[method], models, str(folder / BASE)))
        plan = make_plan(file)
        schedule = make_schedule(plan)

        def seconds() -> float:
            began = time.perf_counter()
            run(plan, schedule, Nowhere())
            return time.perf_counter() - began

        seconds()  # compiles, and brings the inputs into the page cache
        return seconds

    own, linear = runner(name), runner("linear")
    before = reset_peak()
    own()
    memory = resident("VmHWM") - before
    turns = [(own(), linear()) for _ in range(repeats)]
    medians = [statistics.median(each) for each in zip(*turns, strict=True)]
    results.send(Timed(medians[0], medians[1], memory))


def reset_peak() -> float:
    """Give freed memory back, begin to look for the peak of resident memory anew, and return what is resident."""
    gc.collect()
    if sys.platform != "linux":
        return math.nan
    getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return math.nan
    return resident("VmRSS")


def resident(key: str) -> float:
    """Resident memory of this process in bytes: now (`VmRSS`), or at most (`VmHWM`)."""
    if sys.platform != "linux":
        return math.nan
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def bench_methods(chosen: str, folder: Path, elements: int, repeats: int) -> None:
    """Print a line for each of the chosen methods (`all`, or names with commas)."""
    from jmerge.methods import REGISTRY  # brings JAX, which whole merges are timed without

    names = sorted(REGISTRY) if chosen == "all" else chosen.split(",")
    for name in names:
        if name not in REGISTRY:
            raise SystemExit(f"'{name}' is not a merge method{did_you_mean(name, REGISTRY)}")
    folder = tensor_folder(folder, elements)
    print(f"{machine()}; one tensor of {folder.name.partition('-')[2]} elements, bf16")
    spawn = multiprocessing.get_context("spawn")
    for name in names:
        receiver, sender = spawn.Pipe(duplex=False)
        child = spawn.Process(target=time_method, args=(folder, name, repeats, sender))
        child.start()
        sender.close()
        try:
            seconds, linear, memory = receiver.recv()
        except EOFError:
            raise SystemExit(f"{name} failed") from None
        child.join()
        low, high = REGISTRY[name].counts
        models = f"{min(high or 3, 3)}{' + base' if REGISTRY[name].base == 'needed' else ''}"
        line = f"{name:<16} {models:<8} {seconds:7.3f} s  {elements / seconds / 1e6:7.1f} M/s"
        line += f"  {seconds / linear:5.2f} x linear"
        print(line + ("" if math.isnan(memory) else f"  memory {memory / 1e6:4.0f} MB"), flush=True)


def machine() -> str:
    """What this runs on."""
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    """Run what the command line asks for."""
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
    parser.add_argument(
        "--methods",
        nargs="?",
        const="all",
        help="time these methods (by default all) on one tensor instead",
    )
    parser.add_argument(
        "--elements", type=int, default=11008 * 4096, help="of the tensor for --methods"
    )
    parser.add_argument(
        "--xla", action="store_true", help="time what leans on XLA instead, with and without"
    )
    parser.add_argument(
        "--device",
        nargs="?",
        const="linear,ties",
        help="time the programs of these methods on the device instead",
    )
    parser.add_argument(
        "--trees",
        nargs="?",
        const="all",
        help="time `merge_trees` by these methods (by default all) instead",
    )
    parser.add_argument(
        "--large", action="store_true", help="merge a leaf of 2^32 + 7 numbers, in 14 GB, instead"
    )
    options = parser.parse_args()
    if options.repeats < 1 or options.elements < 1:
        parser.error("--repeats and --elements are at least 1")
    if options.xla:
        from xlabench import bench_xla  # brings JAX, which whole merges are timed without

        bench_xla(options.repeats)
        return
    if options.device:
        from devicebench import bench_device

        place = tensor_folder(options.folder, options.elements)
        tensors = [place / name for name in (BASE, *MODELS)]
        bench_device(options.device.split(","), place, tensors, options.repeats)
        return
    if options.large:
        from treebench import bench_large

        bench_large()
        return
    if options.trees:
        from treebench import bench_trees

        bench_trees(options.repeats, [] if options.trees == "all" else options.trees.split(","))
        return
    if options.methods:
        bench_methods(options.methods, options.folder, options.elements, options.repeats)
        return

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
    print(f"{machine()}; models of {options.size}, bf16")
    out = options.folder / "out"
    for name in merges:
        recipe = write_recipe(options.folder, name, models, SIZES[options.size][0])
        used = models[: RECIPES[name][0]]
        moved = sum(p.stat().st_size for m in used for p in m.glob("*.safetensors"))
        moved += sum(p.stat().st_size for p in used[0].glob("*.safetensors"))
        floor(used, out)  # warms the page cache
        own = [options.program, "--config", str(recipe), "--out", str(out), "--quiet"]
        commands = {"jmerge": own}
        if options.other:
            commands["other"] = [*shlex.split(options.other), str(recipe), str(out)]
        rows: dict[str, list[Spent]] = {who: [] for who in ("floor", *commands)}
        for turn in range(options.repeats + 1):
            rows["floor"].append(floor(used, out))
            for who, command in commands.items():
                rows[who] += [timed(command)][turn == 0 :]
                shutil.rmtree(out)
        base = statistics.median(run.seconds for run in rows["floor"])
        for who, runs in rows.items():
            if runs:
                seconds, processor, _ = (statistics.median(of) for of in zip(*runs, strict=True))
                line = f"{name:<16} {who:<7} {seconds:7.2f} s  {processor:7.2f} s processor"
                line += f"  {seconds / base:5.2f} x floor  {moved / seconds / 1e9:5.2f} GB/s"
                print(
                    line + f"  peak RSS {max(run.memory for run in runs) / 1e9:.2f} GB", flush=True
                )


if __name__ == "__main__":
    main()
