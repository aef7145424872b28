"""tools/sweep.py on types that stand for all mechanisms which names, configs and layers of transformers show."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# Every mechanism has a type here; those with a reason have layers that cannot be stacked, for that reason.
SAMPLE: dict[str, str] = {
    "llama": "",
    "gpt2": "",  # one fused projection, transposed
    "bert": "",  # a tied head with a bias of its own
    "albert": "no layers",  # all layers share one set of weights
    "t5": "",  # two stacks; the first layer alone has the bias of positions
    "bart": "",  # a buffer of biases of the vocabulary
    "nllb-moe": "decoder_sparse_step",  # experts at steps of its own kind in either stack
    "switch_transformers": "",  # lists of which layers have experts
    "mixtral": "",
    "deepseek_v3": "",  # the first layers are dense
    "ernie4_5_moe": "",  # statistics of the router
    "qwen3_next": "",  # lists of layers by kind
    "jamba": "expert_layer_period",  # kinds of layers by period and offset
    "nemotron_h": "",  # the list of kinds is what counts the layers
    "zamba2": "",  # layers that share their weights
    "xlstm": "",  # two counts of layers
    "mamba": "",
    "gemma3n_text": "entries for each layer",  # tables with rows for each layer
    "gemma4_text": "entries for each layer",  # sizes that differ by layer
    "zaya": "",  # the first layer lacks a tensor
    "kyutai_speech_to_text": "counts as many layers",  # one table for text and sound
    "csm": "counts as many layers",  # codebooks
    "reformer": "",  # a head twice as wide
    "funnel": "",  # blocks of layers
    "clip": "",
    "git": "",  # a numbered list that no key counts
    "llava": "",
    "qwen2_5_vl": "",  # which layers of the tower attend to everything
    "mllama": "",  # which layers attend to pictures
    "idefics": "counts as many layers",  # layers between layers
    "sam": "",  # numbers of layers with tables of their own length
    "swin": "depths",  # layers in stages
    "segformer": "depths",  # two kinds of lists
    "resnet": "no key that counts",  # counters of batches
    "rt_detr": "one key that counts both",
    "flava": "",  # three towers, and heads that config.json ties by mistake
    "wav2vec2": "tdnn_dilation",  # weight norm
    "encodec": "no key that counts",
    "speecht5": "",
    "time_series_transformer": "",
}


@pytest.fixture(scope="module")
def checks() -> Iterator[Any]:
    """The module with the sweep's checks."""
    sys.path.insert(0, str(ROOT / "tools"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sweepchecks

        yield sweepchecks
    sys.path.remove(str(ROOT / "tools"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_type(name: str, checks: Any, tmp_path: Path) -> None:
    """Its tiny models are sound, merge as numpy merges them, and stack."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert checks.make(name, tmp_path).status == checks.RIGHT
        for kind in (checks.SOUND, "linear", checks.STACK):
            result = checks.tried(kind, tmp_path, tmp_path / "work")
            if kind == checks.STACK and SAMPLE[name]:
                assert result.status in (checks.REFUSED, checks.NONE), result
                assert SAMPLE[name] in result.detail, result
            else:
                assert result.status == checks.RIGHT and not result.verified, (kind, *result)


@pytest.mark.slow
def test_every_type_ends_somehow_and_is_not_tried_twice(tmp_path: Path) -> None:
    """Types that are built, that are another's name and that are no models; a second run has nothing left to do."""
    words = (str(tmp_path), "--only", "gpt-sw3|gpt2|sam_mask_decoder", "--methods", "linear")
    first, second = (
        subprocess.run(
            [sys.executable, ROOT / "tools" / "sweep.py", *words], capture_output=True, text=True
        )
        for _ in range(2)
    )
    assert first.returncode == 0, first.stdout + first.stderr
    assert second.stdout.count("\n") < first.stdout.count("\n")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    ends = {(line["type"], line["kind"]): line["status"] for line in lines}
    assert ends == {
        ("gpt-sw3", "build"): "none",
        ("sam_mask_decoder", "build"): "none",
        ("gpt2", "build"): "right",
        ("gpt2", "sound"): "right",
        ("gpt2", "linear"): "right",
    }
    assert "| none | another name of gptN | 1 | `gpt-sw3`" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ("lose", "tensors are missing"),
        ("add", "tensors are there that no input has"),
        ("copy", "tensors are copied, not merged"),
        ("alter", "values are wrong"),
        ("narrow", "another dtype or shape"),
    ],
)
def test_the_checks_see(change: str, cause: str, checks: Any) -> None:
    """Each kind of problem of an output is found, by its name."""
    import numpy as np

    rng = np.random.default_rng(0)
    models = {m: {"x": rng.normal(size=9).astype(np.float32)} for m in "ab"}
    merged = checks.METHODS["linear"].merge(models["a"]["x"], models["b"]["x"], models["a"]["x"])
    wanted = {"x": merged}.get
    found = {"x": merged[0].value.astype(np.float32)}
    assert checks.check_tensors(found, wanted, models["a"], set(), models) == 0
    broken: dict[str, Any] = {
        "lose": {},
        "add": found | {"y": found["x"]},
        "copy": models["b"],
        "alter": {"x": found["x"] * 1.01},
        "narrow": {"x": found["x"].astype(np.float16)},
    }
    with pytest.raises(checks.WrongError) as error:
        checks.check_tensors(broken[change], wanted, models["a"], set(), models)
    assert error.value.cause == cause


def test_the_table_tells_what_rests_on_rounding(tmp_path: Path) -> None:
    """How many numbers of which types, although all is right."""
    line = {"type": "gpt2", "kind": "ties", "status": "right", "either": 3}
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    words = [sys.executable, str(ROOT / "tools" / "sweep.py"), str(tmp_path), "--table"]
    assert subprocess.run(words, capture_output=True).returncode == 0
    assert "as float32 rounds: `gpt2` 3\n" in (tmp_path / "table.md").read_text()


def test_the_limit_on_time_is_for_each_try(tmp_path: Path) -> None:
    """A try that ended gives the next one the whole time again."""
    program = """
import os, pathlib, sys, time
import sweep
child = sweep.Child.__new__(sweep.Child)
child.pid, child.told = os.getpid(), pathlib.Path(sys.argv[1])
child.began, child.size = time.monotonic() - 100, 0
print(child.over(50, 100))
child.told.write_text("a line")
print(child.over(50, 100))
child.began -= 100
print(child.over(50, 100))
"""
    told = tmp_path / "told"
    told.touch()
    words = [sys.executable, "-c", program, str(told)]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=ROOT / "tools")
    assert ended.stdout.splitlines() == ["more than 50 s", "None", "more than 50 s"], ended.stderr
