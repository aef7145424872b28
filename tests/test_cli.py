"""The command line: words, flags, exit codes, what is printed where, and what `--help` imports."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from said import Said

import jmerge
from jmerge import cli, commands, options
from jmerge.sizes import parse_size
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama

HEAVY = (
    *("jax", "jaxlib", "flax", "orbax", "huggingface_hub", "pydantic"),
    *("numpy", "ml_dtypes", "yaml", "rich", "torch", "transformers"),
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with models `a` and `b` and a recipe `x.yml`."""
    monkeypatch.chdir(tmp_path)
    write_llama(tmp_path / "a", 0)
    write_llama(tmp_path / "b", 1)
    write_recipe(tmp_path)
    return tmp_path


def write_recipe(folder: Path, name: str = "x.yml", extra: str = "") -> None:
    (folder / name).write_text(
        "merge_method: linear\nmodels:\n- model: a\n  parameters: {weight: 0.25}\n"
        f"- model: b\n  parameters: {{weight: 1}}\n{extra}"
    )


def assert_refused(said: Said, *parts: str) -> None:
    """Exit code 2, nothing on standard output, and one error line with these parts."""
    assert (said.code, said.out) == (2, "")
    (line,) = said.errors
    for part in parts:
        assert part in line
    assert "Traceback" not in said.err


# The main job


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "x.yml", "--out", "out"],
        ["--config=x.yml", "--out=out"],
        ["-config", "x.yml", "-out", "out"],
        ["x.yml", "out"],
        ["x.yml", "--out", "out"],
        ["--config", "x.yml", "out"],
        ["--seed", "3", "x.yml", "out"],
        ["x.yml", "--seed=3", "out"],
        ["x.yml", "out", "--seed", "3", "--overwrite", "--shard_size", "2GiB"],
    ],
    ids=" ".join,
)
def test_spellings_of_the_main_job(words: list[str], place: Path) -> None:
    said = Said(*words)
    assert said.code == 0, said.err
    assert "merged 21 tensors (5.02 kB) by linear into out" in said.out
    assert os.path.exists(os.path.join("out", "jmerge.lock.json"))
    assert said.err == ""
    ledger = json.loads((place / "out" / "jmerge.lock.json").read_text())
    assert ledger["seed"] == (3 if any("seed" in word for word in words) else 0)


def test_shard_size(place: Path) -> None:
    assert Said("x.yml", "out", "--shard_size", "1kB").code == 0
    shards = list((place / "out").glob("*.safetensors"))
    assert len(shards) > 3 and (place / "out" / "model.safetensors.index.json").is_file()
    assert set(jmerge.open_checkpoint(place / "out")) == set(llama_tensors(0))


@pytest.mark.parametrize("size", ["5XB", "", "GB", "1,5GB", "5 5"])
def test_a_size_that_is_none(size: str, place: Path) -> None:
    assert_refused(Said("x.yml", "out", "--shard_size", size), "--shard_size", "5GB")
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("5GB", 5 * 10**9),
        ("5gb", 5 * 10**9),
        ("2GiB", 2**31),
        ("1.5GB", 1_500_000_000),
        ("5B", 5 * 10**9),  # MergeKit's billion
        ("10k", 10_000),
        ("3M", 3 * 10**6),
        ("512MiB", 2**29),
        (" 7 kB ", 7000),
        ("123", 123),
        ("0", 0),
        ("-1", -1),
        (77, 77),
    ],
)
def test_sizes(text: str | int, nbytes: int) -> None:
    assert parse_size(text, "--memory") == nbytes


def test_quiet_prints_nothing(place: Path) -> None:
    write_recipe(place, extra="name: has no effect\n")
    said = Said("x.yml", "out", "--quiet")
    assert (said.code, said.out, said.err) == (0, "", "")
    said = Said("x.yml", "out", "--quiet")  # up to date
    assert (said.code, said.out, said.err) == (0, "", "")
    assert_refused(Said("y.yml", "out", "--quiet"), "y.yml")


def test_warnings_go_to_standard_error(place: Path) -> None:
    write_recipe(place, extra="name: has no effect\n")
    for said in (Said("x.yml", "out"), Said("plan", "x.yml")):
        assert said.code == 0
        (line,) = said.err.splitlines()
        assert line == "warning: x.yml:7: name: has no effect [JM019]"
        assert "warning" not in said.out


