"""Which checkpoints hold codes instead of weights, by dtypes and what lies beside them."""

from __future__ import annotations

from typing import Any

import pytest

from jmerge.arch.quantised import Quantised, without_quantisation
from jmerge.dtypes import TensorSpec

Q = "model.layers.0.self_attn.q_proj"
EXPERTS = "model.layers.0.mlp.experts"
PLAIN = {
    "model.embed_tokens.weight": "BF16 16 8",
    "model.layers.0.input_layernorm.weight": "BF16 8",
    "model.layers.0.self_attn.v_proj.weight": "BF16 8 8",
    "model.layers.0.self_attn.v_proj.bias": "F32 8",
}


def specs(*tables: dict[str, str]) -> dict[str, TensorSpec]:
    """Specs of tables of dtype and shape."""
    found = {}
    for table in tables:
        for name, text in table.items():
            dtype, *shape = text.split()
            found[name] = TensorSpec(dtype, tuple(map(int, shape)))
    return found


def state(module: str, **tensors: str) -> dict[str, str]:
    """Tensors of a module; two underscores in a keyword stand for a dot, three for a dot and an underscore."""
    return {
        f"{module}.{key.replace('___', '._').replace('__', '.')}": text
        for key, text in tensors.items()
    }


# How published checkpoints of each scheme store one weight, and what it is said to look like.
SCHEMES: dict[str, tuple[dict[str, str], str]] = {
    "fp8 by tensor": (state(Q, weight="F8_E4M3 8 8", weight_scale="F32"), "FP8"),
    "fp8 by block": (state(Q, weight="F8_E4M3 8 8", weight_scale_inv="F32 1 1"), "FP8"),
    "fp8 e5m2": (state(Q, weight="F8_E5M2 8 8", scale="F32 1"), "FP8"),
    "fp8, scale named first": (state(Q, weight="F8_E4M3 8 8", scale_weight="F32"), "FP8"),
    "fp8, other words": (state(Q, weight="F8_E4M3 8 8", weights_scaling_factor="F32"), "FP8"),
    "fp8, scale of inputs": (state(Q, weight="F8_E4M3 8 8", input_scale="F32"), "FP8"),
    "fp8, an unknown word": (state(Q, weight="F8_E4M3 8 8", weight_s="F32 1 1"), "FP8"),
    "fp8, a word of nobody's": (state(Q, weight="F8_E4M3 8 8", dq="BF16 8"), "FP8"),
    "fp8, a quantiser of its own": (
        state(Q, weight="F8_E4M3 8 8", weight_quantizer___amax="F32"),
        "FP8",
    ),
    "fp8, its scale outside of the module": (
        state(Q, weight="F8_E4M3 8 8") | {f"{Q}_scale": "F32"},
        "FP8",
    ),
    "fp8 of experts": (
        state(EXPERTS, gate_up_proj="F8_E4M3 4 8 8", gate_up_proj_scale_inv="F32 4 1 1"),
        "FP8",
    ),
    "mxfp8": (state(Q, weight="F8_E4M3 8 32", weight_scale="U8 8 1"), "MXFP8"),
    "mxfp8, scales of their dtype": (state(Q, weight="F8_E4M3 8 32", scale="F8_E8M0 8 1"), "MXFP8"),
    "mxfp4": (
        state(EXPERTS, down_proj_blocks="U8 4 8 1 16", down_proj_scales="U8 4 8 1"),
        "MXFP4",
    ),
    "nvfp4": (
        state(Q, weight="U8 8 4", weight_scale="F8_E4M3 8 1", weight_scale_2="F32"),
        "NVFP4",
    ),
    "packed by compressed-tensors": (
        state(Q, weight_packed="I32 8 1", weight_scale="BF16 8 1", weight_shape="I64 2"),
        "compressed-tensors",
    ),
    "int8 by compressed-tensors": (state(Q, weight="I8 8 8", weight_scale="BF16 8 1"), "int8"),
    "nf4": (
        state(Q, weight="U8 32 1", weight__absmax="U8 1", weight__quant_map="F32 16")
        | {f"{Q}.weight.quant_state.bitsandbytes__nf4": "U8 80"},
        "bitsandbytes nf4",
    ),
    "nf4 without its state": (state(Q, weight="U8 32 1", weight__absmax="F32 1"), "bitsandbytes"),
    "llm.int8": (state(Q, weight="I8 8 8", SCB="F32 8", weight_format="U8"), "bitsandbytes int8"),
    "gptq": (
        state(Q, qweight="I32 1 8", qzeros="I32 1 1", scales="F16 1 8", g_idx="I32 8"),
        "GPTQ or AWQ",
    ),
    "awq": (state(Q, qweight="I32 8 1", qzeros="I32 1 1", scales="F16 1 8"), "GPTQ or AWQ"),
    "mlx": (state(Q, weight="U32 8 1", scales="F16 8 1", biases="F16 8 1"), "MLX"),
    "hqq": (state(Q, W_q="U8 4 8", scale="F16 8 1", zero="F16 8 1", shape="I64 2"), "HQQ"),
    "quanto": (state(Q, weight___data="I8 8 8", weight___scale="F32 8 1"), "quanto"),
    "quanto, packed": (
        state(Q, weight___data___data="U8 32", weight___scale="F32 8 1"),
        "quanto",
    ),
    "torchao": (
        state(Q, weight__tensor_impl__int_data="I8 8 8", weight__tensor_impl__scale="F32 8"),
        "torchao",
    ),
    "torchao, flat": (state(Q, _weight_qdata="I8 8 8", _weight_scale="F32 8 1"), "torchao"),
    "eetq": (state(Q, weight="I8 8 8", weight_scales="F16 8"), "int8"),
    "a codebook": (
        state(Q, codes="I16 8 1 2", codebooks="F16 2 16 1 8", scales="F16 8 1 1 1"),
        "codes of a codebook",
    ),
    "sub-byte floats": (state(Q, weight="F4 8 8"), "codes in F4"),
    "packed, its scale in config.json": (state(Q, weight="U8 2 8"), "codes in U8"),
    "a mask of what is kept": (
        state(Q, weight__compressed="BF16 24", weight__bitmask="U8 8 1", weight__shape="I64 2"),
        "compressed-tensors",
    ),
    "nf4, its bytes viewed as numbers": (
        state(Q, weight="BF16 16 1", weight__absmax="F32 1", weight__quant_map="F32 16")
        | {f"{Q}.weight.quant_state.bitsandbytes__nf4": "U8 80"},
        "bitsandbytes nf4",
    ),
    "hqq, its bytes viewed as numbers": (
        state(Q, W_q="F16 4 8", scale="F16 8 1", zero="F16 8 1"),
        "HQQ",
    ),
    "sparse, in the place of the weight": (
        state(Q, compressed="BF16 24", bitmask="U8 8 1", shape="I64 2", row_offsets="I64 8"),
        "compressed-tensors",
    ),
    "marlin": (state(Q, B="I32 4 16", s="F16 1 8", workspace="I32 16"), "codes in I32"),
    "a trellis": (state(Q, trellis="I16 8 16", suh="F16 8", svh="F16 8"), "codes in I16"),
    "indices of a lattice": (
        state(Q, Qidxs="I64 8 2", SU="F16 8", SV="F16 8", codebook_id="I64"),
        "codes of a codebook",
    ),
    "mlx, mxfp4": (state(Q, weight="U32 8 4", scales="U8 8 1"), "MLX"),
    "mxfp4 by matrix": (state(Q, weight="U8 8 16", weight_scale="U8 8 1"), "MXFP4"),
    "outside of any module": ({"proj": "F8_E4M3 8 8", "proj_scale": "F32"}, "FP8"),
}


