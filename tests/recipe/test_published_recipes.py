"""Recipes as people publish them for MergeKit, run unmodified: what is merged, by which numbers.

Every case is a recipe text in which `{a}` stands for the folder of the tiny model `a`, and what its
plan must be: how many tensors of which dtype, the sources and numbers of some of them worked out by
hand, every warning, and every change of config.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers import models as models_of_tokens

import jmerge
from jmerge.ckpt.open import open_checkpoint
from jmerge.plan.inputs import Read
from jmerge.plan.steps import COPY, Plan, Step
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama

# The models


def vision_tensors(seed: int) -> dict[str, np.ndarray]:
    """A Llama of 3 layers with a vision tower of 2 and a projector between them."""
    rng = np.random.default_rng(seed)
    tensors = llama_tensors(seed, layers=3)
    for i in range(2):
        for part in ("norm1.weight", "attn.qkv.weight", "mlp.fc1.weight"):
            tensors[f"visual.blocks.{i}.{part}"] = rng.standard_normal(6).astype(np.float32)
    tensors["visual.patch_embed.proj.weight"] = rng.standard_normal((6, 3)).astype(np.float32)
    tensors["visual.merger.mlp.0.weight"] = rng.standard_normal((8, 6)).astype(np.float32)
    return tensors


VISION_CONFIG = llama_config(layers=3) | {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "model_type": "qwen2_vl",
    "vision_config": {"depth": 2, "embed_dim": 6},
}


def nested_tensors() -> dict[str, np.ndarray]:
    """A text decoder of 4 layers whose config is nested, a vision tower of 2, and a projector."""
    names = ["language_model.model.embed_tokens.weight", "language_model.model.norm.weight"]
    for i in range(4):
        names.append(f"language_model.model.layers.{i}.input_layernorm.weight")
        names.append(f"language_model.model.layers.{i}.mlp.up_proj.weight")
    names += [f"vision_tower.vision_model.encoder.layers.{i}.norm.weight" for i in range(2)]
    names.append("multi_modal_projector.mm_input_projection_weight")
    rng = np.random.default_rng(90)
    return {name: rng.standard_normal((16, 8)).astype(np.float32) for name in names}


NESTED_CONFIG = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "torch_dtype": "float32",
    "text_config": {
        "num_hidden_layers": 4,
        "vocab_size": 16,
        "layer_types": ["sliding", "sliding", "sliding", "full"],
    },
    "vision_config": {"num_hidden_layers": 2},
}


def t5_tensors(seed: int) -> dict[str, np.ndarray]:
    """An encoder of 3 layers and a decoder of 2 around a shared embedding."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (16, 8), "lm_head.weight": (16, 8)}
    for side, depth in (("encoder", 3), ("decoder", 2)):
        for i in range(depth):
            shapes[f"{side}.block.{i}.layer.0.SelfAttention.q.weight"] = (8, 8)
            shapes[f"{side}.block.{i}.layer.0.layer_norm.weight"] = (8,)
            shapes[f"{side}.block.{i}.layer.1.DenseReluDense.wi.weight"] = (12, 8)
        shapes[f"{side}.final_layer_norm.weight"] = (8,)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


T5_CONFIG = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "d_model": 8,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "vocab_size": 16,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds every model by its name."""
    root = tmp_path_factory.mktemp("published")
    for seed, name in enumerate(("a", "b", "c", "base")):  # 48 tensors each
        write_llama(root / name, seed, layers=5)
    for seed, name in enumerate(("p", "q")):  # 111 tensors each
        write_llama(root / name, 10 + seed, layers=12)
    write_llama(root / "s", 20, layers=2)
    write_llama(root / "tied1", 21, layers=3, tied=True)
    write_llama(root / "tied2", 22, layers=3, tied=True)
    write_llama(root / "untied", 23, layers=3)
    half = {
        name: array.astype(ml_dtypes.bfloat16)
        for name, array in llama_tensors(24, layers=5).items()
    }
    write_checkpoint(root / "half", half, llama_config(layers=5) | {"torch_dtype": "bfloat16"})
    biased = llama_tensors(25, layers=5)
    biased |= {
        f"model.layers.{i}.self_attn.q_proj.bias": np.full(8, i + 1, np.float32) for i in range(5)
    }
    write_checkpoint(root / "biased", biased, llama_config(layers=5) | {"attention_bias": True})
    old = llama_tensors(26, layers=5)
    old |= {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32) for i in range(5)
    }
    write_checkpoint(root / "old", old, llama_config(layers=5))
    for seed, (name, order) in enumerate({"slide": "sffs", "full": "ffff"}.items()):
        kinds = [{"s": "sliding_attention", "f": "full_attention"}[letter] for letter in order]
        write_checkpoint(
            root / name,
            llama_tensors(30 + seed, layers=4),
            llama_config(layers=4) | {"layer_types": kinds, "max_window_layers": 3},
        )
    for seed, name in enumerate(("vis1", "vis2")):  # 30 of text, 8 of vision
        write_checkpoint(root / name, vision_tensors(40 + seed), VISION_CONFIG)
    write_checkpoint(root / "nested", nested_tensors(), NESTED_CONFIG)  # 12 of text, 1, 2
    write_llama(root / "text", 42, layers=3)
    for seed, name in enumerate(("t5a", "t5b")):  # 19 tensors each
        write_checkpoint(root / name, t5_tensors(50 + seed), T5_CONFIG)
    for seed, name in enumerate(("counted1", "counted2")):  # 23 tensors each
        counted = llama_tensors(70 + seed, layers=2)
        counted["model.position_ids"] = np.arange(4)[None]
        counted["model.layers.0.attn.bias"] = np.tri(4, dtype=bool)
        write_checkpoint(root / name, counted, llama_config(layers=2))
    quantised = llama_tensors(80, layers=2)
    for i in range(2):
        quantised[at(i, "up")] = quantised[at(i, "up")].astype(ml_dtypes.float8_e4m3fn)
        quantised[f"{at(i, 'up')}_scale_inv"] = np.ones((1, 1), np.float32)
    config = llama_config(layers=2) | {"quantization_config": {"quant_method": "fp8"}}
    write_checkpoint(root / "fp8", quantised, config)
    write_llama(root / "some-org" / "Tiny-7B-Instruct-v0.2", 60, layers=2)
    write_llama(root / "some-org" / "tiny-zephyr-7b", 61, layers=2)
    words = Tokenizer(models_of_tokens.WordLevel({f"w{i}": i for i in range(16)}, unk_token="w0"))
    for place in root.rglob("config.json"):  # the vocabulary that all of them have
        words.save(str(place.with_name("tokenizer.json")))
    return root


# The cases

Wanted = tuple[str, Mapping[str, Any]]  # sources as `show_sources` writes them, numbers


class Case(NamedTuple):
    """A recipe and what its plan must be."""

    recipe: str
    tensors: int
    wanted: dict[str, Wanted]  # by output tensor; no numbers at all: the tensor is copied
    dtype: str = "F32"  # of the output tensors; several with a blank between them
    warnings: tuple[str, ...] = ()
    changes: tuple[tuple[str, Any, Any], ...] = ()  # key of config.json, old, new
    unused: Mapping[str, int] = {}  # model -> how many of its tensors no output is made of


EMBED = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"
TO_HALF = ("torch_dtype", "float32", "float16")
TO_BF16 = ("torch_dtype", "float32", "bfloat16")
PLAIN = {"scale": None}


def at(layer: int, part: str) -> str:
    """The name of a weight of a Llama layer."""
    home = {"q": "self_attn.", "o": "self_attn.", "up": "mlp.", "down": "mlp."}.get(part, "")
    return f"model.layers.{layer}.{home}{part}{'_proj' if home else ''}.weight"


def depth(old: int, new: int) -> tuple[str, int, int]:
    """The change of the layer count."""
    return ("num_hidden_layers", old, new)


def soup(*weight: float, normalize: bool = True) -> dict[str, Any]:
    """The numbers of linear."""
    return {"weight": weight, "normalize": normalize}


def vector(*weight: float, scale: float = 1.0, normalize: bool = False) -> dict[str, Any]:
    """The numbers of task_arithmetic."""
    return {"weight": weight, "lambda": scale, "normalize": normalize}


def turn(t: float) -> dict[str, Any]:
    """The numbers of slerp."""
    return {"t": t}


CASES = {
    # Soups
    "soup_of_two": Case(
        """\