def test_allow_nonfinite(place: Path) -> None:
    tensors = llama_tensors(1)
    tensors["model.norm.weight"][2] = np.nan
    write_checkpoint(place / "b", tensors, llama_config())
    assert_refused(Said("x.yml", "out"), "model.norm.weight", "b", "--allow_nonfinite")
    assert sorted(path.name for path in place.iterdir()) == ["a", "b", "x.yml"]
    said = Said("x.yml", "out", "--allow_nonfinite")
    assert said.code == 0
    (line,) = said.err.splitlines()
    assert line.startswith("warning: out: NaN or infinity in 1 element of 1 tensor: ")
    assert line.endswith("model.norm.weight (1 of 8); they come from b [JM126]")


# Mistakes


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["x.yml"], ["--out", "missing"]),
        (["--config", "x.yml"], ["--out", "missing"]),
        (["--out", "out"], ["--config", "missing"]),
        (["plan"], ["--config", "missing", "jmerge plan"]),
        (["x.yml", "out", "more"], ["'more'", "unexpected argument"]),
        (["--config", "x.yml", "--out", "out", "more"], ["'more'", "unexpected argument"]),
        (["plan", "x.yml", "out", "more"], ["'more'", "unexpected argument"]),
        (["--confg", "x.yml"], ["--confg", "did you mean 'config'"]),
        (["x.yml", "out", "--overwrit"], ["--overwrit", "did you mean 'overwrite'"]),
        (["x.yml", "out", "--shardsize=3"], ["--shardsize", "did you mean 'shard_size'"]),
        (["x.yml", "out", "--zzzzz"], ["--zzzzz: unknown flag"]),
        (["x.yml", "out", "--process_id=0"], ["--process_id: does nothing without --distributed"]),
        (["x.yml", "out", "--distributed", "--num_processes=0"], ["--num_processes", "found 0"]),
        (["x.yml", "out", "--seed", "one"], ["seed", "one"]),
        (["x.yml", "out", "--seed"], ["seed"]),
        (["x.yml", "out", "--quiet=maybe"], ["quiet", "maybe"]),
        (["gone.yml", "out"], ["gone.yml", "cannot be read"]),
        (["plan", "gone.yml"], ["gone.yml", "cannot be read"]),
        (["a", "out"], ["a: ", "cannot be read"]),
        (["a/model.safetensors", "out"], ["a/model.safetensors"]),
        (["x.yml", "a"], ["--out", "a is an input"]),
        (["x.yml", "x.yml"], ["x.yml", "not written by jmerge"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_mistakes_are_one_line(words: list[str], parts: list[str], place: Path) -> None:
    assert_refused(Said(*words), *parts)
    assert sorted(path.name for path in place.iterdir()) == ["a", "b", "x.yml"]


def test_all_that_is_wrong_with_flags_is_told_at_once(place: Path) -> None:
    words = "x.yml out --allow-crimes --seed x --shard_size=5X --memory=lots --overwrit --quiet=maybe".split()
    said = Said(*words)
    assert said.code == 2 and said.err.endswith("6 errors; nothing was written\n")
    flags = ["--allow-crimes", "--seed", "--overwrit", "--quiet", "--memory", "--shard_size"]
    assert sorted(line.split(": ")[1] for line in said.errors) == sorted(flags)
    assert "error: --seed: expected a whole number, found 'x'" in said.err
    assert "error: --quiet: expected true or false, found 'maybe'" in said.err


@pytest.mark.parametrize("name", ["out\udcff", "out\n"])
def test_an_output_that_no_file_can_name(name: str, place: Path) -> None:
    assert_refused(Said("x.yml", name), "--out: ", "choose another folder")
    assert sorted(path.name for path in place.iterdir()) == ["a", "b", "x.yml"]


def test_every_problem_has_a_line_and_then_a_count(place: Path) -> None:
    (place / "y.yml").write_text(
        "merge_method: linear\nmodels:\n- model: a\n  parameters: {wieght: 1}\n- model: bb\n"
        "  parameters: {weight: 1}\ntokeniser_source: base\n"
    )
    said = Said("y.yml", "out")
    assert said.code == 2
    assert [line.split(": ")[1] for line in said.errors] == ["y.yml:4", "y.yml:5", "y.yml:7"]
    assert "'weight'" in said.errors[0] and "'tokenizer_source'" in said.errors[2]
    assert said.err.splitlines()[3:] == ["3 errors; nothing was written"]
    assert not (place / "out").exists()


def test_an_environment_problem_is_three(place: Path) -> None:
    (place / "file").write_text("x")
    said = Said("x.yml", "file/out")
    assert (said.code, said.out, len(said.errors)) == (3, "", 1)
    assert "Traceback" not in said.err


def test_a_bug_keeps_its_traceback(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*words: Any, **rest: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("jmerge.api.merge.merge", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["x.yml", "out"])


# MergeKit's flags: each as people write it, and a part of the answer

MERGEKIT = {
    "--out-shard-size=5B": "--shard_size",
    "--random-seed=1": "--seed",
    "--allow-crimes": "names and shapes",
    "--transformers-cache=x": "folder",
    "--lora-merge-cache=x": "adapters",
    "--lora-merge-dtype=float32": "adapters",
    "--cuda": "JAX",
    "--device=cuda": "JAX",
    "--low-cpu-memory": "memory",
    "--read-to-gpu": "JAX",
    "--multi-gpu": "JAX",
    "--gpu-rich": "JAX",
    "--copy-tokenizer": "always",
    "--no-copy-tokenizer": "always",
    "--clone-tensors": "own",
    "--trust-remote-code": "no code",
    "--lazy-unpickle": "lazily",
    "--write-model-card": "always",
    "--no-write-model-card": "always",
    "--safe-serialization": "safetensors",
    "--no-safe-serialization": "safetensors",
    "--num-threads=2": "cores",
    "--async-write": "overlaps",
    "--write-threads=2": "overlaps",
    "--unsafe-truncate-embeddings": "cut",
}


HARMLESS = [flag for flag in MERGEKIT if flag[2:] in options.HARMLESS]


@pytest.mark.parametrize("flag", [flag for flag in MERGEKIT if flag not in HARMLESS])
def test_mergekits_flags_are_answered(flag: str, place: Path) -> None:
    name = flag.split("=")[0].replace("--no-", "--")
    words = ["x.yml", "out", *flag.split("=")]
    for said in (Said("x.yml", "out", flag), Said(*words), Said(flag, "x.yml", "out")):
        assert_refused(said, f"{name}: ", "MergeKit", MERGEKIT[flag])
    assert not (place / "out").exists()


@pytest.mark.parametrize("flag", HARMLESS)
def test_mergekits_harmless_flags_are_a_note(flag: str, place: Path) -> None:
    for given in (flag, "--" + flag[2:].replace("-", "_")):
        said = Said("plan", "x.yml", given)
        notes = [line for line in said.err.splitlines() if line.startswith("note: ")]
        assert said.code == 0 and len(notes) == 1
        assert f"{flag} is MergeKit's" in notes[0] and MERGEKIT[flag] in notes[0]


# Habits


@pytest.mark.parametrize(
    "words",
    [
        ["merge", "x.yml", "out"],
        ["x.yml", "-o", "out"],
        ["x.yml", "out", "--shard-size", "2GiB"],
        ["x.yml", "out", "--allow-nonfinite", "--shard-size=1MB"],
    ],
)
def test_habits_merge(words: list[str], place: Path) -> None:
    assert Said(*words).code == 0
    assert (place / "out" / "config.json").exists()


@pytest.mark.parametrize(
    "words",
    [["plan", "x.yml", "out"], ["x.yml", "out", "--dry-run"], ["merge", "x.yml", "--dry_run"]],
)
def test_habits_plan(words: list[str], place: Path) -> None:
    said = Said(*words)
    assert said.code == 0 and "compiles  1 kernel\n" in said.out
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["insepct", "a"], ["'insepct'", "is not a command", "inspect"]),
        (["verfy", "a", "--json"], ["'verfy'", "is not a command", "verify"]),
        (["x.yml", "out", "--json"], ["--json", "does nothing here", "plan"]),
        (["--config=x.yml", "--out=out", "--deep"], ["--deep", "does nothing here"]),
        (["inspect", "a", "--deep"], ["--deep", "does nothing here", "verify"]),
        (["verify", "a", "--html=x"], ["--html", "does nothing here", "diff"]),
        (["x.yml", "out", "--shard-size", "5"], ["--shard_size", "5 bytes", "did you mean 5GB"]),
    ],
)
def test_slips_are_refused(words: list[str], parts: list[str], place: Path) -> None:
    assert_refused(Said(*words), *parts)
    assert not (place / "out").exists()


