"""What a row of the matrix of families is made of: its parts, sizes of tiny models, what goes into them.

A new family is one row: a `Family` in the file of its kind. Rows say by literal names which tensors come before, in and
after the layers, and nothing that knows architectures in jmerge takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

Tensors = dict[str, np.ndarray]
Inputs = dict[str, torch.Tensor]

VOCAB, HIDDEN, INNER, HEADS = 64, 16, 24, 4
IMAGE_TOKEN = VOCAB - 1
FULL, SLIDING = "full_attention", "sliding_attention"


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
    parts: tuple[Part, ...] = ()
    inputs: Callable[[], Inputs]
    outputs: tuple[str, ...] = ("logits",)  # what of a forward pass is looked at
    noise: float = 1.5  # of weights; more where attention would be too even to show in the outputs
    tolerance: float = 1e-4  # of outputs; more where rounding of the weights grows on its way there
    silent: str = "(?!)"  # tensors that cannot change the output, as a pattern
    stored: Callable[[Tensors], Tensors] = dict  # what the input files hold, if not what is saved
    copied: str = (
        "(?!)"  # stored tensors that are no weights, so that the base's stay, as a pattern
    )
    tied: tuple[str, ...] = ()  # parameters of the loaded model that are one tensor
    no_stack: str = ""  # why its layers cannot be stacked, for the docs; empty: they can
    quick: bool = False  # its mean and its stack are tried in the default suite too


# Sizes


def depth(stacked: bool) -> int:
    """Layers of an input, and of [0, 2) and [1, 3) of two of them."""
    return 4 if stacked else 3


def each_layer(stacked: bool, *entries: Any) -> list[Any]:
    """A list with an entry for each of the three layers of an input, or for those of the stack."""
    return [*entries[:2], *entries[1:]] if stacked else list(entries)


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


def plain(
    config: type[PretrainedConfig], by_layer: Mapping[str, Sequence[Any]] | None = None, **rest: Any
) -> Callable[[bool], PretrainedConfig]:
    """The configs of a family with one stack; `by_layer` are lists with an entry for each of its three layers."""

    def build(stacked: bool) -> PretrainedConfig:
        lists = {key: each_layer(stacked, *entries) for key, entries in (by_layer or {}).items()}
        return config(**text_sizes(depth(stacked)) | rest | lists)

    return build


# Names


def weight_and_bias(*modules: str) -> tuple[str, ...]:
    """The names of both tensors of each module."""
    return tuple(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))


LLAMA_PART = Part(
    layers="model.layers",
    before=("model.embed_tokens.weight",),
    after=("model.norm.weight", "lm_head.weight"),
)
# the head is the embedding
TIED_PART = Part(
    layers="model.layers",
    before=("model.embed_tokens.weight",),
    after=("model.norm.weight",),
)
TIED = ("model.embed_tokens.weight", "lm_head.weight")


# Inputs


def token_ids(length: int = 12, seed: int = 0) -> torch.Tensor:
    """Two rows of ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, IMAGE_TOKEN, (2, length), generator=generator)


def pixels(*shape: int, seed: int = 1) -> torch.Tensor:
    """A picture, or several, of noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text_inputs() -> Inputs:
    """For a causal language model."""
    return {"input_ids": token_ids()}


def both_sides() -> Inputs:
    """Different tokens for an encoder and a decoder."""
    return {"input_ids": token_ids(), "decoder_input_ids": token_ids(7, seed=1)}