models:
  - model: {a}
    parameters:
      weight: 1.0
  - model: {b}
    parameters:
      weight: 1.0
merge_method: linear
dtype: float16
""",
        48,
        {EMBED: ("a b", soup(1, 1)), at(4, "up"): ("a b", soup(1, 1)), HEAD: ("a b", soup(1, 1))},
        dtype="F16",
        changes=(TO_HALF,),
    ),
    "soup_of_three_with_one_weight_for_all": Case(
        """\
merge_method: linear
parameters:
  weight: 0.3333
models:
  - model: {a}
  - model: {b}
  - model: {c}
""",
        48,
        {at(0, "q"): ("a b c", soup(0.3333, 0.3333, 0.3333))},
    ),
    "soup_with_quoted_numbers_and_words": Case(
        """\
models:
  - model: {a}
    parameters:
      weight: "0.6"
  - model: "{b}"
    parameters:
      weight: '4e-1'
merge_method: linear
parameters:
  normalize: yes
  int8_mask: true
dtype: torch.bfloat16
""",
        48,
        {at(2, "down"): ("a b", soup(0.6, 0.4))},
        dtype="BF16",
        warnings=("x.yml:11: parameters.int8_mask: has no effect with 'linear' [JM019]",),
        changes=(TO_BF16,),
    ),
    "soup_that_is_not_normalised": Case(
        """\
models:
  - model: {a}
    parameters: {weight: 1}
  - model: {b}
    parameters: {weight: 0.5}
  - model: {c}
    parameters: {weight: -0.5}
merge_method: linear
parameters: {normalize: off}
dtype: float32
""",
        48,
        {at(1, "o"): ("a b c", soup(1, 0.5, -0.5, normalize=False))},
    ),
    "soup_with_its_base_among_the_models": Case(
        """\
base_model: {a}
models:
  - model: {b}
    parameters:
      weight: 0.3
  - model: {a}
    parameters:
      weight: 0.7
merge_method: linear
""",
        48,
        {EMBED: ("b a", soup(0.3, 0.7)), at(3, "q"): ("b a", soup(0.3, 0.7))},
    ),
    "soup_whose_base_is_not_listed": Case(
        """\
merge_method: linear
base_model: {base}
models:
  - model: {a}
    parameters:
      weight: 0.25
  - model: {b}
    parameters:
      weight: 0.25
parameters:
  weight: 0.5
""",
        48,
        {NORM: ("a b base", soup(0.25, 0.25, 0.5))},
    ),
    "soup_with_a_gradient_for_each_model": Case(
        """\
merge_method: linear
models:
  - model: {a}
    parameters:
      weight: [0, 0.2, 1]
  - model: {b}
    parameters:
      weight: ["1", 0.8, 0]
dtype: float32
out_dtype: bfloat16
""",
        48,
        {
            EMBED: ("a b", soup(0, 1)),
            at(0, "up"): ("a b", soup(0, 1)),
            at(1, "up"): ("a b", soup(0.1, 0.9)),
            at(2, "up"): ("a b", soup(0.2, 0.8)),
            at(3, "up"): ("a b", soup(0.6, 0.4)),
            at(4, "up"): ("a b", soup(1, 0)),
            HEAD: ("a b", soup(0, 1)),  # after the layers the sweep begins anew
        },
        dtype="BF16",
        changes=(TO_BF16,),
    ),
    "soup_with_filters_in_order": Case(
        """\
merge_method: linear
models:
  - model: {a}
    parameters:
      weight:
        - filter: self_attn
          value: 1
        - filter: q_proj      # never reached
          value: 9
        - filter: mlp
          value: [0.5, 0.9]
        - value: 0.5
  - model: {b}
    parameters:
      weight:
        - filter: "*"
          value: 0.25
        - filter: mlp
          value: 9