def test_a_pipe_gets_whole_names(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert "post_attention_layernorm.weight" in Said("diff", "a", "b").out


# Help and version


@pytest.mark.parametrize("flag", ["--help", "-h", "-help"])
def test_help(flag: str) -> None:
    said = Said(flag)
    assert (said.code, said.err) == (0, "")
    assert "jmerge --config RECIPE.yml --out FOLDER" in said.out
    assert "jmerge RECIPE.yml FOLDER" in said.out
    assert "130" in said.out
    for name in options.define_flags():
        if len(name) > 1:
            assert f"--{name}" in said.out


def test_help_shows_defaults() -> None:
    lines = {line.split()[0]: line for line in Said("--help").out.splitlines() if "--" in line}
    assert "(default: 5GB)" in lines["--shard_size"]
    assert "(default: 0)" in lines["--seed"]


def test_without_words_the_help_is_shown_and_it_is_a_mistake() -> None:
    said = Said()
    assert said.code == 2
    assert "jmerge --config RECIPE.yml" in said.out + said.err


def test_version() -> None:
    said = Said("--version")
    assert (said.code, said.out, said.err) == (0, f"jmerge {jmerge.__version__}\n", "")


def test_flags_are_private() -> None:
    """Research code has flags of its own: ours are defined only when the program runs."""
    from absl import flags

    one, other = options.define_flags(), options.define_flags()
    assert one is not other
    ours = set(one) - {"help", "v"}  # absl's own flags for logging have a v too
    assert not ours & set(flags.FLAGS)


# plan


def test_plan_prints_and_writes_nothing(place: Path) -> None:
    for words in (["plan", "x.yml"], ["plan", "--config", "x.yml"], ["plan", "--config=x.yml"]):
        said = Said(*words)
        assert (said.code, said.err) == (0, "")
        assert "F32[16, 8]" in said.out and "weight=[0.25 1]" in said.out
        assert "models    A = a\n          B = b\n" in said.out
        assert said.out.startswith("linear of 2 models: 21 tensors, 5.02 kB\nreads     10.05 kB\n")
        assert "compiles  1 kernel\n" in said.out
        assert "model.layers.{0..1}.mlp.up_proj.weight" in said.out
    said = Said("plan", "x.yml", "--all")
    for name in llama_tensors(0):
        assert sum(line.startswith(f"{name} ") for line in said.out.splitlines()) == 1
    assert sorted(path.name for path in place.iterdir()) == ["a", "b", "x.yml"]


def test_plan_says_what_is_left_out_and_what_config_becomes(place: Path) -> None:
    (place / "y.yml").write_text(
        "merge_method: passthrough\ndtype: bfloat16\nslices:\n"
        "- sources: [{model: a, layer_range: [0, 1]}]\n"
        "- sources: [{model: b, layer_range: [0, 1]}]\n"
        "- sources: [{model: b, layer_range: [0, 1]}]\n"
    )
    said = Said("plan", "y.yml")
    assert said.code == 0
    assert "config.json: num_hidden_layers: 2 -> 3" in said.out
    assert "config.json: torch_dtype: float32 -> bfloat16" in said.out
    assert "layer 1 is in no layer_range" in said.out
    assert "B: {0}" in said.out or "B: 0" in said.out
    assert "B:model.layers.0.mlp.up_proj.weight" in Said("plan", "y.yml", "--all").out


def test_plan_as_json(place: Path) -> None:
    said = Said("plan", "x.yml", "--json", "--seed", "5")
    assert (said.code, said.err) == (0, "")
    found = json.loads(said.out)
    assert found["totals"]["tensors"] == 21 and found["totals"]["kernels"] == 1
    assert found["totals"]["write_bytes"] == sum(a.nbytes for a in llama_tensors(0).values())
    plan = found["plan"]
    assert plan["seed"] == 5 and [model["ref"] for model in plan["models"]] == ["a", "b"]
    assert {step["name"] for step in plan["steps"]} == set(llama_tensors(0))
    assert said.out == Said("plan", "x.yml", "--json", "--seed=5").out


# Progress


def test_progress_in_plain_lines(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jmerge.report.progress.SECONDS_BETWEEN_LINES", 0.0)
    said = Said("x.yml", "out")
    lines = said.err.splitlines()
    assert said.code == 0 and len(lines) > 3
    assert all("% done, " in line and "written, " in line and "s left" in line for line in lines)
    assert "\r" not in said.err and "\x1b" not in said.err
    assert lines[-1].startswith("100% done, 5.02 kB of 5.02 kB written")


def test_a_short_merge_has_no_progress_lines(place: Path) -> None:
    assert Said("x.yml", "out").err == ""


def test_progress_as_a_bar_on_a_terminal(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for quiet in (False, True):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        code = cli.main(["x.yml", f"out{quiet}", *(["--quiet"] if quiet else [])])
        assert code == 0
        assert ("merging" in terminal.getvalue()) != quiet
        assert "\n0" not in terminal.getvalue()


# In a process of its own


def program(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program as the console script does."""
    code = "from jmerge.cli import program; program()"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_merge_as_a_process(place: Path) -> None:
    done = program("x.yml", "out", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert "merged 21 tensors" in done.stdout
    assert set(jmerge.open_checkpoint(place / "out")) == set(llama_tensors(0))


def test_a_mistake_as_a_process(place: Path) -> None:
    done = program("x.yml", "out", "--sed=1", cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --sed: unknown flag; did you mean 'seed'? [JM403]\n"


def test_the_console_script_is_installed() -> None:
    from importlib.metadata import entry_points

    (point,) = entry_points(group="console_scripts", name="jmerge")
    assert point.load() is cli.program


def test_a_closed_pipe_is_no_traceback(place: Path) -> None:
    """`jmerge plan x.yml | head -1`, with more to print than a pipe holds."""
    tensors = {f"model.part{i}.weight": np.ones((2, 2), np.float32) for i in range(3000)}
    for name in "ab":
        write_checkpoint(place / name, tensors, {"model_type": "x"})
    code = "from jmerge.cli import program; program()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "plan", "x.yml"],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(120) == 0
    assert errors == ""


def test_only_a_merge_goes_on_after_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    for command, words in (("_diff", ["diff", "a", "b"]), ("_merge", ["x.yml", "out"])):
        monkeypatch.setattr(commands, command, interrupt)
        assert cli.main(words) == 130
        assert ("continues" in capsys.readouterr().err) == (command == "_merge")


def shell(line: str, cwd: Path) -> tuple[int, str]:
    """The exit code of jmerge, which `line` calls as `$J`, and what it says on standard error."""
    code = "from jmerge.cli import program; program()"
    script = f"J() {{ {sys.executable} -c '{code}' \"$@\"; }}; set -o pipefail; {line}"
    done = subprocess.run(["bash", "-c", script], cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stderr


def test_a_problem_is_one_whoever_reads_of_it(tmp_path: Path) -> None:
    write_llama(tmp_path / "m", 0)
    (tmp_path / "m" / "config.json").unlink()
    assert shell("J verify m > /dev/null", tmp_path) == (1, "")
    assert shell("J verify m | true", tmp_path) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    write_llama(tmp_path, 0)
    for line in ("J verify . > /dev/full", "J diff . . > /dev/full"):
        assert shell(line, tmp_path) == (
            3,
            "error: standard output: No space left on device [JM501]\n",
        )


def test_letters_that_the_output_cannot_encode(tmp_path: Path) -> None:
    write_llama(tmp_path / "\xfc", 0)
    assert shell(
        "export PYTHONIOENCODING=ascii; J diff \xfc \xfc | grep -qF '\\xfc'", tmp_path
    ) == (0, "")


@pytest.mark.parametrize("words", [["--help"], ["--version"], [], ["--confg"], ["--cuda"]])
def test_what_needs_no_merge_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom jmerge.cli import main\n"
        f"code = main({words!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
