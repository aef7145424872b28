"""Vocabularies of several models on a common one: rows, aligned tables as recipes have them, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import jmerge
from jmerge.testing.close import assert_close
from jmerge.testing.tiny import llama_tensors, write_llama

ONE = {"<s>": 0, "a": 1, "b": 2}
TWO = {"b": 0, "<s>": 1, "c": 2, "d": 3}


def tokenizer(ids: dict[str, int]) -> Tokenizer:
    return Tokenizer(WordLevel(ids, unk_token="<s>"))


def model(folder: Path, seed: int, ids: dict[str, int]) -> Path:
    """A model with this tokenizer and a row for each token."""
    write_llama(folder, seed, vocab=len(ids))
    tokenizer(ids).save(str(folder / "tokenizer.json"))
    return folder


def as_transformers(ids: dict[str, int], place: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer(ids))


KINDS: dict[str, Any] = {
    "dict": lambda ids, place: ids,
    "tokenizers": lambda ids, place: tokenizer(ids),
    "transformers": as_transformers,
    "place": lambda ids, place: model(place / str(len(ids)), 0, ids),
    "checkpoint": lambda ids, place: jmerge.open_checkpoint(model(place / str(len(ids)), 0, ids)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_same_tokens(kind: str, tmp_path: Path) -> None:
    models = [KINDS[kind](ids, tmp_path) for ids in (ONE, TWO)]
    union = jmerge.align_vocabularies(models)
    assert union.tokens == ("<s>", "a", "b", "c", "d")
    np.testing.assert_array_equal(union.rows, [[0, 1, 2, -1, -1], [1, -1, 0, 2, 3]])
    assert union.rows.dtype == np.int32
    first = jmerge.align_vocabularies(models, vocabulary="first")
    assert first.tokens == ("<s>", "a", "b")
    np.testing.assert_array_equal(first.rows, [[0, 1, 2], [1, -1, 0]])


def test_ids_of_no_token_have_no_row() -> None:
    found = jmerge.align_vocabularies([{"a": 0, "c": 2}, {"c": 0}])
    assert found.tokens == ("a", None, "c")
    np.testing.assert_array_equal(found.rows, [[0, -1, 2], [-1, -1, 0]])


def test_tables_are_aligned_as_a_recipe_aligns_them(tmp_path: Path) -> None:
    """Three models, the second and third of which share a token that the base lacks."""
    three = {"c": 0, "a": 1, "e": 2}
    vocabularies = (ONE, TWO, three)
    for seed, ids in enumerate(vocabularies):
        model(tmp_path / f"m{seed}", seed, ids)
    names = [str(tmp_path / f"m{seed}") for seed in range(3)]
    weights = (0.2, 0.3, 0.5)
    recipe = {
        "merge_method": "linear",
        "base_model": names[0],
        "models": [
            {"model": name, "parameters": {"weight": weight}}
            for name, weight in zip(names, weights, strict=True)
        ],
        "tokenizer": {"source": "union"},
    }
    want = jmerge.merge(recipe)
    found = jmerge.align_vocabularies(names)
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        tables = [
            llama_tensors(seed, vocab=len(ids))[table] for seed, ids in enumerate(vocabularies)
        ]
        aligned = found.align(tables)
        mean = np.sum(
            [w * np.asarray(each) for w, each in zip(weights, aligned, strict=True)], axis=0
        )
        assert_close(want[table], mean)
        traced = jax.jit(found.align)([jnp.asarray(each) for each in tables])
        for one, other in zip(aligned, traced, strict=True):
            assert_close(np.asarray(other), np.asarray(one))


def test_rows_between_tokens_are_the_mean_of_all() -> None:
    found = jmerge.align_vocabularies([{"a": 0, "c": 2}, {"c": 0}])
    tables = [np.array([[1.0], [9.0], [3.0]], np.float32), np.array([[5.0]], jnp.bfloat16)]
    one, two = found.align(tables)
    np.testing.assert_array_equal(one, [[1], [2], [3]])
    np.testing.assert_array_equal(two, [[1], [3], [5]])
    assert (one.dtype, two.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: jmerge.align_vocabularies([]), TypeError, "^models: expected a list of at least"),
        (lambda: jmerge.align_vocabularies("a"), TypeError, "^models: expected a list of at least"),
        (lambda: jmerge.align_vocabularies([5]), TypeError, r"^models\[0\]: expected a checkpoint"),
        (
            lambda: jmerge.align_vocabularies([{"a": -1}]),
            ValueError,
            r"^models\[0\]: expected tokens with ids from 0 on, found 'a': -1",
        ),
        (
            lambda: jmerge.align_vocabularies([ONE], vocabulary="unoin"),  # type: ignore[arg-type]
            ValueError,
            "expected 'union' or 'first', found 'unoin'; did you mean 'union'",
        ),
        (
            lambda: jmerge.align_vocabularies([ONE, TWO]).align([np.ones((3, 1))]),
            ValueError,
            "^tables: expected 2, one for each model, found 1",
        ),
        (
            lambda: jmerge.align_vocabularies([ONE]).align([np.ones((2, 1))]),
            ValueError,
            r"^tables\[0\]: expected an array \[at least 3 rows, width\], found \[2, 1\]",
        ),
        (
            lambda: jmerge.align_vocabularies([ONE, ONE]).align([np.ones((3, 1)), np.ones((3, 2))]),
            ValueError,
            r"^tables\[1\]: expected rows of 1 numbers, as those of tables\[0\], found 2",
        ),
    ],
)
def test_what_is_wrong_is_told(call: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        call()


def test_a_model_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    write_llama(tmp_path / "a", 0)
    with pytest.raises(jmerge.CheckpointError, match=r"models\[0\]: has no tokenizer; add its"):
        jmerge.align_vocabularies([tmp_path / "a"])
