"""Rows of mixtures of experts, of state space models and of hybrids of these and attention."""

from __future__ import annotations

import transformers
from familykit import LLAMA_PART, Family, plain, text_inputs

FAMILIES = (
    Family(
        name="mixtral",
        model=transformers.MixtralForCausalLM,
        config=plain(
            transformers.MixtralConfig,
            num_key_value_heads=2,
            num_local_experts=4,
            num_experts_per_tok=2,
        ),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
        quick=True,
    ),
)
