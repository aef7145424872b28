"""Merges of tiny models of ten families, made, loaded and run by transformers.

Every family is a row of `FAMILIES`. What the merged tensors must be is computed here in numpy
float64 from the input files, by the literal names of their tensors: nothing that knows
architectures in jmerge takes part. The result must also load without a complaint and compute what a
model filled with the numpy tensors computes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.numpy import load_file, save_file
from transformers import PretrainedConfig, PreTrainedModel

import jmerge
from jmerge.testing.close import TO_ROUNDING, assert_close

Tensors = dict[str, np.ndarray]
Inputs = dict[str, torch.Tensor]

VOCAB, HIDDEN, INNER, HEADS = 64, 16, 24, 4
IMAGE_TOKEN = VOCAB - 1
FULL, SLIDING = "full_attention", "sliding_attention"
MODELS = {"a": 1, "b": 2, "c": 3}  # name -> seed; c is the base of task arithmetic


# Families


@dataclass(frozen=True, kw_only=True)
class Part:
    """A module of a family, or all of it: its layers, and which tensors come before and after them.

    A stacked merge takes `ranges[0]` of model a and `ranges[1]` of model b, so what comes before is
    a's and what comes after is b's.
    """

    module: str | None = None  # its name under `modules:`; None: the family has only one
    layers: str = ""  # what stands before the layer number; empty: the module has no layers
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    ranges: tuple[tuple[int, int], tuple[int, int]] = ((0, 2), (1, 3))


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row: how to build a model, what its tensors are called, how to run it."""

    name: str
    model: type[PreTrainedModel]
    config: Callable[[bool], PretrainedConfig]  # of an input (False) or of the stacked merge (True)
    parts: tuple[Part, ...]
    inputs: Callable[[], Inputs]
    silent: str = "(?!)"  # parameters that cannot change the output, as a pattern
    stored: Callable[[Tensors], Tensors] = dict  # what the input files hold, if not what is saved
    tied: tuple[str, ...] = ()  # parameters of the loaded model that are one tensor


def weight_and_bias(*modules: str) -> tuple[str, ...]:
    """The names of both tensors of each module."""
    return tuple(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))


def text_sizes(layers: int) -> dict[str, Any]:
    """The sizes most configs spell alike."""
    return {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def depth(stacked: bool) -> int:
    """Layers of an input, and of [0, 2) and [1, 3) of two of them."""
    return 4 if stacked else 3


def plain_config(config: type[PretrainedConfig], stacked: bool, **rest: Any) -> PretrainedConfig:
    """The config of a family with one stack and nothing that depends on the layer."""
    return config(**text_sizes(depth(stacked)), **rest)


def qwen3_config(stacked: bool) -> PretrainedConfig:
    """Full attention first, then a sliding window: [F, S, S] and [F, S] + [S, S]."""
    return transformers.Qwen3Config(
        **text_sizes(depth(stacked)),
        num_key_value_heads=2,
        head_dim=8,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
        layer_types=[FULL, SLIDING, SLIDING, SLIDING] if stacked else [FULL, SLIDING, SLIDING],
    )


def gemma3_config(stacked: bool) -> PretrainedConfig:
    """Alternating attention, so that the stack [S, F] + [F, S] follows no rule."""
    return transformers.Gemma3TextConfig(
        **text_sizes(depth(stacked)),
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        layer_types=[SLIDING, FULL, FULL, SLIDING] if stacked else [SLIDING, FULL, SLIDING],
    )


def gpt2_config(stacked: bool) -> PretrainedConfig:
    """GPT-2 has names of its own for every size."""
    return transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=HIDDEN,
        n_layer=depth(stacked),
        n_head=HEADS,
        n_positions=32,
        bos_token_id=1,
        eos_token_id=2,
    )


def t5_config(stacked: bool, **rest: Any) -> PretrainedConfig:
    """Encoder and decoder of equal depth; stacked they have 4 layers and 2."""
    return transformers.T5Config(
        vocab_size=VOCAB,
        d_model=HIDDEN,
        d_kv=HIDDEN // HEADS,
        d_ff=INNER,
        num_layers=4 if stacked else 3,
        num_decoder_layers=2 if stacked else 3,
        num_heads=HEADS,
        relative_attention_num_buckets=8,
        decoder_start_token_id=0,
        **rest,
    )


