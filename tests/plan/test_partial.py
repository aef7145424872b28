"""`only`, `except` and `otherwise`: some tensors merged, the rest the very bytes of one model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from partialkit import SOUP, account, refused, run

import jmerge
from jmerge.cli import main
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama

TASK = """\
merge_method: task_arithmetic
base_model: {base}
models:
  - model: {a}
    parameters: {weight: 0.5}
  - model: {b}
    parameters: {weight: 2}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three models; a's and b's are stored in other dtypes than the base's."""
    for seed, name in enumerate(("base", "a", "b")):
        write_llama(tmp_path / name, seed)
    return tmp_path


INPUTS = {name: llama_tensors(seed) for seed, name in enumerate(("base", "a", "b"))}


def task(name: str) -> np.ndarray:
    base, a, b = (INPUTS[model][name].astype(np.float64) for model in ("base", "a", "b"))
    return base + 0.5 * (a - base) + 2 * (b - base)


PATTERNS: dict[str, Callable[[str], bool]] = {
    "only: ['*.mlp.*']\n": lambda name: ".mlp." in name,
    "only: '*.layers.1.*'\n": lambda name: ".layers.1." in name,
    "except: ['*norm*', lm_head.weight]\n": lambda name: "norm" not in name and "lm_" not in name,
    "only: ['*.mlp.*', '*.self_attn.[qk]_proj.*']\nexcept: ['*.0.*']\n": lambda name: (
        ".0." not in name and (".mlp." in name or "q_proj" in name or "k_proj" in name)
    ),
}


@pytest.mark.parametrize("keys", PATTERNS)
def test_rest_is_the_base(folder: Path, keys: str) -> None:
    """What the patterns name is merged; the rest is the base's, bit for bit, and the ledger says so."""
    merged = PATTERNS[keys]
    made = run(folder, TASK + keys)
    assert made.tensors.keys() == INPUTS["base"].keys()
    assert {merged(name) for name in made.tensors} == {True, False}
    for name, array in made.tensors.items():
        entry = made.ledger["tensors"][name]
        if merged(name):
            np.testing.assert_allclose(array, task(name), rtol=1e-5, atol=1e-5)
            assert entry["method"] == "task_arithmetic" and len(entry["sources"]) == 3
        else:
            assert array.tobytes() == INPUTS["base"][name].tobytes()
            assert entry["method"] == "copy"
            (source,) = entry["sources"]
            assert Path(source["model"]).name == "base" and "base: " in entry["note"]
    account(made, INPUTS)


def test_first_of_models(folder: Path) -> None:
    """Without a base the first listed model gives the rest; with one, `first` does."""
    made = run(folder, SOUP + "only: ['*.q_proj.*']\n")
    for name, array in made.tensors.items():
        a, b = INPUTS["a"][name], INPUTS["b"][name]
        wanted = 0.25 * a + 0.75 * b if "q_proj" in name else a
        np.testing.assert_allclose(array, wanted, rtol=1e-6)
    (folder / "out").rename(folder / "soup")
    made = run(folder, TASK + "only: ['*.q_proj.*']\notherwise: first\n")
    for name, array in made.tensors.items():
        assert (array.tobytes() == INPUTS["a"][name].tobytes()) == ("q_proj" not in name)


def test_bytes_are_kept_in_their_dtype(tmp_path: Path) -> None:
    """`dtype` is of what is merged."""
    for seed, name in enumerate(("a", "b")):
        tensors = {
            key: array.astype(ml_dtypes.bfloat16) if "norm" in key else array
            for key, array in llama_tensors(seed).items()
        }
        write_checkpoint(tmp_path / name, tensors, llama_config())
    made = run(tmp_path, SOUP + "except: ['*norm*']\ndtype: float16\n")
    for name, array in made.tensors.items():
        assert array.dtype == (ml_dtypes.bfloat16 if "norm" in name else np.float16)
    assert made.config["torch_dtype"] == "float16"


def test_slices(tmp_path: Path) -> None:
    """In slices, the rest comes from the layer that the slice takes of that model; names are the output's."""
    for seed, name in enumerate(("a", "b")):
        write_llama(tmp_path / name, seed, layers=3)
    a, b = (llama_tensors(seed, layers=3) for seed in (0, 1))
    made = run(
        tmp_path,
        """\
merge_method: linear
slices:
  - sources:
      - {model: {a}, layer_range: [0, 2], parameters: {weight: 1}}
      - {model: {b}, layer_range: [1, 3], parameters: {weight: 1}}
  - sources:
      - {model: {b}, layer_range: [0, 2], parameters: {weight: 1}}
      - {model: {a}, layer_range: [1, 3], parameters: {weight: 1}}
except: ['*.self_attn.*', 'model.layers.3.*']
""",
    )
    up = "model.layers.{}.mlp.up_proj.weight"
    q = "model.layers.{}.self_attn.q_proj.weight"
    np.testing.assert_allclose(made.tensors[up.format(1)], (a[up.format(1)] + b[up.format(2)]) / 2)
    assert made.tensors[q.format(1)].tobytes() == a[q.format(1)].tobytes()
    np.testing.assert_allclose(made.tensors[up.format(2)], (b[up.format(0)] + a[up.format(1)]) / 2)
    assert made.tensors[q.format(2)].tobytes() == b[q.format(0)].tobytes()
    assert made.tensors[up.format(3)].tobytes() == b[up.format(1)].tobytes()


