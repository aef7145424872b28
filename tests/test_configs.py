"""Every recipe of `configs/` plans on headers of the real size, runs on tiny models, and fits the JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers

import jmerge
from jmerge.ckpt.open import open_checkpoint
from jmerge.ckpt.shards import plan_files
from jmerge.dtypes import TensorSpec
from jmerge.engine.memory import need_of
from jmerge.report.schema import recipe_schema
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yml"))
LAYERS = 32

# recipe -> tensors of the result, methods, layers of the result
EXPECTED = {
    "soup": (291, "linear", 32),
    "slerp-gradient": (291, "slerp", 32),
    "task-arithmetic-negative": (291, "task_arithmetic", 32),
    "ties": (291, "ties", 32),
    "dare-ties-bio": (291, "dare_ties", 32),
    "frankenmerge-44": (399, "passthrough", 44),
    "partial-slices": (291, "slerp", 32),
    "modules-vision-language": (304, "linear", 32),
    "only-attention": (291, "ties copy", 32),
    "text-into-vision": (304, "slerp copy", 32),
    "vocabularies": (291, "linear", 32),
}
# of Llama-2 7B, and of something that fits a test
REAL = {"hidden": 4096, "inner": 11008, "vocab": 32000}
TINY: dict[str, Any] = {"hidden": 8, "inner": 12, "vocab": 16}


def vision_names(hidden: int) -> dict[str, tuple[int, ...]]:
    """A vision tower of two blocks and a projector, as Qwen2-VL names them."""
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (hidden, 3, 2, 14, 14)}
    for i in range(2):
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1"):
            shapes[f"visual.blocks.{i}.{part}.weight"] = (
                (hidden,) if part == "norm1" else (hidden, hidden)
            )
    return shapes | {
        "visual.merger.mlp.0.weight": (hidden, hidden),
        "visual.merger.mlp.2.weight": (hidden, hidden),
    }


def shapes_of(
    recipe: str, sizes: dict[str, Any], model: str
) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Names and shapes of a model that a recipe merges, and its config."""
    small = llama_tensors(0, layers=LAYERS, **TINY)
    kv = {
        TINY["hidden"]: sizes["hidden"],
        TINY["inner"]: sizes["inner"],
        TINY["vocab"]: sizes["vocab"],
    }
    kv[TINY["hidden"] // 2] = sizes["hidden"] // 2
    shapes = {name: tuple(kv[n] for n in array.shape) for name, array in small.items()}
    config = llama_config(layers=LAYERS, **sizes)
    if recipe == "modules-vision-language":
        shapes |= vision_names(sizes["hidden"] // 4)
        config |= {
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "vision_config": {"depth": 2},
        }
    if recipe == "text-into-vision" and model == "a":
        shapes = {
            name.replace("model.", "model.language_model."): shape for name, shape in shapes.items()
        }
        tower = vision_names(sizes["hidden"] // 4)
        shapes |= {f"model.{name}": shape for name, shape in tower.items()}
        config |= {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "vision_config": {"depth": 2},
        }
    return shapes, config


def write_headers(folder: Path, shapes: dict[str, tuple[int, ...]], config: dict[str, Any]) -> None:
    """A checkpoint of bf16 headers whose data is a hole in the file: no byte of it is stored."""
    folder.mkdir(parents=True)
    for file in plan_files({name: TensorSpec("BF16", shape) for name, shape in shapes.items()}, 0):
        with (folder / file.name).open("wb") as out:
            out.write(file.header)
            out.truncate(file.size)
    (folder / "config.json").write_text(json.dumps(config))


def write_tokenizers(place: Path, vocab: int) -> None:
    """A byte-level BPE for every model, of which `a` has two tokens of chats instead of two others."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: vocab - 2]
    words = [*letters, *(f"w{i}" for i in range(vocab - 2 - len(letters)))]
    for folder in place.iterdir():
        last = ["<|im_start|>", "<|im_end|>"] if folder.name == "a" else ["x1", "x2"]
        ids = {word: i for i, word in enumerate([*words, *last])}
        made = Tokenizer(models.BPE(ids, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel()
        if folder.name == "a":
            made.add_special_tokens(last)
        made.save(str(folder / "tokenizer.json"))
        template = "{{ messages[0].content }} of " + folder.name
        (folder / "chat_template.jinja").write_text(template)


@pytest.fixture(params=sorted(EXPECTED))
def recipe(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a recipe."""
    return request.param


def test_every_recipe_is_in_the_table() -> None:
    """A recipe added to `configs/` is tested; `quickstart` has its own test."""
    assert set(EXPECTED) == set(RECIPES) - {"quickstart"}


def test_plans_at_real_size(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan has the tensors, the method and the depth that the recipe promises."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c", "base"):
        write_headers(tmp_path / "models" / name, *shapes_of(recipe, REAL, name))
    if recipe == "vocabularies":
        write_tokenizers(tmp_path / "models", REAL["vocab"])
    plan = jmerge.plan(CONFIGS / f"{recipe}.yml")
    tensors, method, layers = EXPECTED[recipe]
    assert len(plan.outputs) == tensors
    assert {step.method for step in plan.steps} == set(method.split())
    assert plan.config["num_hidden_layers"] == layers
    assert need_of(jmerge.advanced.make_schedule(plan)).total < 2.5 * 10**9


def test_runs_on_tiny_models(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The merge of tiny models of the same names is written and can be opened; no value is NaN."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b", "c")):
        rng = np.random.default_rng(seed)
        shapes, config = shapes_of(recipe, TINY, name)
        tensors = {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}
        write_checkpoint(tmp_path / "models" / name, tensors, config)
    if recipe == "vocabularies":
        write_tokenizers(tmp_path / "models", TINY["vocab"])
    jmerge.merge(CONFIGS / f"{recipe}.yml", "out")
    merged = open_checkpoint("out")
    if recipe == "vocabularies":
        assert merged.config["vocab_size"] == 64
        assert Path("out/chat_template.jinja").read_text().endswith("of base")
    assert len(merged) == EXPECTED[recipe][0]
    assert all(np.isfinite(merged[name].astype(np.float32)).all() for name in merged)


@pytest.mark.parametrize("name", RECIPES)
def test_fits_the_schema(name: str) -> None:
    """Editors that check recipes against `jmerge schema` accept the examples."""
    jsonschema.validate(yaml.safe_load((CONFIGS / f"{name}.yml").read_text()), recipe_schema())


def test_the_schema_file_is_the_schema() -> None:
    """`configs/recipe.schema.json`, which a recipe names for editors, is what `jmerge schema` prints."""
    assert json.loads((CONFIGS / "recipe.schema.json").read_text()) == recipe_schema()


@pytest.mark.parametrize(
    "wrong",
    [
        {"merge_method": "linaer", "models": []},
        {"merge_method": "linear", "modles": []},
        {"merge_method": "linear", "models": [{"parameters": {"weight": 1}}]},
        {"merge_method": "linear", "slices": [{"sources": [{"model": "a", "layer_range": [0]}]}]},
        {"merge_method": "linear", "parameters": {"weight": {"valeu": 1}}},
        {"merge_method": "linear", "dtype": "bf17"},
        {"merge_method": "linear", "otherwise": "bas"},
        {"merge_method": "linear", "only": []},
        {"merge_method": "linear", "allow_conflicts": [5]},
        {"merge_method": "linear", "models": [{"model": "a", "map": {"model.": 5}}]},
    ],
)
def test_the_schema_refuses(wrong: dict[str, Any]) -> None:
    """And what is wrong is underlined."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, recipe_schema())