""",
        48,
        {
            at(2, "q"): ("a b", soup(1, 0.25)),
            at(2, "up"): ("a b", soup(0.7, 0.25)),
            at(2, "input_layernorm"): ("a b", soup(0.5, 0.25)),
        },
    ),
    "soup_of_one_model_twice": Case(
        """\
models:
  - model: {a}
    parameters:
      weight: 0.5
  - model: {b}
    parameters:
      weight: 0.3
  - model: {a}
    parameters:
      weight: 0.2
merge_method: linear
""",
        48,
        {at(0, "up"): ("a b a", soup(0.5, 0.3, 0.2))},
        warnings=(
            "x.yml:8: models[2]: 'a' is listed here and at models[0]; "
            "it takes part as often as it is listed [JM205]",
        ),
    ),
    "soup_beside_empty_keys": Case(
        """\
slices: []
modules: {}
models:
  - model: {a}
    parameters: {weight: 0.5}
  - model: {b}
    parameters: {weight: 0.5}
base_model:
tokenizer_source:
chat_template: ""
merge_method: linear
parameters:
dtype: ""
""",
        48,
        {HEAD: ("a b", soup(0.5, 0.5))},
    ),
    "soup_with_hub_names_of_folders_here": Case(
        """\
merge_method: linear
models:
  - model: some-org/Tiny-7B-Instruct-v0.2
    parameters:
      weight: 0.5
  - model: some-org/tiny-zephyr-7b
    parameters:
      weight: 0.5
tokenizer_source: base
dtype: float16
""",
        21,
        {at(1, "up"): ("Tiny-7B-Instruct-v0.2 tiny-zephyr-7b", soup(0.5, 0.5))},
        dtype="F16",
        changes=(TO_HALF,),
    ),
    "soup_with_maps": Case(
        """\
name: my-soup
merge_method: linear
models:
  - model: {a}
    parameters: {weight: 1}
  - model:
      model:
        path: {b}
        revision: null
    parameters: {weight: 1}
  - model: {model: {c}, lora: null}
    parameters: {weight: 1}
""",
        48,
        {EMBED: ("a b c", soup(1, 1, 1))},
        warnings=("x.yml:1: name: has no effect [JM019]",),
    ),
    "soup_with_an_anchor_in_place": Case(
        """\
merge_method: linear
models:
  - model: {a}
    parameters: &half
      weight: [0.5, 1]
      density: 0.5
  - model: {b}
    parameters: *half
  - model: {c}
    parameters:
      <<: *half
      weight: 0.25
""",
        48,
        {at(1, "up"): ("a b c", soup(0.625, 0.625, 0.25)), HEAD: ("a b c", soup(0.5, 0.5, 0.25))},
        warnings=(
            "x.yml:6: models[0].parameters.density: has no effect with 'linear' [JM019]",
            "x.yml:6: models[1].parameters.density: has no effect with 'linear' [JM019]",
            "x.yml:6: models[2].parameters.density: has no effect with 'linear' [JM019]",
        ),
    ),
    "soup_of_mixed_dtypes": Case(
        """\
merge_method: linear
models:
  - model: {half}
    parameters: {weight: 1}
  - model: {a}
    parameters: {weight: 1}
""",
        48,
        {at(0, "up"): ("half a", soup(1, 1))},
        changes=(("torch_dtype", "bfloat16", "float32"),),
    ),
    "soup_that_keeps_its_dtype": Case(
        """\
merge_method: linear
models: [{model: {half}, parameters: {weight: 1}}]
""",
        48,
        {at(0, "up"): ("half", soup(1))},
        dtype="BF16",
    ),
    "soup_with_leftovers_of_other_methods": Case(
        """\
models:
  - model: {a}
    parameters:
      weight: 0.5
      density: 0.53
  - model: {b}
    parameters:
      weight: 0.5
      density: 0.53
merge_method: linear
parameters:
  t: 0.5
  rescale: true
  lambda: 1.1
""",
        48,
        {at(0, "up"): ("a b", soup(0.5, 0.5))},
        warnings=(
            "x.yml:5: models[0].parameters.density: has no effect with 'linear' [JM019]",
            "x.yml:9: models[1].parameters.density: has no effect with 'linear' [JM019]",
            "x.yml:12: parameters.t: has no effect with 'linear' [JM019]",
            "x.yml:13: parameters.rescale: has no effect with 'linear' [JM019]",
            "x.yml:14: parameters.lambda: has no effect with 'linear' [JM019]",
        ),
    ),
    # Slerp
    "slerp_with_the_usual_filters": Case(
        """\
slices:
  - sources:
      - model: {p}
        layer_range: [0, 12]
      - model: {q}
        layer_range: [0, 12]
merge_method: slerp
base_model: {p}
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: bfloat16
""",
        111,
        {
            EMBED: ("[p] q", turn(0.5)),
            at(0, "q"): ("[p] q", turn(0)),
            at(3, "q"): ("[p] q", turn(5.3 / 11)),  # 1/11 of the way from 0.5 to 0.3
            at(3, "up"): ("[p] q", turn(5.7 / 11)),
            at(8, "o"): ("[p] q", turn(7.3 / 11)),  # 10/11 of the way from 0.3 to 0.7
            at(11, "q"): ("[p] q", turn(1)),
            at(11, "down"): ("[p] q", turn(0)),
            at(6, "input_layernorm"): ("[p] q", turn(0.5)),
            HEAD: ("[p] q", turn(0.5)),
        },
        dtype="BF16",
        changes=(TO_BF16,),
    ),
    "slerp_of_models_with_the_base_second": Case(
        """\
models:
  - model: {a}
  - model: {b}
merge_method: slerp
base_model: {b}
parameters:
  t: [0.1, 0.9]
""",
        48,
        {
            EMBED: ("a [b]", turn(0.1)),
            at(1, "q"): ("a [b]", turn(0.3)),
            at(4, "q"): ("a [b]", turn(0.9)),
            NORM: ("a [b]", turn(0.1)),
        },
    ),
    "slerp_whose_base_is_not_listed": Case(
        """\
models:
  - model: {b}
    parameters:
      weight: 0.5