def llava_config(stacked: bool) -> PretrainedConfig:
    """Text and vision of equal depth; stacked they have 4 layers and 2."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=2 if stacked else 3,
        num_attention_heads=HEADS,
        image_size=8,
        patch_size=4,
        projection_dim=HIDDEN,
    )
    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(
            **text_sizes(4 if stacked else 3), num_key_value_heads=2
        ),
        vision_config=vision,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=4,
        vision_feature_layer=-1,
    )


def token_ids(length: int = 12, seed: int = 0) -> torch.Tensor:
    """Two rows of ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, IMAGE_TOKEN, (2, length), generator=generator)


def text_inputs() -> Inputs:
    """For a causal language model."""
    return {"input_ids": token_ids()}


def bert_inputs() -> Inputs:
    """Two segments in each row."""
    return {"input_ids": token_ids(), "token_type_ids": torch.tensor([[0] * 5 + [1] * 7] * 2)}


def t5_inputs() -> Inputs:
    """Different tokens on either side."""
    return {"input_ids": token_ids(), "decoder_input_ids": token_ids(7, seed=1)}


def llava_inputs() -> Inputs:
    """An image of four patches in the middle of each row."""
    ids = token_ids()
    ids[:, 3:7] = IMAGE_TOKEN
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "pixel_values": pixels}


def store_copies(tensors: Tensors) -> Tensors:
    """T5 files as they were once written: each use of the shared table is stored by its name."""
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    return tensors | {name: tensors["shared.weight"].copy() for name in copies}


LLAMA_PART = Part(
    layers="model.layers",
    before=("model.embed_tokens.weight",),
    after=("model.norm.weight", "lm_head.weight"),
)
T5_PARTS = (
    Part(module="shared", before=("shared.weight",)),
    Part(module="encoder", layers="encoder.block", after=("encoder.final_layer_norm.weight",)),
    Part(
        module="decoder",
        layers="decoder.block",
        after=("decoder.final_layer_norm.weight",),
        ranges=((0, 1), (2, 3)),
    ),
)
T5_TIED = (
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
)

