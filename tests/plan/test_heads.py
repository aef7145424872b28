"""Whether a head is the embedding: by class, flag and files of each model, alike in any order of the models."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partialkit import SOUP, refused, run, write

import jmerge
from jmerge.arch.infer import infer_layout
from jmerge.arch.ties import flag, is_headless, is_tied_unstored
from jmerge.dtypes import TensorSpec
from jmerge.plan.steps import Plan
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CAUSAL = llama_config(tied=True)
REWARD = llama_config() | {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}


def tensors(seed: int, kind: str) -> dict[str, np.ndarray]:
    """A model whose head is absent, equal to its embedding, or its own; or one with a score instead."""
    made = llama_tensors(seed, tied=kind != "own")
    if kind == "equal":
        made[HEAD] = made[TABLE]
    if kind == "reward":
        made["score.weight"] = np.ones((1, 8), np.float32)
    return made


def save(
    folder: Path, name: str, seed: int, kind: str, config: dict[str, Any] | None = None
) -> None:
    write_checkpoint(folder / name, tensors(seed, kind), CAUSAL if config is None else config)


def planned(folder: Path, recipe: str) -> Plan:
    return jmerge.plan(write(folder, recipe))


RECIPES = {
    "linear": SOUP,
    "slerp": """\
merge_method: slerp
base_model: {a}
models:
  - model: {a}
  - model: {b}
parameters: {t: 0.5}
""",
    "dare_linear": """\
merge_method: dare_linear
base_model: {a}
models:
  - model: {b}
parameters: {weight: 0.5, density: 0.5}
""",
    "passthrough": """\
merge_method: passthrough
slices:
  - sources: [{model: {a}, layer_range: [0, 1]}]
  - sources: [{model: {b}, layer_range: [1, 2]}]
""",
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kinds", [*itertools.product(("absent", "equal"), repeat=2)])
def test_all_tied(tmp_path: Path, recipe: str, kinds: tuple[str, str]) -> None:
    """The head is stored where the donor stores it, and made exactly as the embedding is: of the same, with the same
    random numbers, so that config.json stays true."""
    for seed, (name, kind) in enumerate(zip("ab", kinds, strict=True)):
        save(tmp_path, name, seed, kind)
    plan = planned(tmp_path, RECIPES[recipe])
    steps = {step.name: step for step in plan.steps}
    assert (HEAD in steps) == (kinds[0] == "equal")
    if HEAD in steps:
        head, table = steps[HEAD], steps[TABLE]
        assert (head.inputs, head.hyperparameters, head.keys) == (
            table.inputs,
            table.hyperparameters,
            table.keys,
        )
    assert {getattr(item, "name", None) for item in steps[TABLE].inputs} == {TABLE}
    assert plan.config["tie_word_embeddings"] is True
    assert not any("head" in warning for warning in plan.warnings)


@pytest.mark.parametrize("kinds", [("equal", "absent"), ("equal", "equal")])
def test_all_tied_stays_tied(tmp_path: Path, kinds: tuple[str, str]) -> None:
    """Written out, with random numbers."""
    for seed, (name, kind) in enumerate(zip("ab", kinds, strict=True)):
        save(tmp_path, name, seed, kind)
    made = run(tmp_path, RECIPES["dare_linear"])
    assert made.tensors[HEAD].tobytes() == made.tensors[TABLE].tobytes()
    assert made.config["tie_word_embeddings"] is True


@pytest.mark.parametrize("names", ["ab", "ba"])
@pytest.mark.parametrize("kind", ["absent", "equal"])
def test_one_is_tied(tmp_path: Path, kind: str, names: str) -> None:
    """The head is made of the one's embedding and the other's head, whichever is the donor, and config.json unties it."""
    save(tmp_path, names[0], 0, kind)
    save(tmp_path, names[1], 1, "own")
    made = run(tmp_path, SOUP)
    tied, own = (1, 3) if names == "ab" else (3, 1)
    wanted = (tied * tensors(0, kind)[TABLE] + own * tensors(1, "own")[HEAD]) / 4
    np.testing.assert_allclose(made.tensors[HEAD], wanted, rtol=1e-6)
    assert made.config["tie_word_embeddings"] is False


@pytest.mark.parametrize("said", [True, False, None])
def test_heads_of_their_own_never_change_the_flag(tmp_path: Path, said: bool | None) -> None:
    """As FLAVA, whose flag is of another head than the one that is stored."""
    config = {key: value for key, value in CAUSAL.items() if key != "tie_word_embeddings"}
    config |= {} if said is None else {"tie_word_embeddings": said}
    for seed, name in enumerate("ab"):
        save(tmp_path, name, seed, "own", config)
    plan = planned(tmp_path, SOUP)
    assert plan.tied is None and plan.config == config and plan.changes == ()


# Models that have no head


def test_a_reward_model_among_causal_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its embedding is no head. What neither has a place for is refused, and the line that is named does."""
    save(tmp_path, "a", 0, "own", llama_config())
    save(tmp_path, "b", 1, "reward", REWARD)
    (error,) = refused(tmp_path, SOUP, capsys)
    assert "score.weight of b is not a tensor of a" in error
    assert "LlamaForSequenceClassification" in error and "LlamaForCausalLM" in error
    assert "'except: [score.weight]'" in error
    made = run(tmp_path, SOUP + "except: [score.weight]\n")
    assert made.tensors[HEAD].tobytes() == tensors(0, "own")[HEAD].tobytes()
    assert made.tensors.keys() == tensors(0, "own").keys()
    assert made.config["tie_word_embeddings"] is False