merge_method: slerp
base_model: {a}
parameters:
  t: "0.35"
  normalize: true
""",
        48,
        {HEAD: ("b [a]", turn(0.35))},
        warnings=(
            "x.yml:4: models[0].parameters.weight: has no effect with 'slerp' [JM019]",
            "x.yml:9: parameters.normalize: has no effect with 'slerp' [JM019]",
        ),
    ),
    "slerp_with_a_t_and_a_base_for_each_slice": Case(
        """\
merge_method: slerp
base_model: {a}
slices:
  - sources:
      - {model: {a}, layer_range: [0, 2]}
      - {model: {b}, layer_range: [0, 2]}
    parameters:
      t: 3e-1
  - sources:
      - {model: {a}, layer_range: [2, 5]}
      - {model: {b}, layer_range: [2, 5]}
    base_model: {b}
    parameters:
      t: [0.25, 1]
parameters:
  t: 9
""",
        48,
        {
            EMBED: ("[a] b", turn(0.3)),
            at(1, "up"): ("[a] b", turn(0.3)),
            at(2, "up"): ("a [b]", turn(0.25)),
            at(3, "up"): ("a [b]", turn(0.625)),
            at(4, "up"): ("a [b]", turn(1)),
            NORM: ("a [b]", turn(0.25)),
        },
    ),
    "slerp_whose_gradient_begins_anew_in_each_slice": Case(
        """\
merge_method: slerp
base_model: {a}
slices:
  - sources:
      - {model: {a}, layer_range: [0, 3]}
      - {model: {b}, layer_range: [0, 3]}
  - sources:
      - {model: {a}, layer_range: [3, 4]}
      - {model: {b}, layer_range: [3, 4]}
  - sources:
      - {model: {a}, layer_range: [4, 5]}
      - {model: {b}, layer_range: [0, 1]}
parameters:
  t: [0, 0.5]
""",
        48,
        {
            EMBED: ("[a] b", turn(0)),
            at(0, "q"): ("[a] b", turn(0)),
            at(1, "q"): ("[a] b", turn(0.25)),
            at(2, "q"): ("[a] b", turn(0.5)),
            at(3, "q"): ("[a] b", turn(0.5)),  # a slice of one layer is at its end
            at(4, "q"): (f"[a] b:{at(0, 'q')}", turn(0.5)),
            HEAD: ("[a] b", turn(0)),
        },
        unused={"b": 9},
    ),
    # Task arithmetic
    "task_arithmetic_that_subtracts": Case(
        """\
merge_method: task_arithmetic
base_model: {base}
models:
  - model: {base}
  - model: {a}
    parameters:
      weight: 1.0
  - model: {b}
    parameters:
      weight: -0.5
dtype: bfloat16
""",
        48,
        {at(3, "down"): ("[base] a b", vector(1, -0.5)), HEAD: ("[base] a b", vector(1, -0.5))},
        dtype="BF16",
        changes=(TO_BF16,),
    ),
    "task_arithmetic_made_from_a_ties_recipe": Case(
        """\
models:
  - model: {a}
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: {b}
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
merge_method: task_arithmetic
base_model: {base}
parameters:
  normalize: true
  int8_mask: true
  lambda: 0.9
dtype: float16
""",
        48,
        {
            EMBED: ("a b [base]", vector(1, 0, scale=0.9, normalize=True)),
            at(1, "up"): ("a b [base]", vector(1, 0.225, scale=0.9, normalize=True)),
            at(2, "up"): ("a b [base]", vector(1, 0.5, scale=0.9, normalize=True)),
            at(4, "up"): ("a b [base]", vector(1, 1, scale=0.9, normalize=True)),
        },
        dtype="F16",
        warnings=(
            "x.yml:4: models[0].parameters.density: has no effect with 'task_arithmetic' [JM019]",
            "x.yml:8: models[1].parameters.density: has no effect with 'task_arithmetic' [JM019]",
            "x.yml:14: parameters.int8_mask: has no effect with 'task_arithmetic' [JM019]",
        ),
        changes=(TO_HALF,),
    ),
    "task_arithmetic_with_parameters_for_the_base": Case(
        """\
models:
  - model: {base}
    parameters:
      weight: 1.0
  - model: {a}
    parameters:
      weight: 0.4
merge_method: task_arithmetic
base_model: {base}
""",
        48,
        {at(0, "q"): ("[base] a", vector(0.4))},
        warnings=("x.yml:4: models[0].parameters.weight: has no effect on the base model [JM019]",),
    ),
    "task_arithmetic_with_a_lone_filter": Case(
        """\
models:
  - model: {a}
    parameters:
      weight:
        filter: mlp
        value: 0.8
  - model: {b}
parameters:
  weight: 0.1
  lambda:
    - filter: layers.2.
      value: 1e-1
merge_method: task_arithmetic
base_model: {base}
""",
        48,
        {
            at(1, "up"): ("a b [base]", vector(0.8, 0.1)),
            at(2, "up"): ("a b [base]", vector(0.8, 0.1, scale=0.1)),
            at(2, "q"): ("a b [base]", vector(0.1, 0.1, scale=0.1)),
        },
    ),
    "task_arithmetic_in_slices": Case(
        """\
slices:
  - sources:
      - model: {base}
        layer_range: [0, 5]
      - model: {a}
        layer_range: [0, 5]
        parameters:
          weight: 0.7
      - model: {b}
        layer_range: [0, 5]
        parameters:
          weight:
            - filter: mlp
              value: 0.2
            - filter: self_attn
              value: 0.1
            - value: 0
merge_method: task_arithmetic
base_model: {base}
parameters:
  normalize: on
tokenizer_source: base
""",
        48,
        {
            at(0, "q"): ("[base] a b", vector(0.7, 0.1, normalize=True)),
            at(0, "down"): ("[base] a b", vector(0.7, 0.2, normalize=True)),
            NORM: ("[base] a b", vector(0.7, 0, normalize=True)),
        },
    ),
    # Stacks of layers
    "frankenmerge_of_five_slices": Case(
        """\
