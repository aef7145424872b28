"""Names of the same tensor in files of different origin."""

from __future__ import annotations

import pytest

from jmerge.arch.match import match_templates

# (what differs, in the donor, in the other model)
PAIRS = [
    ("bert", "bert.encoder.layer.{}.output.dense.bias", "encoder.layer.{}.output.dense.bias"),
    ("roberta", "embeddings.word_embeddings.weight", "roberta.embeddings.word_embeddings.weight"),
    (
        "distilbert",
        "distilbert.transformer.layer.{}.ffn.lin1.weight",
        "transformer.layer.{}.ffn.lin1.weight",
    ),
    ("transformer", "transformer.h.{}.ln_1.weight", "h.{}.ln_1.weight"),
    ("model", "layers.{}.mlp.up_proj.weight", "model.layers.{}.mlp.up_proj.weight"),
    ("wrappers", "bert.encoder.layer.{}.x.weight", "roberta.encoder.layer.{}.x.weight"),
    ("gamma", "embeddings.LayerNorm.weight", "embeddings.LayerNorm.gamma"),
    ("beta", "embeddings.LayerNorm.beta", "embeddings.LayerNorm.bias"),
    ("norm", "model.norm.weight", "model.norm.gamma"),
    ("both", "bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
    (
        "vision_model",
        "vision_tower.encoder.layers.{}.mlp.fc1.bias",
        "vision_tower.vision_model.encoder.layers.{}.mlp.fc1.bias",
    ),
    (
        "nested vision_model",
        "model.vision_tower.post_layernorm.bias",
        "vision_tower.vision_model.post_layernorm.bias",
    ),
    (
        "text order",
        "model.language_model.layers.{}.input_layernorm.weight",
        "language_model.model.layers.{}.input_layernorm.weight",
    ),
    ("head", "lm_head.weight", "language_model.lm_head.weight"),
    (
        "block_sparse_moe",
        "model.layers.{}.mlp.gate.weight",
        "model.layers.{}.block_sparse_moe.gate.weight",
    ),
    (
        "router",
        "model.layers.{}.mlp.router.weight",
        "model.layers.{}.block_sparse_moe.gate.weight",
    ),
    (
        "router inside",
        "model.layers.{}.block_sparse_moe.router.weight",
        "model.layers.{}.block_sparse_moe.router.layer.weight",
    ),
]


@pytest.mark.parametrize(("donor", "other"), [p[1:] for p in PAIRS], ids=[p[0] for p in PAIRS])
def test_spellings_pair(donor: str, other: str) -> None:
    """Either spelling finds the other one; the donor's is used."""
    assert match_templates([donor], [other]) == {other: donor}
    assert match_templates([other], [donor]) == {donor: other}


@pytest.mark.parametrize(
    ("donor", "other"),
    [
        ("model.norm.weight", "model.final_norm.weight"),
        ("layers.{}.ls.weight", "layers.{}.ls.gamma"),
        ("layers.{}.gamma.weight", "layers.{}.beta.weight"),
        ("layers.{}.norm1.weight", "layers.{}.norm2.weight"),
        ("layers.{}.norm.weight", "layers.{}.norm.beta"),
        ("vision_tower.encoder.weight", "vision_model.encoder.weight"),
        ("language_model.layers.{}.w", "vision_model.layers.{}.w"),
        ("layers.{}.experts.0.w", "layers.{}.experts.1.w"),
    ],
)
def test_different_tensors_stay_apart(donor: str, other: str) -> None:
    """Names that are no spellings of one tensor keep their own."""
    assert match_templates([donor], [other]) == {other: other}
    assert match_templates([other], [donor]) == {donor: donor}


@pytest.mark.parametrize(
    ("donor", "other"),
    [
        (["model.norm.weight", "transformer.norm.weight"], ["norm.weight"]),
        (["norm.weight"], ["model.norm.weight", "transformer.norm.weight"]),
        (["bert.norm.gamma", "norm.gamma"], ["norm.weight", "roberta.norm.weight"]),
    ],
)
def test_ambiguous_names_stay_apart(donor: list[str], other: list[str]) -> None:
    """Two candidates on either side: no guess."""
    assert match_templates(donor, other) == {name: name for name in other}


def test_equal_names_pair_before_any_other() -> None:
    """A name that both models have is not given away, nor is its partner."""
    donor = ["model.norm.weight", "norm.weight"]
    assert match_templates(donor, ["norm.weight"]) == {"norm.weight": "norm.weight"}
    assert match_templates(["model.norm.weight"], donor) == {name: name for name in donor}


def test_what_is_left_by_equal_names_may_pair() -> None:
    """Three names in both; one of them is spelled differently."""
    donor = ["a.weight", "model.norm.weight", "b.weight"]
    other = ["b.weight", "norm.gamma", "a.weight"]
    assert match_templates(donor, other) == {
        "a.weight": "a.weight",
        "b.weight": "b.weight",
        "norm.gamma": "model.norm.weight",
    }


def test_whole_models_pair_one_to_one() -> None:
    """BertModel as published long ago, against BertForMaskedLM of today."""
    shared = [
        "embeddings.word_embeddings.weight",
        "embeddings.LayerNorm.weight",
        "embeddings.LayerNorm.bias",
        "encoder.layer.{}.attention.output.LayerNorm.weight",
        "encoder.layer.{}.attention.output.LayerNorm.bias",
        "encoder.layer.{}.output.LayerNorm.weight",
        "encoder.layer.{}.output.LayerNorm.bias",
        "encoder.layer.{}.output.dense.weight",
    ]
    old = [
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        )
        for name in shared
    ]
    donor = [*(f"bert.{name}" for name in shared), "cls.predictions.transform.LayerNorm.weight"]
    pairs = match_templates(donor, [*old, "pooler.dense.weight"])
    assert pairs == {
        **{name: f"bert.{new}" for name, new in zip(old, shared, strict=True)},
        "pooler.dense.weight": "pooler.dense.weight",
    }