def test_a_causal_model_among_reward_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class without a head gets none."""
    save(tmp_path, "a", 0, "reward", REWARD)
    save(tmp_path, "b", 1, "own", llama_config())
    (error,) = refused(tmp_path, SOUP, capsys)
    assert (
        "lm_head.weight of b is not a tensor of a" in error
        and "'except: [lm_head.weight]'" in error
    )
    made = run(tmp_path, SOUP + "except: [lm_head.weight]\n")
    assert made.tensors.keys() == tensors(0, "reward").keys()
    assert made.tensors["score.weight"].tobytes() == tensors(0, "reward")["score.weight"].tobytes()


def test_the_change_of_reward_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their bodies can be added to a causal model."""
    save(tmp_path, "a", 0, "own", llama_config())
    for seed, name in enumerate("bc"):
        save(tmp_path, name, 1 + seed, "reward", REWARD)
    recipe = """\
merge_method: task_arithmetic
base_model: {a}
models: [{model: {b}}, {model: {c}}]
parameters: {weight: 0.5}
"""
    errors = refused(tmp_path, recipe, capsys)
    assert len(errors) == 2 and all("'except: [score.weight]'" in error for error in errors)
    plan = planned(tmp_path, recipe + "except: [score.weight]\n")
    assert {step.name for step in plan.steps} == tensors(0, "own").keys()


@pytest.mark.parametrize(
    ("config", "stored", "wanted"),
    [
        ({}, "absent", True),
        ({"tie_word_embeddings": False}, "absent", False),
        ({"text_config": {"tie_word_embeddings": True}}, "absent", True),
        (
            {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}},
            "absent",
            True,
        ),
        ({"text_config": {"tie_word_embeddings": False}}, "absent", False),
        (
            {"tie_word_embeddings": False, "vision_config": {"tie_word_embeddings": True}},
            "absent",
            False,
        ),
        ({}, "reward", False),
        ({"architectures": ["LlamaForCausalLM"]}, "reward", True),
        ({"architectures": ["GPT2LMHeadModel"]}, "absent", True),
        ({"architectures": ["GPT2DoubleHeadsModel"]}, "absent", True),
        ({"architectures": ["T5ForConditionalGeneration"]}, "absent", True),
        ({"architectures": ["BertForMaskedLM"]}, "absent", True),
        *(
            ({"architectures": [name]}, "absent", False)
            for name in (
                "LlamaModel",
                "LlamaForSequenceClassification",
                "LlamaForTokenClassification",
                "LlamaForQuestionAnswering",
                "BertForMultipleChoice",
                "BertForNextSentencePrediction",
                "Qwen2ForRewardModel",
                "InternLM2ForRewardModel",
                "Qwen3ForTextEmbedding",
            )
        ),
    ],
)
def test_a_head_that_is_not_stored(config: dict[str, Any], stored: str, wanted: bool) -> None:
    """Class, flag and files decide."""
    specs = {n: TensorSpec("F32", each.shape) for n, each in tensors(0, stored).items()}
    layout = infer_layout(specs, {"vocab_size": 16, **config})
    assert is_tied_unstored(config, layout) == wanted
    assert flag({}) is None and is_headless({}, layout) == (stored == "reward")


@pytest.mark.parametrize(("names", "head"), [("ab", "score.weight"), ("ba", HEAD)])
def test_a_score_of_a_model_that_names_no_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: str, head: str
) -> None:
    """Its tensors tell, whatever the order: one model has a head for tokens, and the other a score instead."""
    save(tmp_path, names[0], 1, "own")
    unnamed = {key: value for key, value in REWARD.items() if key != "architectures"}
    save(tmp_path, names[1], 2, "reward", unnamed)
    (line,) = [
        line
        for line in refused(tmp_path, SOUP, capsys)
        if f"{head} of b is not a tensor of a" in line
    ]
    assert f"'except: [{head}]'" in line
    made = run(tmp_path, f"{SOUP}except: [{head}]\n")
    assert head not in made.tensors