slices:
  - sources:
      - model: {p}
        layer_range: [0, 4]
  - sources:
      - model: {q}
        layer_range: [2, 6]
  - sources:
      - model: {p}
        layer_range: [4, 8]
  - sources:
      - model: {q}
        layer_range: [6, 10]
  - sources:
      - model: {p}
        layer_range: [8, 12]
merge_method: passthrough
dtype: float16
""",
        183,
        {
            EMBED: ("p", PLAIN),
            at(3, "up"): ("p", PLAIN),
            at(4, "up"): (f"q:{at(2, 'up')}", PLAIN),
            at(8, "q"): (f"p:{at(4, 'q')}", PLAIN),
            at(15, "q"): (f"q:{at(9, 'q')}", PLAIN),
            at(19, "down"): (f"p:{at(11, 'down')}", PLAIN),
            HEAD: ("p", PLAIN),
        },
        dtype="F16",
        changes=(depth(12, 20), TO_HALF),
        unused={"q": 39},
    ),
    "depth_up_scaling": Case(
        """\
slices:
  - sources:
    - model: {p}
      layer_range: [0, 8]
  - sources:
    - model: {q}
      layer_range: [4, 12]
merge_method: passthrough
dtype: bfloat16
""",
        147,
        {
            EMBED: ("p", PLAIN),
            at(7, "o"): ("p", PLAIN),
            at(8, "o"): (f"q:{at(4, 'o')}", PLAIN),
            NORM: ("q", PLAIN),
            HEAD: ("q", PLAIN),
        },
        dtype="BF16",
        changes=(depth(12, 16), TO_BF16),
        unused={"p": 38, "q": 37},
    ),
    "block_expansion_with_zero_projections": Case(
        """\
slices:
  - sources:
      - model: {a}
        layer_range: [0, 3]
  - sources:
      - model: {a}
        layer_range: [2, 3]
        parameters:
          scale:
            - filter: o_proj
              value: 0.0
            - filter: down_proj
              value: 0.0
            - value: 1.0
  - sources:
      - model: {a}
        layer_range: [3, 5]
merge_method: passthrough
""",
        57,
        {
            at(2, "o"): ("a", PLAIN),
            at(3, "o"): (f"a:{at(2, 'o')}", {"scale": (0.0,)}),
            at(3, "down"): (f"a:{at(2, 'down')}", {"scale": (0.0,)}),
            at(3, "up"): (f"a:{at(2, 'up')}", {"scale": (1.0,)}),
            at(4, "o"): (f"a:{at(3, 'o')}", PLAIN),
            HEAD: ("a", PLAIN),
        },
        changes=(depth(5, 6),),
    ),
    "pruned_layers": Case(
        """\
slices:
  - sources:
      - model: {p}
        layer_range: [0, 4]
    residual_weight: 0.5
  - sources:
      - model: {p}
        layer_range: ["8", 12.0]
merge_method: passthrough
parameters:
  weight: 1
""",
        75,
        {at(3, "q"): ("p", PLAIN), at(4, "q"): (f"p:{at(8, 'q')}", PLAIN), HEAD: ("p", PLAIN)},
        warnings=(
            "x.yml:5: slices[0].residual_weight: has no effect [JM019]",
            "x.yml:11: parameters.weight: has no effect with 'passthrough' [JM019]",
        ),
        changes=(depth(12, 8),),
        unused={"p": 36},
    ),
    "stack_of_different_depths_on_a_base": Case(
        """\
merge_method: passthrough
base_model: {a}
slices:
  - sources: [{model: {s}, layer_range: [0, 2]}]
  - sources: [{model: {p}, layer_range: [10, 12]}]
tokenizer: {source: base}
""",
        39,
        {
            EMBED: ("s", PLAIN),
            at(1, "q"): ("s", PLAIN),
            at(2, "q"): (f"p:{at(10, 'q')}", PLAIN),
            HEAD: ("p", PLAIN),
        },
        changes=(depth(5, 4),),
        unused={"a": 48, "s": 2, "p": 91},
    ),
    "stack_of_layers_of_two_kinds": Case(
        """\
merge_method: passthrough
slices:
  - sources: [{model: {slide}, layer_range: [0, 2]}]
  - sources: [{model: {full}, layer_range: [0, 1]}]
  - sources: [{model: {slide}, layer_range: [1, 4]}]
""",
        57,
        {at(2, "q"): (f"full:{at(0, 'q')}", PLAIN), at(5, "q"): (f"slide:{at(3, 'q')}", PLAIN)},
        changes=(
            depth(4, 6),
            (
                "layer_types",
                ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
                [
                    *("sliding_attention", "full_attention", "full_attention"),
                    *("full_attention", "full_attention", "sliding_attention"),
                ],
            ),
        ),
        unused={"full": 30},
    ),
    "copy_of_one_model": Case(
        """\
models:
  - model: {a}
merge_method: passthrough
dtype: float16
""",
        48,
        {EMBED: ("a", PLAIN), at(4, "up"): ("a", PLAIN)},
        dtype="F16",
        changes=(TO_HALF,),
    ),
    "merged_slices_with_offsets": Case(
        """\
merge_method: linear
slices:
  - sources:
      - model: {a}
        layer_range: [0, 3]
        parameters: {weight: 0.7}
      - model: {b}
        layer_range: [2, 5]
        parameters:
          weight:
            - filter: layers.2.
              value: 1
            - value: 0.25
""",
        30,
        {
            EMBED: ("a b", soup(0.7, 0.25)),
            at(0, "q"): (f"a b:{at(2, 'q')}", soup(0.7, 1)),  # filters see the model's own name
            at(2, "q"): (f"a b:{at(4, 'q')}", soup(0.7, 0.25)),
            HEAD: ("a b", soup(0.7, 0.25)),
        },
        changes=(depth(5, 3),),
        unused={"a": 18, "b": 18},
    ),
    "slices_of_different_widths_and_scopes": Case(
        """\
merge_method: linear
parameters:
  weight: 0.1
  normalize: false
slices:
  - sources:
      - model: {a}
        layer_range: [0, 2]
        parameters:
          weight:
            - filter: up_proj
              value: 0.3
      - model: {b}
        layer_range: [0, 2]
    parameters:
      weight:
        - filter: mlp
          value: 0.2
  - sources:
      - model: {c}
        layer_range: [2, 5]
    parameters:
      normalize: true
