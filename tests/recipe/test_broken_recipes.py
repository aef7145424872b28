"""Broken recipes: every message in full, in the order of the lines, before any weight is read.

A case is a recipe text in which `{a}` stands for the folder of the tiny model `a`, and the whole
list of messages, in which the file is called x.yml and folders of models by their names alone.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from said import uncoded

import jmerge
from jmerge.cli import main
from jmerge.engine.local import Files
from jmerge.errors import JmergeError
from jmerge.methods import REGISTRY
from jmerge.plan.check import check_recipe
from jmerge.plan.problems import split
from jmerge.recipe.recipe import Recipe
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds every model by its name."""
    root = tmp_path_factory.mktemp("broken")
    for seed, name in enumerate(("a", "b", "c", "base")):  # 21 tensors each
        write_llama(root / name, seed)
    write_llama(root / "deep", 10, layers=3)
    write_llama(root / "vocab20", 11, vocab=20)
    write_llama(root / "wide", 12, hidden=16, inner=24)
    hole = llama_tensors(13, layers=3)
    del hole["model.layers.1.mlp.up_proj.weight"]
    write_checkpoint(root / "hole", hole, llama_config(layers=3))
    biased = llama_tensors(14)
    biased |= {f"model.layers.{i}.self_attn.q_proj.bias": np.ones(8, np.float32) for i in range(2)}
    write_checkpoint(root / "biased", biased, llama_config())
    write_checkpoint(root / "said", biased, llama_config() | {"attention_bias": True})
    whole = llama_tensors(15) | {"model.norm.weight": np.arange(8)}
    write_checkpoint(root / "whole", whole, llama_config())
    for name, kind in (("int32", np.int32), ("int64", np.int64)):
        counted = llama_tensors(16) | {"model.table": np.arange(4).astype(kind)}
        write_checkpoint(root / name, counted, llama_config())
    gptq = llama_config() | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    codes = {"model.layers.0.mlp.up_proj.qweight": np.ones((1, 8), np.int32)}
    write_checkpoint(root / "gptq", llama_tensors(17) | codes, gptq)
    for seed, name in enumerate(("vis1", "vis2")):
        vision = llama_tensors(20 + seed)
        vision |= {f"visual.blocks.{i}.norm.weight": np.ones(6, np.float32) for i in range(2)}
        config = llama_config() | {"vision_config": {"depth": 2}}
        config["architectures"] = ["Qwen2VLForConditionalGeneration"]
        write_checkpoint(root / name, vision, config)
    (root / "empty").mkdir()
    (root / "pickled").mkdir()
    (root / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02")
    cut = write_llama(root / "cut", 18) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    return root


class Case(NamedTuple):
    """A recipe and what is said about it."""

    recipe: str
    errors: tuple[str, ...]
    warnings: tuple[str, ...] = ()  # what the recipe's method alone makes doubtful


def linear(tail: str = "") -> str:
    """A soup of a and b that is right on lines 1 to 6, with `tail` from line 7 on."""
    return f"""\
merge_method: linear
models:
  - model: {{a}}
    parameters: {{weight: 1}}
  - model: {{b}}
    parameters: {{weight: 1}}
{tail}"""


def slices(method: str, *ranges: str, tail: str = "") -> str:
    """One slice of a, b, c on lines 3 to 5 or fewer, a line for each range."""
    lines = [f"merge_method: {method}", "slices: [{sources: ["]
    lines += [
        f"  {{model: {{{name}}}, layer_range: {layers}}},"
        for name, layers in zip("abc", ranges, strict=False)
    ]
    return "\n".join([*lines, "]}]", tail])


NO_WEIGHT = "'linear' needs 'weight'; set it under parameters here, or of the recipe"
TWO_NUMBERS = "expected two layer numbers [first, end], found"
TOP_KEYS = (
    "known: merge_method, models, slices, modules, base_model, parameters, wrap, only, except, "
    "otherwise, allow_conflicts, dtype, out_dtype, cast, "
    "tokenizer_source, tokenizer, chat_template, name"
)
INDENT = "; parameters of the method belong under 'parameters:'"
DTYPES = "known: float64, float32, float16, bfloat16"
CANNOT = "is not a supported dtype"

CASES = {
    # Keys
    "key_at_the_top": Case(
        linear("tokenzer_source: base\nbasemodel: {a}\n"),
        (
            "x.yml:7: tokenzer_source: unknown key; did you mean 'tokenizer_source'?",
            "x.yml:8: basemodel: unknown key; did you mean 'base_model'?",
        ),
    ),
    "number_at_the_top": Case(
        linear("t: 0.5\n"),
        (f"x.yml:7: t: unknown key; {TOP_KEYS}{INDENT}",),
    ),
    "number_beside_its_model": Case(
        """\
merge_method: linear
models:
  - model: {a}
    weight: 0.5
  - model: {b}
    parameters:
    weight: [0.5, 1]
""",
        (
            f"x.yml:4: models[0].weight: unknown key; known: model, parameters, map{INDENT}",
            f"x.yml:7: models[1].weight: unknown key; known: model, parameters, map{INDENT}",
        ),
    ),
    "keys_in_slices_and_sources": Case(
        """\
merge_method: linear
slices:
  - source: []
    sources:
      - model: {a}
        layer_range: [0, 2]
        layers_range: [0, 2]
        parameter: {weight: 1}
    base: {a}
""",
        (
            "x.yml:3: slices[0].source: unknown key; did you mean 'sources'?",
            "x.yml:7: slices[0].sources[0].layers_range: unknown key; did you mean 'layer_range'?",
            "x.yml:8: slices[0].sources[0].parameter: unknown key; did you mean 'parameters'?",
            "x.yml:9: slices[0].base: unknown key; "
            "known: sources, base_model, parameters, residual_weight",
        ),
    ),
    "keys_in_modules": Case(
        """\
merge_method: linear
modules:
  default:
    model: {a}
    models:
      - model: {a}
        parameters: {weight: 1}
    base_model: {a}
""",
        (
            "x.yml:4: modules.default.model: unknown key; did you mean 'models'?",
            "x.yml:8: modules.default.base_model: unknown key; it belongs at the top of the recipe",
        ),
    ),
    "keys_that_belong_elsewhere": Case(
        """\
merge_method: linear
models:
  - model: {a}
    layer_range: [0, 2]
    dtype: float16
    parameters: {weight: 1}
  - model: {b}
    parameters: {weight: 1}
residual_weight: 0.5
""",
        (
            "x.yml:4: models[0].layer_range: unknown key; it belongs under slices[].sources[]",
            "x.yml:5: models[0].dtype: unknown key; it belongs at the top of the recipe",
            "x.yml:9: residual_weight: unknown key; it belongs under slices[]",
        ),
    ),
    "keys_in_settings_and_references": Case(
        """\
merge_method: linear
models:
  - model: {model: {a}, lorra: x}
    parameters: {weight: {filter: mlp, valeu: 1}}
""",
        (
            "x.yml:3: models[0].model: 'lorra' is not a key of a model reference; "
            "did you mean 'lora'?",
            "x.yml:4: models[0].parameters.weight: 'valeu' is not a key of a conditional value; "
            "did you mean 'value'?",
        ),
    ),
    "misspelt_parameters": Case(
        """\
merge_method: task_arithmetic
base_model: {base}
models:
  - model: {a}
    parameters: {weigth: 1, densty: 0.5, weight: 1}
  - model: {b}
    parameters: {weight: 1}
parameters:
  normalise: true
  temperature: 1
""",
        (
            "x.yml:5: models[0].parameters.weigth: not a parameter of 'task_arithmetic'; "
            "did you mean 'weight'?",
            "x.yml:5: models[0].parameters.densty: not a parameter of 'task_arithmetic'; "
            "did you mean 'density'?",
            "x.yml:9: parameters.normalise: not a parameter of 'task_arithmetic'; "
            "did you mean 'normalize'?",
            "x.yml:10: parameters.temperature: not a parameter of 'task_arithmetic'; "
            "known: weight, lambda, normalize",
        ),
    ),
    "repeated_key": Case(
        linear("dtype: float16\nmerge_method: slerp\n"),
        ("x.yml:8: merge_method: duplicate key; the first is on line 1",),
    ),
    "nothing_but_problems_of_keys": Case(
        "models:\n  - model: {a}\n",
        ("x.yml:1: the key 'merge_method' is missing",),
    ),
    "experts_of_a_mixture": Case(
        """\
base_model: {a}
gate_mode: hidden
experts:
  - source_model: {b}
    positive_prompts: [hello]
""",
        (
            "x.yml:2: gate_mode: belongs to a mixture-of-experts recipe, not to a merge recipe",
            "x.yml:3: experts: belongs to a mixture-of-experts recipe, not to a merge recipe",
        ),
    ),
    # The text
    "several_documents": Case(
        linear("---\n" + linear()),
        ("x.yml:8: a second document starts here; a recipe is a single document",),
    ),
    "not_yaml": Case(
        "merge_method: linear\nmodels: [{model: {a}\n",
        ("x.yml:3: not valid YAML: expected ',' or '}', but got '<stream end>'",),
    ),
    "a_list_of_models": Case(
        "- model: {a}\n- model: {b}\n",
        ("x.yml:1: expected a map of keys, found a list or a string",),
    ),
    # Types
    "wrong_kinds_of_values": Case(
        """\
merge_method: 5
models: {model: x}
parameters: [1]
dtype: 16
base_model: [x]
""",
        (
            "x.yml:1: merge_method: expected a string, found 5",
            "x.yml:2: models: expected a list, found {'model': 'x'}",
            "x.yml:3: parameters: expected a map, found [1]",
            "x.yml:4: dtype: expected the name of a dtype, found 16",
            "x.yml:5: base_model: expected a model path, found ['x']",
        ),
    ),
    "models_as_words": Case(
        "merge_method: linear\nmodels:\n  - org/name\n  - 5\n",
        (
            "x.yml:3: models[0]: expected a map, found 'org/name'",
            "x.yml:4: models[1]: expected a map, found 5",
        ),
    ),
    "no_model_and_no_number": Case(
        """\
merge_method: linear
models:
  - parameters: {weight: 1}
  - {}
slices:
  - sources: [{model: {a}, layer_range: [0, 2]}]
    residual_weight: x
""",
        (
            "x.yml:3: models[0]: the key 'model' is missing",
            "x.yml:4: models[1]: the key 'model' is missing",
            "x.yml:7: slices[0].residual_weight: expected a number, found 'x'",
        ),
    ),
    "null_weights": Case(
        """\
merge_method: linear
models:
  - model: {a}
    parameters:
      weight:
  - model: {b}
    parameters:
      weight: [1, ~]
parameters:
  weight: [{value: null}]
""",
        (
            "x.yml:5: models[0].parameters.weight: expected a number, found nothing (null)",
            "x.yml:8: models[1].parameters.weight: expected a number, found nothing (null)",
            "x.yml:10: parameters.weight: expected a number, found nothing (null)",
        ),
    ),
    "words_for_numbers": Case(
        """\
merge_method: linear
models:
  - model: {a}
    parameters: {weight: high}
  - model: {b}
    parameters: {weight: [0.5, "0,7"]}
parameters: {normalize: 0.5}
""",
        (
            "x.yml:4: models[0].parameters.weight: expected a number, found 'high'",
            "x.yml:6: models[1].parameters.weight: expected a number, found '0,7'",
            "x.yml:7: parameters.normalize: expected true or false, found 0.5",
        ),
    ),
    "numbers_that_are_not_finite": Case(
        """\
merge_method: linear
models:
  - {model: {a}, parameters: {weight: .nan}}
  - {model: {b}, parameters: {weight: -.inf}}
""",
        (
            "x.yml:3: models[0].parameters.weight: expected a finite number, found nan",
            "x.yml:4: models[1].parameters.weight: expected a finite number, found -inf",
        ),
    ),
    "mixed_and_nested_settings": Case(
        """\
merge_method: slerp
base_model: {a}
models: [{model: {a}}, {model: {b}}]
parameters:
  t:
    - {filter: mlp, value: 0.5}
    - 0.3
  weight: [[1, 2]]
""",
        (
            "x.yml:5: parameters.t: a list of {value, filter} maps cannot also hold plain numbers",
            "x.yml:8: parameters.weight: expected a number, found [1, 2]",
        ),
    ),
    "bad_dtypes": Case(
        linear("dtype: bf17\nout_dtype: int64\n"),
        (
            f"x.yml:7: dtype: 'bf17' {CANNOT}; {DTYPES}",
            f"x.yml:8: out_dtype: 'int64' {CANNOT}; {DTYPES}",
        ),
    ),
    "nearly_a_dtype": Case(
        linear("dtype: bflaot16\nout_dtype: torch.float 32\n"),
        (
            f"x.yml:7: dtype: 'bflaot16' {CANNOT}; did you mean 'bfloat16'?",
            f"x.yml:8: out_dtype: 'torch.float 32' {CANNOT}; did you mean 'float32'?",
        ),
    ),
    # What is merged
    "models_and_slices": Case(
        linear("slices: [{sources: [{model: {a}, layer_range: [0, 2]}]}]\n"),
        (
            "x.yml:7: slices: expected exactly one of models, slices and modules, "
            "found models and slices",
        ),
    ),
    "none_of_them": Case(
        "# empty\nmerge_method: linear\nmodels: []\nslices:\n",
        ("x.yml:2: expected exactly one of models, slices and modules, found none",),
    ),
    "a_module_of_both": Case(
        """\
merge_method: linear
modules:
  default:
    models: [{model: {a}}]
    slices: [{sources: [{model: {a}, layer_range: [0, 2]}]}]
  other: {}
""",
        (
            "x.yml:3: modules.default: expected exactly one of models and slices",
            "x.yml:6: modules.other: expected exactly one of models and slices",
        ),
    ),
    "unknown_module": Case(
        """\
merge_method: linear
modules:
  text_decodr: {models: [{model: {vis1}, parameters: {weight: 1}}]}
  audio: {models: [{model: {vis1}, parameters: {weight: 1}}]}
""",
        (
            "x.yml:3: modules.text_decodr: not a module of vis1; did you mean 'text_decoder'?",
            "x.yml:4: modules.audio: not a module of vis1; "
            "known: text_decoder, multi_modal_projector, vision_tower",
        ),
    ),
    "slices_of_a_model_with_two_stacks": Case(
        """\
merge_method: passthrough
slices:
  - sources: [{model: {vis1}, layer_range: [0, 2]}]
""",
        (
            "x.yml:2: slices: vis1 has several stacks of layers; put slices under 'modules:' "
            "(text_decoder, multi_modal_projector, vision_tower)",
        ),
    ),
    # Layer ranges
    "no_layer_range": Case(
        """\
merge_method: passthrough
slices:
  - sources:
      - model: {a}
  - sources:
      - layer_range: [0, 2]
""",
        (
            "x.yml:4: slices[0].sources[0]: the key 'layer_range' is missing",
            "x.yml:6: slices[1].sources[0]: the key 'model' is missing",
        ),
    ),
    "no_sources": Case(
        "merge_method: passthrough\nslices:\n  - sources: []\n  - parameters: {}\n  - sources:\n",
        (
            "x.yml:3: slices[0].sources: needs at least one source",
            "x.yml:4: slices[1]: the key 'sources' is missing",
            "x.yml:5: slices[2].sources: expected a list, found None",
        ),
    ),
    "layer_ranges_that_are_none": Case(
        slices("linear", "[0, 1, 2]", "[0, 1.5]", "2", tail="parameters: {weight: 1}"),
        (
            f"x.yml:3: slices[0].sources[0].layer_range: {TWO_NUMBERS} [0, 1, 2]",
            f"x.yml:4: slices[0].sources[1].layer_range: {TWO_NUMBERS} [0, 1.5]",
            f"x.yml:5: slices[0].sources[2].layer_range: {TWO_NUMBERS} 2",
        ),
    ),
    "layer_ranges_of_other_values": Case(
        slices("linear", "[no, 1]", "[0, .inf]", "[~, end]"),
        (
            f"x.yml:3: slices[0].sources[0].layer_range: {TWO_NUMBERS} [False, 1]",
            f"x.yml:3: slices[0].sources[0]: {NO_WEIGHT}",
            f"x.yml:4: slices[0].sources[1].layer_range: {TWO_NUMBERS} [0, inf]",
            f"x.yml:4: slices[0].sources[1]: {NO_WEIGHT}",
            f"x.yml:5: slices[0].sources[2].layer_range: {TWO_NUMBERS} [None, 'end']",
            f"x.yml:5: slices[0].sources[2]: {NO_WEIGHT}",
        ),
    ),
    "layer_range_not_a_number": Case(
        slices("linear", "[0, .nan]"),
        (
            f"x.yml:3: slices[0].sources[0].layer_range: {TWO_NUMBERS} [0, nan]",
            f"x.yml:3: slices[0].sources[0]: {NO_WEIGHT}",
        ),
    ),
    "layers_beyond_the_last": Case(
        slices("linear", "[1, 3]", "[0, 2]", tail="parameters: {weight: 1}"),
        ("x.yml:3: slices[0].sources[0].layer_range: a has 2 layers, so no layer 2",),
    ),
    "layer_ranges_that_are_reversed": Case(
        slices("linear", "[2, 0]", "[1, 1]", "[-1, 1]", tail="parameters: {weight: 1}"),
        (
            "x.yml:2: slices[0]: all sources of a slice need equally many layers, "
            "found [2, 0], [1, 1], [-1, 1]",
            "x.yml:3: slices[0].sources[0].layer_range: expected 0 <= first < end, found [2, 0]",
            "x.yml:4: slices[0].sources[1].layer_range: expected 0 <= first < end, found [1, 1]",
            "x.yml:5: slices[0].sources[2].layer_range: expected 0 <= first < end, found [-1, 1]",
        ),
    ),
    "layer_ranges_of_unequal_length": Case(
        slices("linear", "[0, 2]", "[0, 1]", tail="parameters: {weight: 1}"),
        (
            "x.yml:2: slices[0]: all sources of a slice need equally many layers, "
            "found [0, 2], [0, 1]",
        ),
    ),
    # Methods and their models
    "nearly_a_method": Case(
        "merge_method: slrp\nmodels: [{model: {a}}, {model: {b}}]\n",
        ("x.yml:1: merge_method: 'slrp' is not a merge method; did you mean 'slerp'?",),
    ),
    "no_method_at_all": Case(
        "merge_method: averaging\nmodels: [{model: {a}}, {model: {nowhere}}]\n",
        (
            "x.yml:1: merge_method: 'averaging' is not a merge method; "
            f"known: {', '.join(sorted(REGISTRY))}",
            "x.yml:2: models[1].model: 'nowhere' is not a folder",
        ),
    ),
    "slerp_of_three": Case(
        """\
merge_method: slerp
base_model: {a}
models:
  - model: {a}
  - model: {b}
  - model: {c}
parameters: {t: 0.5}
""",
        ("x.yml:3: models: 'slerp' merges exactly 1 model besides the base; found 2",),
    ),
    "slerp_of_the_base_alone": Case(
        slices("slerp", "[0, 2]", tail="base_model: {a}\nparameters: {t: 0.5}"),
        ("x.yml:2: slices[0]: 'slerp' merges exactly 1 model besides the base; found 0",),
    ),
    "slerp_without_a_base": Case(
        "models: [{model: {a}}, {model: {b}}]\nmerge_method: slerp\nparameters: {t: 0.5}\n",
        ("x.yml:1: 'slerp' needs a base_model; add 'base_model: PATH'",),
    ),
    "base_that_is_not_in_the_slice": Case(
        """\
merge_method: task_arithmetic
base_model: {base}
slices:
  - sources:
      - {model: {a}, layer_range: [0, 1], parameters: {weight: 1}}
      - {model: {base}, layer_range: [0, 1]}
  - sources:
      - {model: {a}, layer_range: [1, 2], parameters: {weight: 1}}
""",
        (
            "x.yml:7: slices[1]: the base model 'base' is not among the sources of this slice; "
            "list it there",
        ),
    ),
    "base_spelt_in_another_way": Case(
        slices("slerp", "[0, 2]", "[0, 2]", tail="base_model: {a}/\nparameters: {t: 0.5}"),
        (
            "x.yml:2: slices[0]: the base model 'a/' is not among the sources of this slice; "
            "list it there",
        ),
    ),
    "passthrough_of_two": Case(
        slices("passthrough", "[0, 2]", "[0, 2]"),
        ("x.yml:2: slices[0]: 'passthrough' merges exactly 1 model; found 2",),
    ),
    "passthrough_with_a_base_beside_the_model": Case(
        "merge_method: passthrough\nbase_model: {base}\nmodels:\n  - model: {a}\n",
        (
            "x.yml:3: models: 'passthrough' merges exactly 1 model; "
            "found 2, counting base_model 'base'",
        ),
    ),
    # Numbers
    "t_under_a_model": Case(
        """\
merge_method: slerp
base_model: {a}
models:
  - model: {a}
  - model: {b}
    parameters:
      t: 0.5
""",
        (
            "x.yml:1: 'slerp' needs 't' for model.embed_tokens.weight and 20 more tensors; "
            "set it under parameters of the recipe",
        ),
        warnings=(
            "x.yml:7: models[1].parameters.t: has no effect here: 't' is one number for all "
            "models; move it to 'parameters:' of the recipe",
        ),
    ),
    "t_under_a_source": Case(
        """\
merge_method: slerp
base_model: {a}
slices:
  - sources:
      - {model: {a}, layer_range: [0, 1]}
      - {model: {b}, layer_range: [1, 2], parameters: {t: 0.5}}
""",
        (
            "x.yml:1: 'slerp' needs 't' for model.embed_tokens.weight and 11 more tensors; "
            "set it under parameters of the recipe",
        ),
        warnings=(
            "x.yml:6: slices[0].sources[1].parameters.t: has no effect here: 't' is one number "
            "for all models; move it to 'parameters:' of the slice",
        ),
    ),
    "no_weight": Case(
        """\
merge_method: task_arithmetic
base_model: {base}
models:
  - model: {a}
    parameters:
      weight:
        - {filter: mlp, value: 0.5}
        - {filter: model.norm, value: 0.5}
  - model: {b}
""",
        (
            "x.yml:4: models[0]: 'task_arithmetic' needs 'weight' for model.embed_tokens.weight "
            "and 13 more tensors; set it under parameters here, or of the recipe",
            "x.yml:9: models[1]: 'task_arithmetic' needs 'weight' for model.embed_tokens.weight "
            "and 20 more tensors; set it under parameters here, or of the recipe",
        ),
    ),
    "no_weight_for_a_base_that_joins": Case(
        linear("base_model: {base}\n"),
        (
            "x.yml:7: base_model: 'linear' needs 'weight' for model.embed_tokens.weight "
            "and 20 more tensors; set it under parameters here, or of the recipe",
        ),
    ),
    "numbers_out_of_their_range": Case(
        """\
merge_method: ties
base_model: {base}
models:
  - model: {a}
    parameters: {weight: 1, density: 50}
  - model: {b}
    parameters: {weight: -1, density: [0.5, -1]}
  - model: {c}
    parameters: {weight: 1, density: [{filter: nothing_is_called_so, value: 1.5}, {value: 1}]}
parameters: {density: 2}
""",
        (
            "x.yml:5: models[0].parameters.density: expected a number from 0 to 1, found 50",
            "x.yml:7: models[1].parameters.density: expected a number from 0 to 1, found -1",
            "x.yml:9: models[2].parameters.density: expected a number from 0 to 1, found 1.5",
            "x.yml:10: parameters.density: expected a number from 0 to 1, found 2",
        ),
    ),
    # Everything at once: numbers, what is missing, models that do not fit
    "numbers_and_models": Case(
        """\
merge_method: ties
base_model: {base}
models:
  - model: {a}
    parameters: {weight: 1, density: 50}
  - model: {wide}
  - model: {b}
    parameters: {weight: .nan, densty: 1}
""",
        (
            "x.yml:5: models[0].parameters.density: expected a number from 0 to 1, found 50",
            "x.yml:6: models[1].model: model.embed_tokens.weight is [16, 16] in wide and [16, 8] in "
            "base (21 tensors differ): models of different sizes cannot be merged",
            "x.yml:6: models[1]: 'ties' needs 'weight' for model.embed_tokens.weight and 20 more "
            "tensors; set it under parameters here, or of the recipe",
            "x.yml:8: models[2].parameters.weight: expected a finite number, found nan",
            "x.yml:8: models[2].parameters.densty: not a parameter of 'ties'; "
            "did you mean 'density'?",
        ),
    ),
    "keys_numbers_and_models": Case(
        """\
merge_method: ties
base_modell: {base}
base_model: {base}
models:
  - model: {a}
    parameters: {density: 50}
  - parameters: {weight: 1, density: 3}
  - org/name
  - model: {nowhere}
  - model: {b}
    parameters: {wieght: 1}
  - model: {c}
    parameter: {weight: 1}
dtype: float17
""",
        (
            "x.yml:2: base_modell: unknown key; did you mean 'base_model'?",
            "x.yml:5: models[0]: 'ties' needs 'weight'; set it under parameters here, or of the recipe",
            "x.yml:6: models[0].parameters.density: expected a number from 0 to 1, found 50",
            "x.yml:7: models[1]: the key 'model' is missing",
            "x.yml:7: models[1].parameters.density: expected a number from 0 to 1, found 3",
            "x.yml:8: models[2]: expected a map, found 'org/name'",
            "x.yml:9: models[3].model: 'nowhere' is not a folder",
            "x.yml:9: models[3]: 'ties' needs 'weight'; set it under parameters here, or of the recipe",
            "x.yml:11: models[4].parameters.wieght: not a parameter of 'ties'; "
            "did you mean 'weight'?",
            "x.yml:13: models[5].parameter: unknown key; did you mean 'parameters'?",
            f"x.yml:14: dtype: 'float17' {CANNOT}; did you mean 'float16'?",
        ),
    ),
    "weights_that_sum_to_zero": Case(
        """\
merge_method: linear
models:
  - model: {a}
    parameters: {weight: [1, 0.5]}
  - model: {b}
    parameters: {weight: [1, -0.5]}
""",
        (
            "x.yml:2: models: the weights sum to zero, so they have no mean; "
            "set normalize: false or other weights",
        ),
    ),
    "weights_that_sum_to_zero_in_a_slice": Case(
        slices("linear", "[0, 2]", "[0, 2]", tail="parameters: {weight: 0}"),
        (
            "x.yml:2: slices[0]: the weights sum to zero, so they have no mean; "
            "set normalize: false or other weights",
        ),
    ),
    # Models
    "no_such_folder": Case(
        """\
merge_method: linear
base_model: {vocab2}
models:
  - model: {nowhere}
    parameters: {weight: 1}
  - model: {bass}
    parameters: {weight: 1}
""",
        (
            "x.yml:2: base_model: 'vocab2' is not a folder; did you mean 'vocab20'?",
            f"x.yml:2: base_model: {NO_WEIGHT}",
            "x.yml:4: models[0].model: 'nowhere' is not a folder",
            "x.yml:6: models[1].model: 'bass' is not a folder; did you mean 'base'?",
        ),
    ),
    "names_of_the_hub": Case(
        """\
merge_method: linear
models:
  - model: mistralai/Mistral-7B-v0.1
    parameters: {weight: 1}
  - model: ~no-such-user-here/model
    parameters: {weight: 1}
  - model: gpt2
    parameters: {weight: 1}
""",
        (
            "x.yml:3: models[0].model: 'mistralai/Mistral-7B-v0.1' is neither a folder nor in the cache "
            f"{os.environ['HF_HUB_CACHE']}; HF_HUB_OFFLINE is set, so the Hub was not asked",
            "x.yml:5: models[1].model: '~no-such-user-here/model' is not a folder",
            "x.yml:7: models[2].model: 'gpt2' is not a folder in .",
        ),
    ),
    "files_and_names_that_cannot_be": Case(
        f"""\
merge_method: linear
parameters: {{weight: 1}}
models:
  - model: {{a}}/config.json
  - model: {"x" * 300}
""",
        (
            "x.yml:4: models[0].model: 'a/config.json' is a file, not a folder; name the folder that "
            "holds it: a",
            f"x.yml:5: models[1].model: '{'x' * 300}' is not a folder in .",
        ),
    ),
    "revisions_of_folders": Case(
        linear().replace("{b}", "{b}@main"),
        (
            "x.yml:5: models[1].model: 'b' has no revision 'main': only models on the Hub have revisions; "
            "write the path alone",
        ),
    ),
    "places_that_are_not_offered": Case(
        linear().replace("{b}", "ftp://host/b"),
        (
            "x.yml:5: models[1].model: 'ftp://host/b' cannot be read: ftp:// is not supported; write the path "
            "of a folder, or hf://, https://, http://, s3://, gs://",
        ),
    ),
    "adapters": Case(
        linear().replace("{b}", "{b}+./adapter"),
        (
            "x.yml:5: models[1].model: 'b+./adapter': adapters cannot be applied yet; "
            "merge './adapter' into it first",
        ),
    ),
    "references_that_are_none": Case(
        """\
merge_method: linear
base_model: ""
models:
  - model: x+y+z
  - model: x@y@z
  - model:
""",
        (
            "x.yml:2: base_model: '' is incomplete; write path or path@revision",
            "x.yml:4: models[0].model: 'x+y+z' has more than one '+'; write one adapter at most",
            "x.yml:5: models[1].model: 'x@y@z' has more than one '@'; write path@revision",
            "x.yml:6: models[2].model: expected a model path, found None",
        ),
    ),
    "folders_without_weights": Case(
        """\
merge_method: linear
parameters: {weight: 1}
models:
  - model: {empty}
  - model: {pickled}
  - model: {cut}
""",
        (
            "x.yml:4: models[0].model: empty: is empty; it should hold model.safetensors, or shards "
            "and model.safetensors.index.json",
            "x.yml:5: models[1].model: pickled: has only pickled weights (pytorch_model.bin); convert "
            "them to safetensors first: load it with torch and write it with "
            "safetensors.torch.save_file",
            "x.yml:6: models[2].model: cut/model.safetensors: its header describes 7072 bytes, "
            "the file has 6972; the download is incomplete; download it again",
        ),
    ),
    "depths_that_differ": Case(
        linear().replace("{b}", "{deep}"),
        (
            "x.yml:2: models: all models need equally many layers, but a has 2, deep has 3; "
            "pick layers with 'slices:'",
        ),
    ),
    "vocabularies_that_differ": Case(
        linear().replace("{b}", "{vocab20}"),
        (
            "x.yml:5: models[1].model: model.embed_tokens.weight is [20, 8] in vocab20 and "
            "[16, 8] in a (2 tensors differ): the vocabularies differ; "
            "add 'tokenizer_source: union' for the tokens of all models, or "
            "'tokenizer_source: base' for those of the base",
        ),
    ),
    "sizes_that_differ": Case(
        linear("base_model: {vocab20}\nparameters: {weight: 1}\n").replace("{b}", "{wide}"),
        (
            "x.yml:3: models[0].model: model.embed_tokens.weight is [16, 8] in a and "
            "[20, 8] in vocab20 (2 tensors differ): the vocabularies differ; "
            "add 'tokenizer_source: union' for the tokens of all models, or "
            "'tokenizer_source: base' for those of the base",
            "x.yml:5: models[1].model: model.embed_tokens.weight is [16, 16] in wide and "
            "[20, 8] in vocab20 (21 tensors differ): models of different sizes cannot be merged",
        ),
    ),
    "hole_in_one_model": Case(
        linear().replace("{a}", "{deep}").replace("{b}", "{hole}"),
        (
            "x.yml:5: models[1].model: hole lacks model.layers.1.mlp.up_proj.weight, "
            "which 2 of its other layers have; the checkpoint is incomplete",
        ),
    ),
    "hole_in_the_only_model": Case(
        """\
merge_method: passthrough
slices:
  - sources: [{model: {deep}, layer_range: [0, 2]}]
  - sources: [{model: {hole}, layer_range: [1, 3]}]
""",
        (
            "x.yml:4: slices[1].sources[0].model: hole lacks model.layers.1.mlp.up_proj.weight, "
            "which 2 of its other layers have; the checkpoint is incomplete",
        ),
    ),
    "base_without_a_tensor": Case(
        """\
merge_method: task_arithmetic
base_model: {base}
models:
  - model: {biased}
    parameters: {weight: 1}
""",
        (
            "x.yml:2: base_model: model.layers.0.self_attn.q_proj.bias and 1 more: not in base; "
            "the base lacks it, so there is nothing to take the change from; leave out what only "
            "some have with 'except: [model.layers.*.self_attn.q_proj.bias]'",
        ),
    ),
    "a_part_that_the_donor_has_not": Case(
        """\
merge_method: linear
models:
  - model: {a}
    parameters: {weight: 1}
  - model: {said}
    parameters: {weight: 1}
""",
        (
            "x.yml:5: models[1].model: model.layers.0.self_attn.q_proj.bias of said is not a tensor "
            "of a (as are 1 more): 'attention_bias' in its config.json turns it on, and the "
            "output's config.json lacks that key; leave it out with "
            "'except: [model.layers.*.self_attn.q_proj.bias]', or list it first, so that the output "
            "has the config.json of said",
        ),
    ),
    "quantised_model": Case(
        linear().replace("{a}", "{gptq}"),
        (
            "x.yml:3: models[0].model: 'gptq': config.json says that its weights are quantised "
            "(gptq); merge the unquantised model (only plain passthrough can copy it)",
        ),
    ),
    "quantised_model_cast": Case(
        "dtype: float16\nmerge_method: passthrough\nmodels:\n  - model: {gptq}\n",
        (
            "x.yml:4: models[0].model: 'gptq': config.json says that its weights are quantised "
            "(gptq); remove dtype and out_dtype to copy its tensors as they are",
        ),
    ),
    "quantised_model_scaled": Case(
        "merge_method: passthrough\nmodels:\n  - model: {gptq}\n    parameters: {scale: 0.5}\n",
        (
            "x.yml:3: models[0].model: 'gptq': config.json says that its weights are quantised "
            "(gptq); merge the unquantised model (only plain passthrough can copy it)",
        ),
    ),
    "float_in_one_integer_in_another": Case(
        linear().replace("{b}", "{whole}"),
        (
            "x.yml:1: model.norm.weight is a float in one model and not in another: "
            "F32 in a, I64 in whole; to take them from one model, write 'except: [model.norm.weight]'",
        ),
    ),
    "integers_of_two_kinds": Case(
        linear().replace("{a}", "{int32}").replace("{b}", "{int64}"),
        (
            "x.yml:1: model.table differs in kind: I32[4] in int32, I64[4] in int64; "
            "to take them from one model, write 'except: [model.table]'",
        ),
    ),
    # Tokens
    "tokenizer_of_both": Case(
        linear("tokenizer_source: union\n"),
        ("x.yml:7: tokenizer_source: 'a' has no tokenizer; add its tokenizer.json to its folder",),
    ),
    "tokenizer_twice": Case(
        linear("tokenizer_source: base\ntokenizer: {source: base}\n"),
        ("x.yml:8: tokenizer: write either tokenizer or tokenizer_source, not both",),
    ),
    "tokenizer_and_a_number": Case(
        linear("tokenizer: {source: base}\nparameters: {normalize: 7}\nchat_template: '{% x'\n"),
        (
            "x.yml:7: tokenizer.source: 'a' has no tokenizer; add its tokenizer.json to its folder",
            "x.yml:8: parameters.normalize: expected true or false, found 7",
            "x.yml:9: chat_template: the chat template (the text in the recipe) does not compile: "
            "line 1: Encountered unknown tag 'x'.",
        ),
    ),
    "chat_template": Case(
        linear("chat_template: '{{ messages'\n"),
        (
            "x.yml:7: chat_template: the chat template (the text in the recipe) does not compile: "
            "line 1: unexpected end of template, expected 'end of print statement'.",
        ),
    ),
    # Everything at once
    "many_problems_in_the_order_of_lines": Case(
        """\
merge_method: slerpp
base_model: {base}
dtype: bf17
models:
  - model: {a}
    parameters:
      weight: 0.5
      weight: 0.6
  - model: {bb}
    paramters: {}
  - model: {c}+x
    parameters:
      weight: ~
chat_template: zephyr
toknizer: {}
""",
        (
            "x.yml:1: merge_method: 'slerpp' is not a merge method; did you mean 'slerp'?",
            f"x.yml:3: dtype: 'bf17' {CANNOT}; {DTYPES}",
            "x.yml:8: models[0].parameters.weight: duplicate key; the first is on line 7",
            "x.yml:9: models[1].model: 'bb' is not a folder; did you mean 'b'?",
            "x.yml:10: models[1].paramters: unknown key; did you mean 'parameters'?",
            "x.yml:11: models[2].model: 'c+x': adapters cannot be applied yet; "
            "merge 'x' into it first",
            "x.yml:13: models[2].parameters.weight: expected a number, found nothing (null)",
            "x.yml:14: chat_template: 'zephyr' is not a chat template: a template contains '{'; "
            "known: auto, alpaca, chatml, exaone, llama3, mistral",
            "x.yml:15: toknizer: unknown key; did you mean 'tokenizer'?",
        ),
    ),
    "problems_of_models_and_of_numbers": Case(
        """\
merge_method: task_arithmetic
models:
  - model: {vocab20}
    parameters: {weight: 1}
  - model: {wide}
    parameters: {weight: much}
base_model: {base}
""",
        (
            "x.yml:3: models[0].model: model.embed_tokens.weight is [20, 8] in vocab20 and "
            "[16, 8] in base (2 tensors differ): the vocabularies differ; "
            "add 'tokenizer_source: union' for the tokens of all models, or "
            "'tokenizer_source: base' for those of the base",
            "x.yml:5: models[1].model: model.embed_tokens.weight is [16, 16] in wide and "
            "[16, 8] in base (21 tensors differ): models of different sizes cannot be merged",
            "x.yml:6: models[1].parameters.weight: expected a number, found 'much'",
        ),
    ),
}


def write_recipe(text: str, models: Path, folder: Path) -> Path:
    """The recipe as a file; `{name}` is a folder beside the models, be it there or not."""
    path = folder / "x.yml"
    path.write_text(re.sub(r"\{(\w+)\}", lambda m: str(models / m[1]), text))
    return path


def shorten(text: str, models: Path, folder: Path) -> str:
    """A message with the file called x.yml and models by their names."""
    text = text.replace(str(folder / "x.yml"), "x.yml").replace(f"{models}/", "")
    return text.replace(f" in {folder}", " in .")


@pytest.mark.parametrize("name", CASES)
def test_messages(name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every problem is told, each once, in the order of the lines, and nothing else."""
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    path = write_recipe(case.recipe, models, tmp_path)
    with pytest.raises(JmergeError) as caught:
        jmerge.plan(path)
    found = tuple(shorten(problem.text, models, tmp_path) for problem in caught.value.problems)
    assert found == case.errors
    lines = [problem.line for problem in caught.value.problems]
    assert lines == sorted(lines)
    assert {problem.file for problem in caught.value.problems} == {str(path)}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.warnings])
def test_warnings(name: str, models: Path, tmp_path: Path) -> None:
    """What has no effect is known before any model is opened."""
    case = CASES[name]
    recipe = Recipe.from_file(write_recipe(case.recipe, models, tmp_path))
    errors, warnings = split(recipe, check_recipe(recipe).problems)
    found = tuple(shorten(warning.text, models, tmp_path) for warning in warnings)
    assert (found, errors) == (case.warnings, [])


def test_densities_that_keep_nothing(models: Path, tmp_path: Path) -> None:
    """0 makes a model vanish: said, unless it is one value of several."""
    text = """\
merge_method: ties
base_model: {base}
models:
  - {model: {a}, parameters: {weight: 1, density: 0}}
  - {model: {b}, parameters: {weight: 1, density: [0, 0.5]}}
parameters: {density: 0}
"""
    recipe = Recipe.from_file(write_recipe(text, models, tmp_path))
    errors, warnings = split(recipe, check_recipe(recipe).problems)
    found = sorted(shorten(warning.text, models, tmp_path) for warning in warnings)
    assert [line.split("; ")[0] for line in found] == [
        "x.yml:4: models[0].parameters.density: 0 keeps no change of this model",
        "x.yml:6: parameters.density: 0 keeps no change of any model",
    ]
    assert not errors


# The command line


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every way to the data of a weight file fail."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(np, "memmap", refuse)
    monkeypatch.setattr(np, "fromfile", refuse)
    monkeypatch.setattr(Files, "read", refuse)
    monkeypatch.setattr("os.preadv", refuse, raising=False)


def listing(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Every file and folder inside, with its size and time of change."""
    found = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_the_guard_works(models: Path, tmp_path: Path, no_weights: None) -> None:
    """A merge that does read weights fails under the guard of the tests below."""
    path = write_recipe(linear(), models, tmp_path)
    with pytest.raises(AssertionError, match="a weight was read"):
        main([str(path), str(tmp_path / "out"), "--quiet"])


@pytest.mark.parametrize("name", CASES)
def test_command_line(
    name: str,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_weights: None,
) -> None:
    """Exit code 2, a line for each problem, their number; no weight is read, no file touched.

    What has no effect is told as well: it is often why something else is missing.
    """
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    write_recipe(case.recipe, models, tmp_path)
    before = listing(tmp_path, models)
    assert main(["x.yml", "out"]) == 2
    assert listing(tmp_path, models) == before
    out, err = capsys.readouterr()
    count = len(case.errors)
    wanted = [f"warning: {warning}" for warning in case.warnings]
    wanted += [f"error: {error}" for error in case.errors]
    wanted += [f"{count} errors; nothing was written"] if count > 1 else []
    lines = uncoded(shorten(err, models, tmp_path)).splitlines()
    assert sorted(lines) == sorted(wanted)
    assert [line for line in lines if line.startswith("error: ")] == [
        f"error: {error}" for error in case.errors
    ]
    assert out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "x.yml"],
        ["plan", "x.yml", "--json"],
        ["plan", "--config", "x.yml", "--quiet"],
        ["--config", "x.yml", "--out", "out"],
        ["--out=out", "--config=x.yml", "--overwrite", "--quiet"],
    ],
    ids=" ".join,
)
def test_every_command_says_the_same(
    arguments: list[str],
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_weights: None,
) -> None:
    """Planning and merging refuse a recipe in the same words, even with --quiet."""
    case = CASES["many_problems_in_the_order_of_lines"]
    monkeypatch.chdir(tmp_path)
    write_recipe(case.recipe, models, tmp_path)
    before = listing(tmp_path, models)
    assert main(arguments) == 2
    assert listing(tmp_path, models) == before
    out, err = capsys.readouterr()
    wanted = [*(f"error: {error}" for error in case.errors), "9 errors; nothing was written"]
    assert uncoded(shorten(err, models, tmp_path)).splitlines() == wanted
    assert out == ""


def test_a_result_that_is_there_stays(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe broken after a good run costs nothing of what was made, even with --overwrite."""
    out = tmp_path / "out"
    assert main([str(write_recipe(linear(), models, tmp_path)), str(out), "--quiet"]) == 0
    before = listing(out)
    path = write_recipe(linear("dtype: bf17\n"), models, tmp_path)
    assert main([str(path), str(out), "--overwrite"]) == 2
    assert listing(out) == before
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"