FAMILIES = (
    Family(
        name="llama",
        model=transformers.LlamaForCausalLM,
        config=partial(plain_config, transformers.LlamaConfig, num_key_value_heads=2),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="qwen3",
        model=transformers.Qwen3ForCausalLM,
        config=qwen3_config,
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="gemma3",
        model=transformers.Gemma3ForCausalLM,
        config=gemma3_config,
        parts=(
            Part(
                layers="model.layers",
                before=("model.embed_tokens.weight",),
                after=("model.norm.weight",),
            ),
        ),
        inputs=text_inputs,
        tied=("model.embed_tokens.weight", "lm_head.weight"),
    ),
    Family(
        name="gpt2",
        model=transformers.GPT2LMHeadModel,
        config=gpt2_config,
        parts=(
            Part(
                layers="transformer.h",
                before=("transformer.wte.weight", "transformer.wpe.weight"),
                after=weight_and_bias("transformer.ln_f"),
            ),
        ),
        inputs=text_inputs,
        tied=("transformer.wte.weight", "lm_head.weight"),
    ),
    Family(
        name="gpt_neox",
        model=transformers.GPTNeoXForCausalLM,
        config=partial(plain_config, transformers.GPTNeoXConfig),
        parts=(
            Part(
                layers="gpt_neox.layers",
                before=("gpt_neox.embed_in.weight",),
                after=(*weight_and_bias("gpt_neox.final_layer_norm"), "embed_out.weight"),
            ),
        ),
        inputs=text_inputs,
    ),
    Family(
        name="olmo2",
        model=transformers.Olmo2ForCausalLM,
        config=partial(plain_config, transformers.Olmo2Config, num_key_value_heads=2),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="mixtral",
        model=transformers.MixtralForCausalLM,
        config=partial(
            plain_config,
            transformers.MixtralConfig,
            num_key_value_heads=2,
            num_local_experts=4,
            num_experts_per_tok=2,
        ),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="bert",
        model=transformers.BertForMaskedLM,
        config=partial(plain_config, transformers.BertConfig),
        parts=(
            Part(
                layers="bert.encoder.layer",
                before=(
                    "bert.embeddings.word_embeddings.weight",
                    "bert.embeddings.position_embeddings.weight",
                    "bert.embeddings.token_type_embeddings.weight",
                    *weight_and_bias("bert.embeddings.LayerNorm"),
                ),
                after=(
                    "cls.predictions.bias",
                    *weight_and_bias(
                        "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"
                    ),
                ),
            ),
        ),
        inputs=bert_inputs,
        silent=r".*\.key\.bias",  # adds the same to every score of a query
        tied=("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ),
    Family(
        name="t5",
        model=transformers.T5ForConditionalGeneration,
        config=t5_config,
        parts=T5_PARTS,
        inputs=t5_inputs,
        tied=T5_TIED,
    ),
    Family(
        name="t5-copies",
        model=transformers.T5ForConditionalGeneration,
        config=partial(t5_config, feed_forward_proj="gated-gelu"),
        parts=(
            Part(module="shared", before=("shared.weight", "lm_head.weight")),
            Part(
                module="encoder",
                layers="encoder.block",
                before=("encoder.embed_tokens.weight",),
                after=("encoder.final_layer_norm.weight",),
            ),
            Part(
                module="decoder",
                layers="decoder.block",
                before=("decoder.embed_tokens.weight",),
                after=("decoder.final_layer_norm.weight",),
                ranges=((0, 1), (2, 3)),
            ),
        ),
        inputs=t5_inputs,
        stored=store_copies,
        tied=T5_TIED,
    ),
    Family(
        name="llava",
        model=transformers.LlavaForConditionalGeneration,
        config=llava_config,
        parts=(
            Part(
                module="language_model",
                layers="language_model.model.layers",
                before=("language_model.model.embed_tokens.weight",),
                after=("language_model.model.norm.weight", "language_model.lm_head.weight"),
            ),
            Part(
                module="vision_tower",
                layers="vision_tower.encoder.layers",
                before=(
                    "vision_tower.embeddings.class_embedding",
                    "vision_tower.embeddings.patch_embedding.weight",
                    "vision_tower.embeddings.position_embedding.weight",
                    *weight_and_bias("vision_tower.pre_layrnorm"),  # CLIP's own spelling
                ),
                after=weight_and_bias("vision_tower.post_layernorm"),
                ranges=((0, 1), (2, 3)),
            ),
            Part(
                module="multi_modal_projector",
                after=weight_and_bias(
                    "multi_modal_projector.linear_1", "multi_modal_projector.linear_2"
                ),
            ),
        ),
        inputs=llava_inputs,
        # features are taken before the last norm; key biases add the same to every score
        silent=r"model\.vision_tower\.(post_layernorm\..*|encoder\..*\.k_proj\.bias)",
    ),
)


# Methods: the recipe, and the same in numpy


@dataclass(frozen=True, kw_only=True)
class Method:
    """A recipe for models a, b, c and what it makes of one tensor of each, in float64."""

    recipe: dict[str, Any]
    merge: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """The point at the share `t` of the arc from a to b, which are far from parallel here."""
    angle = np.arccos((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def entry(model: str, **parameters: float) -> dict[str, Any]:
    """An item of `models`."""
    return {"model": model, "parameters": parameters} if parameters else {"model": model}


METHODS = {
    "linear": Method(
        recipe={
            "merge_method": "linear",
            "models": [entry("a", weight=0.4), entry("b", weight=0.6)],
        },
        merge=lambda a, b, c: 0.4 * a + 0.6 * b,
    ),
    "slerp": Method(
        recipe={
            "merge_method": "slerp",
            "base_model": "a",
            "models": [entry("a"), entry("b")],
            "parameters": {"t": 0.3},
        },
        merge=lambda a, b, c: slerp(a, b, 0.3),
    ),
    "task_arithmetic": Method(
        recipe={
            "merge_method": "task_arithmetic",
            "base_model": "c",
            "models": [entry("a", weight=0.7), entry("b", weight=-0.2)],
        },
        merge=lambda a, b, c: c + 0.7 * (a - c) - 0.2 * (b - c),
    ),
}


def stack_recipe(family: Family) -> dict[str, Any]:
    """Layers of a under layers of b in every module with layers; others are whole, a's or b's."""
    recipe: dict[str, Any] = {"merge_method": "passthrough"}
    modules = {}
    for part in family.parts:
        if part.layers:
            slices = [
                {"sources": [{"model": model, "layer_range": list(layers)}]}
                for model, layers in zip("ab", part.ranges, strict=True)
            ]
            modules[part.module] = {"slices": slices}
        else:
            modules[part.module] = {"models": [entry("a" if part.before else "b")]}
    return recipe | (modules[None] if None in modules else {"modules": modules})


def stack_tensors(family: Family, a: Tensors, b: Tensors) -> Tensors:
    """What the recipe of `stack_recipe` makes."""
    wanted: Tensors = {}
    for part in family.parts:
        wanted |= {name: a[name] for name in part.before}
        wanted |= {name: b[name] for name in part.after}
        origins = [
            (model, i)
            for model, layers in zip((a, b), part.ranges, strict=True)
            for i in range(*layers)
        ]
        for k, (model, i) in enumerate(origins if part.layers else []):
            old, new = f"{part.layers}.{i}.", f"{part.layers}.{k}."
            wanted |= {
                new + name.removeprefix(old): x for name, x in model.items() if name.startswith(old)
            }
    return wanted


# The work


@pytest.fixture(autouse=True)
def quiet() -> Iterable[None]:
    """No progress bars or logging of transformers."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(level)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def inputs_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    """The folder with the models a, b and c of a family, made once."""
    made: dict[str, Path] = {}

    def make(family: Family) -> Path:
        if family.name not in made:
            made[family.name] = tmp_path_factory.mktemp(family.name)
            for name, seed in MODELS.items():
                folder = made[family.name] / name
                new_model(family, seed).save_pretrained(folder)
                stored = family.stored(read_model(folder))
                save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        return made[family.name]

    return make


def new_model(family: Family, seed: int) -> PreTrainedModel:
    """A model whose parameters, norms and biases too, are seeded noise, so that each shows."""
    model = family.model(family.config(False)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if name.endswith("bias") else 1.0
            if parameter.ndim > 1:
                scale = 1.5 * parameter.shape[-1] ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def read_model(folder: Path) -> Tensors:
    """Every tensor of a checkpoint folder, by name."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def merge(recipe: dict[str, Any], folder: Path, out: Path) -> None:
    """Run jmerge on `recipe`, whose models are named by their folders inside `folder`."""
    text = re.sub(r"\b(model|base_model): ([abc])\b", rf"\1: {folder}/\2", yaml.safe_dump(recipe))
    path = out.with_suffix(".yml")
    path.write_text(text)
    jmerge.merge(path, out, listeners=())


def check(
    family: Family, out: Path, wanted: Tensors, *, stacked: bool = False, exact: bool = False
) -> None:
    """Tensors, config, loading and forward pass of the merged model in `out`.

    Args:
      family: of the model.
      out: its folder.
      wanted: its tensors.
      stacked: it has the depths of the stacked merge.
      exact: its tensors are copies.
    """
    found = read_model(out)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == np.float32, name
        assert_tensor(name, found[name], tensor, ulp=0 if exact else TO_ROUNDING)
    config = family.config(stacked)
    check_config(family, out, config)
    model = load(family, out)
    for name in family.tied:
        assert model.get_parameter(name) is model.get_parameter(family.tied[0]), name
    logits = forward(family, model)
    assert torch.isfinite(logits).all()
    filled = load(family, None, config=config, state_dict=as_torch(wanted))
    torch.testing.assert_close(logits, forward(family, filled), rtol=1e-4, atol=1e-4)


def assert_tensor(name: str, found: np.ndarray, wanted: np.ndarray, ulp: float) -> None:
    """Closeness, with the tensor's name in the message."""
    try:
        assert_close(found, wanted, ulp)
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from None


def check_config(family: Family, out: Path, wanted: PretrainedConfig) -> None:
    """config.json says what a config built for these tensors says, and names class and dtype."""
    raw = json.loads((out / "config.json").read_text())
    assert raw["architectures"] == [family.model.__name__]
    assert raw["dtype"] == "float32"
    found = type(wanted).from_pretrained(out)
    about_files = {"architectures", "dtype", "transformers_version", "_name_or_path"}
    for key, value in wanted.to_dict().items():
        if key not in about_files:
            assert without(found.to_dict()[key], about_files) == without(value, about_files), key


def without(value: Any, keys: set[str]) -> Any:
    """`value`, if it is a map without some of its keys."""
    return {k: v for k, v in value.items() if k not in keys} if isinstance(value, dict) else value


def load(family: Family, source: Path | None, **rest: Any) -> PreTrainedModel:
    """The model transformers reads; it must use every tensor and lack none."""
    model, info = family.model.from_pretrained(source, output_loading_info=True, **rest)
    problems = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    assert {key: info[key] for key in problems if info[key]} == {}
    return model.eval()


def as_torch(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The tensors as torch has them, in float32."""
    return {name: torch.from_numpy(x.astype(np.float32)) for name, x in tensors.items()}


def forward(family: Family, model: PreTrainedModel) -> torch.Tensor:
    """The logits for the family's inputs."""
    with torch.no_grad():
        return model(**family.inputs()).logits


def influence(parameter: torch.Tensor) -> float:
    """The largest gradient of a parameter; of the least used expert where several are packed."""
    if parameter.grad is None:
        return 0.0
    sizes = parameter.grad.abs()
    return float(sizes.flatten(1).amax(1).min() if sizes.ndim == 3 else sizes.max())


# Tests

BY_NAME = [pytest.param(family, id=family.name) for family in FAMILIES]


@pytest.mark.parametrize("family", BY_NAME)
def test_forward_pass_depends_on_every_tensor(family: Family) -> None:
    """Comparing logits sees every parameter, but for those that no input can make visible."""
    model = new_model(family, seed=1)
    logits = model(**family.inputs()).logits
    generator = torch.Generator().manual_seed(7)
    (logits * torch.randn(logits.shape, generator=generator)).sum().backward()
    silent = {name for name, x in model.named_parameters() if influence(x) < 0.1}
    assert silent == {
        name for name, _ in model.named_parameters() if re.fullmatch(family.silent, name)
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", BY_NAME)
def test_methods(
    family: Family, method: str, inputs_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """Whole models merged tensor by tensor."""
    folder = inputs_of(family)
    merge(METHODS[method].recipe, folder, tmp_path / "out")
    a, b, c = (read_model(folder / name) for name in "abc")
    wanted = {
        name: METHODS[method].merge(*(model[name].astype(np.float64) for model in (a, b, c)))
        for name in a
    }
    check(family, tmp_path / "out", wanted)


@pytest.mark.parametrize("family", BY_NAME)
def test_stacks(family: Family, inputs_of: Callable[[Family], Path], tmp_path: Path) -> None:
    """Layers of one model under layers of another; depth and kinds in config.json follow."""
    folder = inputs_of(family)
    merge(stack_recipe(family), folder, tmp_path / "out")
    wanted = stack_tensors(family, read_model(folder / "a"), read_model(folder / "b"))
    check(family, tmp_path / "out", wanted, stacked=True, exact=True)


@pytest.mark.parametrize(
    ("name", "module"),
    [("t5", "decoder"), ("llava", "language_model"), ("llava", "vision_tower")],
)
def test_a_module_of_another_model(
    name: str, module: str, inputs_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """One module is model b's and the others are model a's."""
    family = next(family for family in FAMILIES if family.name == name)
    folder = inputs_of(family)
    origin = {part.module: "b" if part.module == module else "a" for part in family.parts}
    recipe = {
        "merge_method": "passthrough",
        "modules": {part: {"models": [entry(model)]} for part, model in origin.items()},
    }
    merge(recipe, folder, tmp_path / "out")
    a, b = (read_model(folder / model) for model in "ab")
    part = next(part for part in family.parts if part.module == module)
    wanted = {
        name: b[name]
        if name in part.before + part.after or name.startswith(f"{part.layers}.")
        else a[name]
        for name in a
    }
    check(family, tmp_path / "out", wanted, exact=True)