@pytest.mark.parametrize("case", SCHEMES)
def test_schemes(case: str) -> None:
    """Nothing in config.json is needed; the line names the scheme and both tensors."""
    tensors, scheme = SCHEMES[case]
    found = Quantised(specs(PLAIN, tensors), {})
    assert found.reason is not None and not found.left_over
    assert found.reason.startswith(f"its weights are quantised ({scheme}")
    code = next(name for name in tensors if name in found.reason)
    assert f"{code} is {tensors[code].split()[0]}" in found.reason
    # the weights alone are no reason
    assert Quantised(specs(PLAIN), {}).reason is None


# What models store beside their weights that is no code.
SOUND: dict[str, dict[str, str]] = {
    "fp8 without a scale": state(Q, weight="F8_E4M3 8 8"),
    "fp8 with a scale that is trained": state(Q, weight="F8_E4M3 8 8") | {"logit_scale": "F32"},
    "fp8 beside the scale of a norm": state("model.layers.0.self_attn", scale="F32 8")
    | state(Q, weight="F8_E4M3 8 8"),
    "fp8 beside a layer's scale": state("model.layers.0", layer_scale="F32 8", proj="F8_E4M3 8 8"),
    "positions": state("model.embeddings", position_ids="I64 1 512"),
    "narrow positions": state("model.embeddings", position_ids="I32 1 512", scale="F32"),
    "an index of windows": state(
        "model.attn", relative_position_index="I32 64 64", logit_scale="F32 4 1 1"
    ),
    "counters": state("model.bn", num_batches_tracked="I64", running_mean="F32 8"),
    "a causal mask": state("transformer.h.0.attn", bias="U8 1 1 64 64", masked_bias="F32"),
    "a mask of a weight": state(Q, weight_mask="U8 8 8", weight_orig="F32 8 8"),
    "a mask of bools": state("transformer.h.0.attn", bias="BOOL 1 1 64 64", scale="F32"),
    "bytes of a tokenizer": {"spiece_model": "U8 900", "scale": "F32"},
    "a table of whole numbers": {"model.embed_tokens.weight": "I8 16 8"},
    "experts by token": state(
        "model.layers.0.mlp.gate", weight="BF16 4 8", tid2eid="I32 16 2", scale="F32 1"
    ),
    "a triangle beside a scale": state("model.layers.0.attn", tril="U8 8 8", scale="F32 4")
    | {"model.layers.0.attn.q_proj.weight": "BF16 8 8"},
    "levels beside a codebook": state(
        "model.layers.0.fsq", _levels="I32 5", implicit_codebook="F32 16 5"
    ),
    "scales of a router": state("model.layers.0.router", scale="BF16 8", per_expert_scale="BF16 4")
    | state("model.layers.0.router.proj", weight="BF16 4 8"),
    "scales of streams": state(
        "model.hc_head", hc_fn="F32 4 16", hc_base="F32 4", hc_scale="F32 1"
    ),
    "a scale of a gate": state("model.layers.0.mlp.gate", weight="BF16 4 8", global_scale="F32 4"),
    "a norm called scale": state("model.layers.0.norm", scale="F32 8"),
}