def test_another_shape_may_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A classification head of another size is refused with the line that leaves it out, which works."""
    for seed, (name, labels) in enumerate((("a", 3), ("b", 5))):
        tensors = llama_tensors(seed) | {"score.weight": np.ones((labels, 8), np.float32)}
        del tensors["lm_head.weight"]
        config = llama_config() | {"architectures": ["LlamaForSequenceClassification"]}
        write_checkpoint(tmp_path / name, tensors, config)
    (error,) = refused(tmp_path, SOUP, capsys)
    assert error == (
        "error: x.yml:5: models[1].model: score.weight is [5, 8] in b and [3, 8] in a: "
        "leave out what differs with 'except: [score.weight]'"
    )
    made = run(tmp_path, SOUP + "except: [score.weight]\n")
    assert made.tensors["score.weight"].shape == (3, 8)
    (unused,) = made.ledger["unused"]
    assert unused["tensor"] == "score.weight" and "in 'except'" in unused["reason"]


def test_the_rest_must_fit_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """config.json is the base's, so `first` may not bring a tensor of another shape."""
    for seed, (name, labels) in enumerate((("base", 3), ("a", 5), ("b", 5))):
        tensors = llama_tensors(seed) | {"score.weight": np.ones((labels, 8), np.float32)}
        write_checkpoint(tmp_path / name, tensors, llama_config())
    (error,) = refused(tmp_path, TASK + "except: [score.weight]\notherwise: first\n", capsys)
    assert "score.weight is [5, 8] in a and [3, 8] in base" in error


def test_tensors_that_the_base_lacks(tmp_path: Path) -> None:
    """What is not merged and not in the base is not in the output, which is said; nothing is read of it."""
    for seed, name in enumerate(("base", "a", "b")):
        extra = {} if name == "base" else {"score.weight": np.ones((3, 8), np.float32)}
        write_checkpoint(tmp_path / name, llama_tensors(seed) | extra, llama_config())
    made = run(tmp_path, TASK + "except: [score.*]\n")
    assert "score.weight" not in made.tensors
    assert [each["tensor"] for each in made.ledger["unused"]] == ["score.weight"] * 2
    (warning,) = made.ledger["warnings"]
    assert "score.weight: in 'except' and not in" in warning and "not in the output" in warning


def test_tied_heads(tmp_path: Path) -> None:
    """A tied base gives no head where head and embedding are left alone, and its embedding where only the head is."""
    write_llama(tmp_path / "base", 0, tied=True)
    for seed, name in ((1, "a"), (2, "b")):
        write_llama(tmp_path / name, seed)
    table = llama_tensors(0, tied=True)["model.embed_tokens.weight"]
    made = run(tmp_path, TASK + "only: ['*.mlp.*']\n")
    assert "lm_head.weight" not in made.tensors and made.config["tie_word_embeddings"] is True
    assert made.tensors["model.embed_tokens.weight"].tobytes() == table.tobytes()
    assert {each["tensor"] for each in made.ledger["unused"]} >= {"lm_head.weight"}
    (tmp_path / "out").rename(tmp_path / "old")
    made = run(tmp_path, TASK + "except: [lm_head.weight]\n")
    assert made.tensors["lm_head.weight"].tobytes() == table.tobytes()
    assert made.config["tie_word_embeddings"] is False


def test_methods_of_whole_models_and_several_outputs(folder: Path) -> None:
    """Copies stay out of the statistics of whole models, and go into each of several checkpoints."""
    recipe = TASK.replace("task_arithmetic", "emr").replace("    parameters: {weight: 0.5}\n", "")
    made = run(folder, recipe.replace("    parameters: {weight: 2}\n", "") + "only: ['*.mlp.*']\n")
    for model in ("a", "b"):
        for name, array in INPUTS["base"].items():
            kept = made.tensors[f"{model}/{name}"].tobytes() == array.tobytes()
            assert kept == (".mlp." not in name)


VISION = {
    f"visual.blocks.{i}.norm.weight": np.arange(6, dtype=np.float32) * (i + 1) for i in range(2)
}
MODULES = """\
merge_method: linear
modules:
  text_decoder:
    models:
      - {model: {a}, parameters: {weight: 1}}
      - {model: {b}, parameters: {weight: 1}}
dtype: float16
"""


@pytest.fixture
def vision(tmp_path: Path) -> Path:
    """Two vision-language models."""
    for seed, name in enumerate(("a", "b")):
        config = llama_config() | {"vision_config": {"depth": 2}}
        config["architectures"] = ["Qwen2VLForConditionalGeneration"]
        tower = {key: array + seed for key, array in VISION.items()}
        write_checkpoint(tmp_path / name, llama_tensors(seed) | tower, config)
    return tmp_path