""",
        48,
        {
            EMBED: ("a b", soup(0.1, 0.1, normalize=False)),
            at(1, "up"): ("a b", soup(0.3, 0.2, normalize=False)),
            at(1, "down"): ("a b", soup(0.2, 0.2, normalize=False)),
            at(1, "q"): ("a b", soup(0.1, 0.1, normalize=False)),
            at(2, "up"): ("c", soup(0.1)),
            HEAD: ("c", soup(0.1)),
        },
        unused={"a": 29, "b": 29, "c": 19},
    ),
    # Ties, biases, buffers
    "tied_models": Case(
        """\
merge_method: slerp
base_model: {tied1}
models: [{model: {tied1}}, {model: {tied2}}]
parameters: {t: 0.5}
""",
        29,
        {EMBED: ("[tied1] tied2", turn(0.5)), NORM: ("[tied1] tied2", turn(0.5))},
    ),
    "tied_base_with_a_head_of_its_own_in_the_other": Case(
        """\
merge_method: task_arithmetic
base_model: {tied1}
models:
  - model: {untied}
    parameters:
      weight:
        - filter: embed_tokens
          value: 0.5
        - value: 1
""",
        30,
        {
            EMBED: ("untied [tied1]", vector(0.5)),
            HEAD: (f"untied [tied1:{EMBED}]", vector(1)),
        },
        warnings=(
            "x.yml:1: lm_head.weight is written because not every model ties it to the embedding; "
            "the embedding stands in for it in tied1 [JM231]",
        ),
    ),
    "soup_of_a_tied_and_an_untied_model": Case(
        """\
merge_method: linear
models:
  - model: {untied}
    parameters: {weight: 1}
  - model: {tied1}
    parameters:
      weight:
        - {filter: lm_head, value: 0.25}  # the embedding in its place counts as a head
        - {filter: embed_tokens, value: 0.5}
        - {value: 1}
""",
        30,
        {
            EMBED: ("untied tied1", soup(1, 0.5)),
            NORM: ("untied tied1", soup(1, 1)),
            HEAD: (f"untied tied1:{EMBED}", soup(1, 0.25)),
        },
        warnings=(
            "x.yml:1: lm_head.weight is written because not every model ties it to the embedding; "
            "the embedding stands in for it in tied1 [JM231]",
        ),
    ),
    "bias_in_one_model_only": Case(
        """\
merge_method: linear
models:
  - model: {biased}
    parameters: {weight: 0.25}
  - model: {a}
    parameters: {weight: 0.75}
""",
        53,
        {
            at(2, "q"): ("biased a", soup(0.25, 0.75)),
            "model.layers.2.self_attn.q_proj.bias": ("biased", soup(0.25)),
        },
        warnings=(
            "x.yml:1: model.layers.0.self_attn.q_proj.bias and 4 more: not in a; "
            "merged from the others [JM221]",
        ),
    ),
    "bias_in_the_base_only": Case(
        """\
merge_method: task_arithmetic
base_model: {biased}
models:
  - model: {a}
    parameters: {weight: 0.75}
""",
        53,
        {"model.layers.2.self_attn.q_proj.bias": ("biased", {})},
        warnings=(
            "x.yml:1: model.layers.0.self_attn.q_proj.bias and 4 more: not in a; "
            "only the base has it [JM221]",
        ),
    ),
    "rotary_tables_in_an_old_model": Case(
        """\
merge_method: linear
models:
  - model: {a}
    parameters: {weight: 1}
  - model: {old}
    parameters: {weight: 1}
dtype: float16
""",
        53,
        {"model.layers.3.self_attn.rotary_emb.inv_freq": ("old", {})},
        dtype="F16 F32",  # the tables are copied as they are
        changes=(TO_HALF,),
    ),
    "numbers_that_are_no_weights": Case(
        """\
merge_method: linear
models:
  - model: {counted1}
    parameters: {weight: 1}
  - model: {counted2}
    parameters: {weight: 3}
out_dtype: float16
""",
        23,
        {
            "model.position_ids": ("counted1 counted2", {}),  # both are read: they must be equal
            "model.layers.0.attn.bias": ("counted1 counted2", {}),
            at(1, "up"): ("counted1 counted2", soup(1, 3)),
        },
        dtype="BOOL F16 I64",
        changes=(TO_HALF,),
    ),
    "quantised_model_copied": Case(
        """\
merge_method: passthrough
slices:
  - sources: [{model: {fp8}, layer_range: [0, 2]}]
  - sources: [{model: {fp8}, layer_range: [1, 2]}]
""",
        33,
        {at(2, "up"): (f"fp8:{at(1, 'up')}", PLAIN)},
        dtype="F32 F8_E4M3",
        changes=(depth(2, 3),),
    ),
    # Several stacks
    "vision_models_whole": Case(
        """\
merge_method: linear
models:
  - model: {vis1}
    parameters: {weight: [0, 1]}
  - model: {vis2}
    parameters: {weight: 1}
""",
        38,
        {
            at(1, "up"): ("vis1 vis2", soup(0.5, 1)),
            "visual.blocks.1.attn.qkv.weight": ("vis1 vis2", soup(1, 1)),  # a sweep of its own
            "visual.merger.mlp.0.weight": ("vis1 vis2", soup(0, 1)),
        },
    ),
    "vision_models_text_only": Case(
        """\
merge_method: slerp
base_model: {vis1}
modules:
  text_decoder:
    slices:
      - sources:
          - model: {vis1}
            layer_range: [0, 3]
          - model: {vis2}
            layer_range: [0, 3]
parameters:
  t: 0.5
""",
        38,
        {
            at(1, "up"): ("[vis1] vis2", turn(0.5)),
            HEAD: ("[vis1] vis2", turn(0.5)),
            "visual.blocks.1.attn.qkv.weight": ("vis1", {}),
            "visual.merger.mlp.0.weight": ("vis1", {}),
        },
        warnings=(
            "x.yml:3: modules: module 'multi_modal_projector' is not in the recipe; "
            "its 1 tensors are copied from vis1 [JM221]",
            "x.yml:3: modules: module 'vision_tower' is not in the recipe; "
            "its 7 tensors are copied from vis1 [JM221]",
        ),
        unused={"vis2": 8},
    ),
    "vision_tower_of_one_text_of_both": Case(
        """\
