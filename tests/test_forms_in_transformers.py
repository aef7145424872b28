"""Models saved by transformers in two forms: merged, they load whole and give the logits of the mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmerge

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
FAMILIES = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {"num_experts": 4, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20},
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "num_experts": 4,
            "moe_intermediate_size": 12,
            "head_dim": 4,
            "norm_topk_prob": True,
            "num_experts_per_tok": 2,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            "n_routed_experts": 4,
            "moe_intermediate_size": 12,
            "num_key_value_heads": 4,
            "first_k_dense_replace": 1,
            "n_group": 2,
            "topk_group": 1,
            "head_dim": 4,
            "num_experts_per_tok": 2,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 4,
        },
    ),
    "jamba": (
        "JambaConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_hidden_layers": 4,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "phimoe": ("PhimoeConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": ("GraniteMoeConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def random_model(config: Any, seed: int) -> Any:
    """A model in which no tensor is constant."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(torch.arange(1, 13)[None], use_cache=False).logits.numpy()
    assert np.isfinite(found).all()
    return found


def loaded(folder: Path) -> Any:
    """The model of a folder, to which nothing is missing."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def mean_of(one: Any, other: Any) -> Any:
    """The model half-way between two, as transformers has them in memory."""
    made = type(one)(one.config).float().eval()
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    made.load_state_dict({name: (mine[name] + theirs[name]) / 2 for name in mine})
    return made


def merged(folder: Path, first: str, second: str) -> Path:
    (folder / "x.yml").write_text(
        f"merge_method: linear\nmodels:\n- model: {folder / first}\n- model: {folder / second}\n"
        "parameters: {weight: 0.5}\n"
    )
    out = folder / f"{first}-{second}"
    made = jmerge.merge(folder / "x.yml", out)
    assert made.plan.unused == () and made.strange == ()
    assert all(len(step.inputs) == 2 for step in made.plan.steps)
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_as_published_and_as_in_memory(family: str, tmp_path: Path) -> None:
    name, own = FAMILIES[family]
    config = getattr(transformers, name)(**SIZES | own)
    models = [random_model(config, seed) for seed in range(2)]
    for number, model in enumerate(models):
        model.save_pretrained(tmp_path / f"published{number}")
        model.save_pretrained(tmp_path / f"memory{number}", save_original_format=False)
    names = [
        set(jmerge.open_checkpoint(tmp_path / form).index) for form in ("published0", "memory0")
    ]
    assert names[0] != names[1]
    wanted = logits(mean_of(*models))
    for first, second in (("published0", "memory1"), ("memory0", "published1")):
        out = merged(tmp_path, first, second)
        index = jmerge.open_checkpoint(out).index
        assert set(index) == set(jmerge.open_checkpoint(tmp_path / first).index)
        np.testing.assert_allclose(logits(loaded(out)), wanted, rtol=2e-4, atol=2e-5)


def test_phi3_and_llama(tmp_path: Path) -> None:
    """One model under the names of two classes gives the same logits, and each can be merged into the other."""
    sizes = SIZES | {"bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-5}
    phi = random_model(transformers.Phi3Config(**sizes), 0)
    llama = random_model(transformers.LlamaConfig(**sizes), 1)
    phi.save_pretrained(tmp_path / "phi3")
    llama.save_pretrained(tmp_path / "llama")
    as_phi = phi_of(llama, phi)
    np.testing.assert_allclose(logits(as_phi), logits(llama), rtol=1e-4, atol=1e-5)
    wanted = logits(mean_of(phi, as_phi))
    for first, second in (("phi3", "llama"), ("llama", "phi3")):
        found = loaded(merged(tmp_path, first, second))
        assert found.config.model_type == first
        np.testing.assert_allclose(logits(found), wanted, rtol=2e-4, atol=2e-5)


def phi_of(llama: Any, like: Any) -> Any:
    """A llama as a Phi-3, its projections fused by torch."""
    weights = dict(llama.state_dict())
    for layer in range(SIZES["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        rows = [weights.pop(f"{at}.self_attn.{part}_proj.weight") for part in "qkv"]
        weights[f"{at}.self_attn.qkv_proj.weight"] = torch.cat(rows)
        halves = [weights.pop(f"{at}.mlp.{part}_proj.weight") for part in ("gate", "up")]
        weights[f"{at}.mlp.gate_up_proj.weight"] = torch.cat(halves)
    made = type(like)(like.config).float().eval()
    made.load_state_dict(weights)
    return made