@pytest.mark.parametrize("case", SOUND)
def test_no_false_alarm(case: str) -> None:
    """Plain dtypes, positions, masks and counters are no codes, whatever scale lies beside them."""
    assert Quantised(specs(PLAIN, SOUND[case]), {}).reason is None


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "fp8"}},
        {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
        {"compression_config": {"quant_method": "fp8"}},
        {"quantization": {"bits": 4}, "quantization_config": {"quant_method": "fp8"}},
    ],
)
def test_left_over(config: dict[str, Any]) -> None:
    """config.json that speaks of plain numbers is wrong, whichever key says so; without them nothing is left of it."""
    found = Quantised(specs(PLAIN, SOUND["counters"], SOUND["a norm called scale"]), config)
    assert found.left_over and found.reason is None and "(fp8)" in found.left_over_text()
    plain, changes = without_quantisation({**config, "hidden_size": 8})
    assert not Quantised({}, plain).told and plain["hidden_size"] == 8
    assert {change.new for change in changes} == {None}
    assert config  # as it was


@pytest.mark.parametrize(
    "case",
    [
        "experts by token",
        "levels beside a codebook",
        "scales of a router",
        "scales of streams",
        "a scale of a gate",
        "an index of windows",
    ],
)
def test_left_over_beside_what_a_model_has(case: str) -> None:
    """Scales and whole numbers of the model itself do not make config.json right."""
    config = {"quantization_config": {"quant_method": "fp8"}}
    found = Quantised(specs(PLAIN, SOUND[case]), config)
    assert found.left_over and found.reason is None


@pytest.mark.parametrize("case", ["gptq", "nf4", "fp8 without a scale", "scales of a calibration"])
def test_not_left_over(case: str) -> None:
    """config.json is believed where any tensor may be a code, or a scale lies beside plain weights."""
    calibrated = state(Q, weight="BF16 8 8", input_scale="F32")
    tensors = SCHEMES.get(case, (SOUND.get(case, calibrated), ""))[0]
    found = Quantised(specs(PLAIN, tensors), {"quantization_config": {"quant_method": "x"}})
    assert found.reason == "config.json says that its weights are quantised (x)"
    assert not found.left_over