merge_method: linear
base_model: {vis1}
parameters:
  weight: 0.5
modules:
  text_decoder:
    slices:
      - sources:
          - {model: {vis1}, layer_range: [0, 3]}
          - {model: {vis2}, layer_range: [0, 3]}
  vision_tower:
    slices:
      - sources: [{model: {vis1}, layer_range: [0, 2]}]
""",
        38,
        {
            at(1, "up"): ("vis1 vis2", soup(0.5, 0.5)),
            "visual.blocks.1.mlp.fc1.weight": ("vis1", soup(0.5)),
            "visual.patch_embed.proj.weight": ("vis1", soup(0.5)),
            "visual.merger.mlp.0.weight": ("vis1", {}),
        },
        warnings=(
            "x.yml:5: modules: module 'multi_modal_projector' is not in the recipe; "
            "its 1 tensors are copied from vis1 [JM221]",
        ),
        unused={"vis2": 8},
    ),
    "encoder_merged_decoder_stacked": Case(
        """\
merge_method: passthrough
modules:
  shared:
    models: [{model: {t5a}}]
  encoder:
    models: [{model: {t5a}}]
  decoder:
    slices:
      - sources: [{model: {t5a}, layer_range: [0, 2]}]
      - sources: [{model: {t5b}, layer_range: [0, 2]}]
      - sources: [{model: {t5a}, layer_range: [1, 2]}]
""",
        28,
        {
            "shared.weight": ("t5a", PLAIN),
            "encoder.block.2.layer.0.SelfAttention.q.weight": ("t5a", PLAIN),
            "decoder.block.2.layer.0.layer_norm.weight": (
                "t5b:decoder.block.0.layer.0.layer_norm.weight",
                PLAIN,
            ),
            "decoder.block.4.layer.0.layer_norm.weight": (
                "t5a:decoder.block.1.layer.0.layer_norm.weight",
                PLAIN,
            ),
            "decoder.final_layer_norm.weight": ("t5a", PLAIN),
        },
        changes=(("num_decoder_layers", 2, 5),),
        unused={"t5b": 13},
    ),
    "text_model_into_a_vision_model": Case(
        """\
merge_method: task_arithmetic
base_model: {vis1}
models:
  - model: {text}
    parameters: {weight: 1}
""",
        38,
        {
            at(2, "up"): ("text [vis1]", vector(1)),
            "visual.blocks.0.norm1.weight": ("vis1", {}),
            "visual.patch_embed.proj.weight": ("vis1", {}),
        },
        warnings=(
            "x.yml:1: visual.patch_embed.proj.weight and 7 more: not in text; only the base has it [JM221]",
            "x.yml:4: models[0].model: config.json differs from that of vis1, which the output has: "
            "model_type llama (output: qwen2_vl) [JM212]",
        ),
    ),
    "text_model_into_the_text_decoder": Case(
        """\
merge_method: linear
base_model: {vis1}
modules:
  text_decoder:
    models:
      - model: {vis1}
        parameters: {weight: 0.75}
      - model: {text}
        parameters: {weight: [0.25, 0.5]}
dtype: bfloat16
""",
        38,
        {
            at(1, "up"): ("vis1 text", soup(0.75, 0.375)),
            HEAD: ("vis1 text", soup(0.75, 0.25)),
            "visual.blocks.1.mlp.fc1.weight": ("vis1", {}),
        },
        dtype="BF16",
        warnings=(
            "x.yml:3: modules: module 'multi_modal_projector' is not in the recipe; "
            "its 1 tensors are copied from vis1 [JM221]",
            "x.yml:3: modules: module 'vision_tower' is not in the recipe; "
            "its 7 tensors are copied from vis1 [JM221]",
            "x.yml:8: modules.text_decoder.models[1].model: config.json differs from that of vis1, "
            "which the output has: model_type llama (output: qwen2_vl) [JM212]",
        ),
        changes=(TO_BF16,),
    ),
    "vision_model_into_a_text_model": Case(
        """\
merge_method: linear
models:
  - model: {text}
  - model: {vis1}
parameters: {weight: 0.5}
except: [visual.*]
""",
        30,
        {at(2, "up"): ("text vis1", soup(0.5, 0.5))},
        unused={"vis1": 8},
        warnings=(
            "x.yml:1: visual.patch_embed.proj.weight and 7 more: in 'except' and not in text, "
            "so not in the output [JM221]",
            "x.yml:4: models[1].model: config.json differs from that of text, which the output has: "
            "model_type qwen2_vl (output: llama) [JM212]",
        ),
    ),
    "text_decoder_of_a_vision_model_stacked": Case(
        """\
merge_method: passthrough
modules:
  text_decoder:
    slices:
      - sources: [{model: {nested}, layer_range: [0, 3]}]
      - sources: [{model: {nested}, layer_range: [1, 4]}]
  multi_modal_projector: {models: [{model: {nested}}]}
  vision_tower: {models: [{model: {nested}}]}
dtype: bfloat16
""",
        17,
        {
            "language_model.model.layers.2.mlp.up_proj.weight": ("nested", PLAIN),
            "language_model.model.layers.3.mlp.up_proj.weight": (
                "nested:language_model.model.layers.1.mlp.up_proj.weight",
                PLAIN,
            ),
            "vision_tower.vision_model.encoder.layers.1.norm.weight": ("nested", PLAIN),
        },
        dtype="BF16",
        changes=(
            ("text_config.num_hidden_layers", 4, 6),
            (
                "text_config.layer_types",
                ["sliding", "sliding", "sliding", "full"],
                ["sliding", "sliding", "sliding", "sliding", "sliding", "full"],
            ),
            TO_BF16,
        ),
    ),
    "module_called_default": Case(
        """\