def test_otherwise_holds_for_modules_too(vision: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A module left out is copied as ever without the key, and as bytes, or refused, with it."""
    made = run(vision, MODULES)
    assert made.tensors["visual.blocks.1.norm.weight"].dtype == np.float16
    assert "module 'vision_tower' is not in the recipe" in made.ledger["warnings"][0]
    (vision / "out").rename(vision / "plain")
    made = run(vision, MODULES + "otherwise: first\n")
    for name, array in VISION.items():
        assert made.tensors[name].tobytes() == array.tobytes()
    assert made.ledger["warnings"] == []
    (error,) = refused(vision, MODULES + "otherwise: error\n", capsys)
    assert "visual.blocks.0.norm.weight and 1 more: module 'vision_tower' is not in" in error


def test_a_module_that_its_keeper_lacks(vision: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`first` may be a model without the module: nothing would be left of it."""
    write_llama(vision / "text", 2)
    recipe = MODULES.replace("linear", "task_arithmetic").replace("{a}", "{text}")
    recipe += "base_model: {a}\notherwise: first\n"
    lines = refused(vision, recipe, capsys)
    (error,) = [line for line in lines if line.startswith("error")]
    assert error.startswith(
        "error: x.yml:9: otherwise: visual.blocks.0.norm.weight and 1 more: not in text"
    )


def test_names_of_modules(vision: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other words for a module do; two of them do not, and neither does a misspelling."""
    tower = "  visual:\n    models:\n      - {model: {b}, parameters: {weight: 1}}\n"
    recipe = MODULES.replace("text_decoder:", "language_model:")
    made = run(vision, recipe.replace("dtype:", tower + "dtype:"))
    np.testing.assert_array_equal(
        made.tensors["visual.blocks.1.norm.weight"], VISION["visual.blocks.1.norm.weight"] + 1
    )
    (vision / "out").rename(vision / "plain")
    twice = tower + tower.replace("visual", "vision_tower")
    (error,) = refused(vision, MODULES.replace("dtype:", twice + "dtype:"), capsys)
    assert error.endswith("modules.vision_tower: 'vision_tower' is at modules.visual too")
    (error,) = refused(vision, MODULES.replace("text_decoder", "text_decodr"), capsys)
    assert "not a module of a; did you mean 'text_decoder'?" in error


# Problems


PROBLEMS = {
    "only: ['*.mlp.upproj.*', '*.mpl.*']\n": [
        "error: x.yml:8: only[0]: '*.mlp.upproj.*' matches no tensor of the output",
        "error: x.yml:8: only[1]: '*.mpl.*' matches no tensor of the output",
    ],
    "except: lm_head.wieght\n": [
        "error: x.yml:8: except: 'lm_head.wieght' matches no tensor of the output; "
        "did you mean 'lm_head.weight'?"
    ],
    "only: ['*']\notherwise: bas\n": [
        "error: x.yml:9: otherwise: expected one of base, first, error; found 'bas'; "
        "did you mean 'base'?"
    ],
    "only: []\nexcept: 5\n": [
        "error: x.yml:8: only: expected a list of strings, found []",
        "error: x.yml:9: except: expected a list of strings, found 5",
    ],
    "only: ['*.mlp.*']\notherwise: error\n": [
        "error: x.yml:9: otherwise: model.embed_tokens.weight and 14 more: not in 'only', "
        "so not merged; 'otherwise: base' would copy the base's"
    ],
}


@pytest.mark.parametrize("keys", PROBLEMS)
def test_problems(folder: Path, keys: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(folder, TASK + keys, capsys) == PROBLEMS[keys]


def test_problems_of_the_base(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`base` needs one, and slices need it among their sources; all is said at once."""
    lines = refused(folder, SOUP + "otherwise: base\nonly: 'x'\n", capsys)
    assert (
        "error: x.yml:7: otherwise: there is no base_model; add one, or write 'otherwise: first'"
        in (lines)
    )
    stack = """\
merge_method: passthrough
base_model: {base}
slices:
  - sources: [{model: {a}, layer_range: [0, 2]}]
only: ['*.mlp.*']
"""
    (error,) = refused(folder, stack, capsys)
    assert "which is not a source of this slice; list it, or write 'otherwise: first'" in error
    made = run(folder, stack + "otherwise: first\n")
    assert made.tensors["lm_head.weight"].tobytes() == INPUTS["a"]["lm_head.weight"].tobytes()


def test_plan_shows_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`jmerge plan` says of each tensor that is left why, and how many there are."""
    recipe = TASK + "only: ['*.mlp.*']\n"
    for name in ("a", "b", "base"):
        recipe = recipe.replace(f"{{{name}}}", str(folder / name))
    (folder / "x.yml").write_text(recipe)
    plan = jmerge.plan(folder / "x.yml")
    assert sum(step.method == "copy" for step in plan.steps) == 15
    assert main(["plan", str(folder / "x.yml")]) == 0
    out = capsys.readouterr().out
    assert f"(as in {folder / 'base'}: not in 'only')" in out
    assert f"copied    15 tensors: as in {folder / 'base'}: not in 'only'\n" in out