merge_method: slerp
base_model: {b}
modules:
  default:
    slices:
      - sources:
          - {model: {a}, layer_range: [0, 5]}
          - {model: {b}, layer_range: [0, 5]}
        parameters: {t: {filter: mlp, value: 0.75}}
    parameters:
      t: [{filter: self_attn, value: 0.25}, {filter: mlp, value: 9}]
parameters: {t: 0.5}
""",
        48,
        {
            at(1, "up"): ("a [b]", turn(0.75)),
            at(1, "q"): ("a [b]", turn(0.25)),
            HEAD: ("a [b]", turn(0.5)),
        },
    ),
    "encoder_decoder_whole": Case(
        """\
merge_method: slerp
base_model: {t5a}
models:
  - model: {t5a}
  - model: {t5b}
parameters:
  t: [0, 1]
""",
        19,
        {
            "shared.weight": ("[t5a] t5b", turn(0)),
            "encoder.block.1.layer.0.SelfAttention.q.weight": ("[t5a] t5b", turn(0.5)),
            "encoder.block.2.layer.0.SelfAttention.q.weight": ("[t5a] t5b", turn(1)),
            "decoder.block.1.layer.0.SelfAttention.q.weight": ("[t5a] t5b", turn(1)),
            "decoder.final_layer_norm.weight": ("[t5a] t5b", turn(0)),
        },
    ),
}

# What is compared


def show_sources(plan: Plan, step: Step) -> str:
    """The inputs of a step: model, `:` and tensor where that is another, the base in brackets."""
    words = []
    for i, item in enumerate(step.inputs):
        assert isinstance(item, Read)
        folder = Path(plan.models[item.model].path).name
        word = folder if item.name == step.name else f"{folder}:{item.name}"
        words.append(f"[{word}]" if i == step.base else word)
    return " ".join(words)


def assert_same_numbers(tensor: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """The same names with the same values; floats may differ by their rounding."""
    assert set(found) == set(wanted), tensor
    for name, value in wanted.items():
        if value is None or isinstance(value, bool):
            assert found[name] is value, (tensor, name)
        else:
            assert found[name] == pytest.approx(value, rel=1e-12, abs=1e-15), (tensor, name)


def assert_every_input_is_accounted_for(
    plan: Plan, models: Path, unused: Mapping[str, int]
) -> None:
    """Every tensor of every model is read by a step, or is unused with a reason, and not both."""
    read = {(i.model, i.name) for step in plan.steps for i in step.inputs if isinstance(i, Read)}
    left = {(item.model, item.name): item.reason for item in plan.unused}
    for number, model in enumerate(plan.models):
        names = {(number, name) for name in open_checkpoint(model.path)}
        assert names == {key for key in read | set(left) if key[0] == number}
    assert not read & set(left)
    assert all(left.values())
    folders = [Path(plan.models[number].path).name for number, _ in left]
    assert {name: folders.count(name) for name in folders} == dict(unused)


def plan_text(text: str, models: Path, folder: Path) -> Plan:
    """The plan of a recipe text in which `{name}` stands for a model."""
    known = {path.name for path in models.iterdir()}
    text = re.sub(r"\{(\w+)\}", lambda m: str(models / m[1]) if m[1] in known else m[0], text)
    path = folder / "x.yml"
    path.write_text(text)
    return jmerge.plan(path)


@pytest.mark.parametrize("name", CASES)
def test_plan(name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe is accepted as it stands and its plan is the one worked out by hand."""
    case = CASES[name]
    monkeypatch.chdir(models)
    plan = plan_text(case.recipe, models, tmp_path)

    def short(text: str) -> str:
        return text.replace(str(tmp_path / "x.yml"), "x.yml").replace(f"{models}/", "")

    assert tuple(map(short, plan.warnings)) == case.warnings
    assert len(plan.outputs) == case.tensors
    steps = {step.name: step for step in plan.steps}
    for tensor, (sources, numbers) in case.wanted.items():
        step = steps[tensor]
        assert (tensor, show_sources(plan, step)) == (tensor, sources)
        assert (tensor, step.method) == (tensor, plan.method if numbers else COPY)
        assert_same_numbers(tensor, step.hyperparameters, numbers)
    assert_every_input_is_accounted_for(plan, models, case.unused)
    assert " ".join(sorted({spec.dtype for spec in plan.outputs.values()})) == case.dtype
    found = tuple((change.key, change.old, change.new) for change in plan.changes)
    assert found == case.changes
    for key, _, new in case.changes:
        part: Any = plan.config
        for word in key.split("."):
            part = part[word]
        assert part == new


REASONS = {
    "depth_up_scaling": {
        f"p:{at(8, 'q')}": "layer 8 is in no layer_range",
        f"q:{at(3, 'q')}": "layer 3 is in no layer_range",
        f"p:{HEAD}": "the model is not a source of the last slice",
        f"q:{EMBED}": "the model is not a source of the first slice",
    },
    "stack_of_different_depths_on_a_base": {
        f"a:{at(0, 'q')}": "the model gives only names, config and files",
    },
    "vision_tower_of_one_text_of_both": {
        "vis2:visual.blocks.0.norm1.weight": "the model is not a source of module 'vision_tower'",
        "vis2:visual.patch_embed.proj.weight": "the model is not a source of module 'vision_tower'",
        "vis2:visual.merger.mlp.0.weight": "module 'multi_modal_projector' is not in the recipe",
    },
    "encoder_merged_decoder_stacked": {
        "t5b:encoder.final_layer_norm.weight": "the model is not a source of module 'encoder'",
        "t5b:shared.weight": "the model is not a source of module 'shared'",
        "t5b:decoder.final_layer_norm.weight": "the model is not a source of the last slice",
    },
}


@pytest.mark.parametrize("name", REASONS)
def test_reasons_of_unused_tensors(name: str, models: Path, tmp_path: Path) -> None:
    """The plan says why a tensor of an input is in no output."""
    plan = plan_text(CASES[name].recipe, models, tmp_path)
    found = {
        f"{Path(plan.models[item.model].path).name}:{item.name}": item.reason
        for item in plan.unused
    }
    assert {key: found.get(key) for key in REASONS[name]} == REASONS[name]
