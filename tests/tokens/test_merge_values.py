"""Merges with a tokenizer, through the command: the rows of the output are those that the rules say, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenkit as kit
from mergeplace import EMBED, HEAD, Place

BASE = [f"w{i}" for i in range(64)]
EXTRA = {"<|im_start|>": {"special": True}, "<|im_end|>": {"special": True}}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def three(place: Place) -> Place:
    """A base of 64 tokens, a chat model with two more, and one with four that have no row."""
    place.base = place.model("base", kit.words(*BASE))
    place.chat = place.model("chat", kit.words(*BASE, added=EXTRA))
    ghosts: dict[str, Any] = {f"<ghost{i}>": {} for i in range(4)}
    place.padded = place.model("padded", kit.words(*BASE, added=ghosts), rows=64)
    return place


def tokens_of(place: Place) -> int:
    return kit.size_of((place.out / "tokenizer.json").read_text())


@pytest.mark.parametrize(
    ("tail", "tokens", "rows"),
    [
        ("tokenizer_source: base", 64, 64),
        ("tokenizer_source: union", 66, 66),
        ("tokenizer: {source: '{chat}'}", 66, 66),
        ("tokenizer: {source: union, pad_to_multiple_of: 16}", 66, 80),
        ("tokenizer: {source: base, pad_to_multiple_of: 48}", 64, 96),
    ],
)
def test_three_models(tail: str, tokens: int, rows: int, three: Place) -> None:
    """Rows of tokens, of tokens that some lack, and of none; ghost tokens are nowhere."""
    made = three.run(three.linear("base", "chat", "padded", tail=tail))
    assert tokens_of(three) == tokens and made.config["vocab_size"] == rows
    for name in (EMBED, HEAD):
        tables = []
        for model in (three.base, three.chat, three.padded):
            table = model[name][:tokens]
            if len(table) < tokens:
                table = np.concatenate([table, three.chat[name][64:]])
            mean = table.mean(axis=0, dtype=np.float64).astype(np.float32)
            tables.append(np.concatenate([table, np.tile(mean, (rows - tokens, 1))]))
        wanted = tables[0] + 2 * tables[1] + 3 * tables[2]
        found = np.asarray(made[name])
        np.testing.assert_array_equal(found[:tokens], wanted[:tokens])
        np.testing.assert_allclose(found[tokens:], wanted[tokens:], rtol=1e-6)
    assert not any("ghost" in (line["token"] or "") for line in three.table())


def test_without_a_tokenizer_key_other_sizes_are_refused(three: Place) -> None:
    """With the lines that would do."""
    from said import Said

    said = Said(str(three.linear("base", "chat", tail="")), str(three.folder / "out"))
    assert said.code == 2 and said.out == ""
    (line,) = said.errors
    assert "the vocabularies differ; add 'tokenizer_source: union'" in line and "x.yml:6" in line
    assert not list(three.folder.glob("out*"))


@pytest.fixture
def lacking(place: Place) -> Place:
    """A base without a token that both other models have, in other places."""
    place.base = place.model("base", kit.words("u", "x"))
    place.one = place.model("one", kit.words("u", "t", "x"))
    place.two = place.model("two", kit.words("x", "t", "u"))
    return place


def test_the_mean_of_others_has_the_weight_of_the_model_that_lacks_it(lacking: Place) -> None:
    """(1 avg + 2 x1 + 3 x2) / 6 with weights 1, 2 and 3."""
    recipe = lacking.linear("base", "one", "two", tail="tokenizer_source: union")
    recipe.write_text(recipe.read_text().replace("normalize: false", "normalize: true"))
    made = lacking.run(recipe)
    one, two = lacking.one[EMBED][1], lacking.two[EMBED][1]
    average = (one + two) / 2
    wanted = (average + 2 * one + 3 * two) / 6
    np.testing.assert_array_equal(np.asarray(made[EMBED])[2], wanted)
    x = (lacking.base[EMBED][1] + 2 * lacking.one[EMBED][2] + 3 * lacking.two[EMBED][0]) / 6
    np.testing.assert_allclose(np.asarray(made[EMBED])[1], x, rtol=2e-7)
    assert any("mean of the models that have them" in line for line in lacking.said.out.split("\n"))


def test_task_arithmetic_adds_changes_to_the_mean(lacking: Place) -> None:
    """avg + (x1 - avg) + (x2 - avg)."""
    recipe = lacking.recipe(
        "merge_method: task_arithmetic\nbase_model: {base}\ntokenizer_source: union\nmodels:\n"
        "- {model: '{one}', parameters: {weight: 1}}\n- {model: '{two}', parameters: {weight: 1}}\n"
    )
    made = lacking.run(recipe)
    one, two = lacking.one[EMBED][1], lacking.two[EMBED][1]
    average = (one + two) / 2
    np.testing.assert_array_equal(
        np.asarray(made[EMBED])[2], average + (one - average) + (two - average)
    )


def test_slerp_with_a_union(lacking: Place) -> None:
    """Methods see tables with the same rows."""
    made = lacking.run(
        lacking.recipe(
            "merge_method: slerp\nbase_model: {base}\ntokenizer_source: union\n"
            "models: [{model: '{base}'}, {model: '{one}'}]\nparameters: {t: 1}\n"
        )
    )
    one = lacking.one[EMBED]
    np.testing.assert_allclose(np.asarray(made[EMBED]), one[[0, 2, 1]], rtol=1e-6)


ENTRIES = """\
tokenizer:
  source: union
  tokens:
    u: {source: '{two}', force: true}
    t: {source: {kind: zero}}
    x: {source: {kind: model_token, model: '{one}', token_id: 1}, force: true}
    new: {source: {kind: model_token, model: '{far}', token: f1}}
    none: {source: {kind: zero}}
"""


def test_named_rows(lacking: Place) -> None:
    """Rows that the recipe names, forced or not, of models merged or not."""
    far = lacking.model("far", kit.words("f0", "f1"))
    made = lacking.run(lacking.linear("base", "one", "two", tail=ENTRIES))
    for name in (EMBED, HEAD):
        one, two = lacking.one[name], lacking.two[name]
        found = np.asarray(made[name])
        assert [line["token"] for line in lacking.table()] == ["u", "x", "t", "new", "none"]
        np.testing.assert_array_equal(found[0], 6 * two[2])  # everybody's
        np.testing.assert_array_equal(found[1], 6 * one[1])
        np.testing.assert_array_equal(found[2], 2 * one[1] + 3 * two[1])
        np.testing.assert_array_equal(found[3], 6 * far[name][1])
        np.testing.assert_array_equal(found[4], 0 * one[0])
    ledger = lacking.json("jmerge.lock.json")
    assert [each["model"] for each in ledger["inputs"]][3].endswith("far")
    unused = [each for each in ledger["unused"] if each["model"].endswith("/far")]
    assert {each["reason"] for each in unused} == {"the model only fills tokens"}
    assert len(unused) == len(far)
    sources = ledger["tensors"][EMBED]["sources"]
    assert [each["model"].rsplit("/", 1)[1] for each in sources] == ["base", "one", "two"]
    assert [each["rows"] for each in sources] == ["jmerge.tokens.jsonl"] * 3
    assert {each["model"].rsplit("/", 1)[1] for each in sources[0]["filled_from"]} >= {"far", "one"}


def test_force_without_a_source_gives_all_the_automatic_row(lacking: Place) -> None:
    tail = "tokenizer: {source: union, tokens: {t: {force: true}, x: {force: true}}}"
    made = lacking.run(lacking.linear("base", "one", "two", tail=tail))
    found = np.asarray(made[EMBED])
    np.testing.assert_array_equal(found[2], 3 * (lacking.one[EMBED][1] + lacking.two[EMBED][1]))
    np.testing.assert_array_equal(found[1], 6 * lacking.base[EMBED][1])


def test_a_new_token_is_new_to_a_base_with_spare_rows(place: Place) -> None:
    """Rows that belong to no token are nobody's token: not that of a token the recipe adds."""
    base = place.model("base", kit.words("a", "b"), rows=8)
    tail = "tokenizer: {source: base, tokens: {c: {source: {kind: zero}}}}"
    made = place.run(place.linear("base", tail=tail))
    found = np.asarray(made[EMBED])
    np.testing.assert_array_equal(found, [*base[EMBED][:2], 0 * base[EMBED][0]])
    assert made.config["vocab_size"] == 3
    assert any("5 fewer than" in line for line in place.said.warnings)


def test_a_tied_model_gives_its_embedding_as_a_head(place: Place) -> None:
    """Its rows are moved alike; a head is written."""
    base = place.model("base", kit.words("a", "b"), tied=True)
    other = place.model("other", kit.words("b", "c", "a"))
    made = place.run(place.linear("base", "other", tail="tokenizer_source: union"))
    tables = base[EMBED][[0, 1]], other[HEAD][[2, 0, 1]]
    wanted = np.concatenate([tables[0], tables[1][2:]]) + 2 * tables[1]
    np.testing.assert_array_equal(np.asarray(made[HEAD]), wanted)
    assert made.config["tie_word_embeddings"] is False


def test_tied_models_stay_tied(place: Place) -> None:
    for name, words in {"base": "ab", "other": "bca"}.items():
        place.model(name, kit.words(*words), tied=True)
    made = place.run(place.linear("base", "other", tail="tokenizer_source: union"))
    assert HEAD not in made.index and made.config["tie_word_embeddings"] is True
    assert made.index[EMBED].spec.shape == (3, 8)


def test_biases_with_an_entry_for_each_token(place: Place) -> None:
    """They are tables of one column: moved, filled and padded; what no other model has is zero."""
    base = place.model(
        "base", kit.words("a", "b"), tensors={"lm_head.bias": np.asarray([6, 12], np.float32)}
    )
    other = place.model(
        "other",
        kit.words("b", "c", "a"),
        tensors={"lm_head.bias": np.asarray([3, 6, 9], np.float32)},
    )
    tail = "tokenizer: {source: union, pad_to_multiple_of: 4}"
    made = place.run(place.linear("base", "other", tail=tail))
    del base, other
    mean = (6 + 12 + 6) / 3 + 2 * (9 + 3 + 6) / 3
    np.testing.assert_allclose(
        np.asarray(made["lm_head.bias"]),
        [6 + 18, 12 + 6, 6 + 12, mean],
        rtol=1e-6,
    )


def test_slices_whose_sources_are_not_the_base(lacking: Place) -> None:
    """The base still fills rows, and what is not in a slice gives none."""
    recipe = lacking.recipe(
        "merge_method: passthrough\nbase_model: {base}\ntokenizer_source: union\nslices:\n"
        "- sources: [{model: '{one}', layer_range: [0, 1]}]\n"
        "- sources: [{model: '{two}', layer_range: [1, 2]}]\n"
    )
    made = lacking.run(recipe)
    np.testing.assert_array_equal(np.asarray(made[EMBED]), lacking.one[EMBED][[0, 2, 1]])
    np.testing.assert_array_equal(np.asarray(made[HEAD]), lacking.two[HEAD][[2, 0, 1]])


def test_tokens_of_models_that_do_not_make_a_tensor(lacking: Place) -> None:
    """A head of models that lack a token is zeros there, which is said."""
    lacking.three = lacking.model("three", kit.words("u", "x", "only"))
    recipe = lacking.recipe(
        "merge_method: passthrough\nbase_model: {base}\ntokenizer_source: union\nslices:\n"
        "- sources: [{model: '{three}', layer_range: [0, 1]}]\n"
        "- sources: [{model: '{one}', layer_range: [1, 2]}]\n"
    )
    made = lacking.run(recipe)
    tokens = [line["token"] for line in lacking.table()]
    assert tokens == ["u", "x", "only", "t"] and not np.asarray(made[HEAD])[2].any()
    assert any(f"{HEAD} is made of has a row for 'only': zeros" in w for w in lacking.said.warnings)


def test_nested_vocabulary_sizes(place: Place) -> None:
    """The size is written where the language model's part of config.json counts it, not where others count theirs."""
    nested = {
        "vocab_size": 32000,  # of another time, as LLaVA has it
        "text_config": {"vocab_size": 3},
        "codec_config": {"vocab_size": 5},
    }
    codes = {"codec.embed_tokens.weight": np.arange(40, dtype=np.float32).reshape(5, 8)}
    base = place.model("base", kit.words(*"abc"), config=nested, tensors=codes)
    other = place.model(
        "other",
        kit.words(*"cdba"),
        config={**nested, "text_config": {"vocab_size": 4}},
        tensors=codes,
    )
    made = place.run(place.linear("base", "other", tail="tokenizer_source: union"))
    assert made.config["vocab_size"] == 32000
    assert made.config["text_config"]["vocab_size"] == 4
    assert made.config["codec_config"]["vocab_size"] == 5
    np.testing.assert_array_equal(
        np.asarray(made["codec.embed_tokens.weight"]), 3 * codes["codec.embed_tokens.weight"]
    )
    wanted = np.concatenate([base[EMBED], other[EMBED][[1]]]) + 2 * other[EMBED][[3, 2, 0, 1]]
    np.testing.assert_array_equal(np.asarray(made[EMBED]), wanted)


def test_16_bit_tables(place: Place) -> None:
    """Means are float32 until the one cast at the end; the result has the dtype of the tables."""
    import ml_dtypes

    drawn: dict[str, np.ndarray] = {}
    for name, words in {"base": "ab", "one": "acb", "two": "cab"}.items():
        rng = np.random.default_rng(len(drawn))
        table = rng.standard_normal((len(words), 8)).astype(ml_dtypes.bfloat16)
        drawn[name] = table
        place.model(name, kit.words(*words), tensors={EMBED: table})
    made = place.run(place.linear("base", "one", "two", tail="tokenizer_source: union"))
    assert made.index[EMBED].spec.dtype == "BF16"
    one, two = (drawn[n][i].astype(np.float64) for n, i in (("one", 1), ("two", 0)))
    wanted = (one + two) / 2 + 2 * one + 3 * two
    found = np.asarray(made[EMBED])[2]
    assert np.array_equal(found, wanted.astype(np.float32).astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("kind", kit.KINDS)
def test_every_kind_of_tokenizer(kind: str, place: Place) -> None:
    """Rows follow the tokens of BPE, Unigram, WordPiece and WordLevel."""
    texts = {"base": kit.trained(kind), "other": kit.trained(kind, kit.FRENCH)}
    models = {name: place.model(name, text) for name, text in texts.items()}
    made = place.run(place.linear("base", "other", tail="tokenizer_source: union"))
    ids = {name: kit.read(place.folder / name).vocabulary.ids for name in texts}
    found = np.asarray(made[EMBED])
    lines = place.table()
    assert len(lines) == len(found) == len(ids["base"].keys() | ids["other"].keys())
    for line in lines:
        token, rows = line["token"], {}
        for name in texts:
            if token in ids[name]:
                rows[name] = models[name][EMBED][ids[name][token]]
        one, two = (rows.get(n, next(iter(rows.values()))) for n in ("base", "other"))
        np.testing.assert_array_equal(found[line["id"]], one + 2 * two)


def test_only_sentencepiece_files(place: Place) -> None:
    """Read without a tokenizer.json, one is made of them when tokens join, and the old file goes."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("▁a", -1.0, 1), ("b", -2.0, 1)]
    for name, more in {"base": [], "other": [("c", -3.0, 1)]}.items():
        data = kit.sentencepiece(pieces + more, bpe=False)
        place.model(name, rows=5 + len(more), files={"tokenizer__model": data})
    made = place.run(place.linear("base", "other", tail="tokenizer_source: union"))
    assert made.config["vocab_size"] == 6
    assert [line["token"] for line in place.table()][5] == "c"
    assert (place.out / "tokenizer.json").exists()
    kept = place.run(place.linear("base", "other", tail="tokenizer_source: base"))
    assert kept.config["vocab_size"] == 5 and not (place.out / "tokenizer.json").exists()
    before = (place.folder / "base" / "tokenizer.model").read_bytes()
    assert (place.out / "tokenizer.model").read_bytes() == before


def test_a_token_beyond_one_model_s_rows_that_another_has(place: Place) -> None:
    """It is the other's, with that model's row for both."""
    text = kit.with_tokens(kit.words("a", "b"), "<x>")
    base = place.model("base", text, rows=2)
    other = place.model("other", text)
    made = place.run(place.linear("base", "other", tail="tokenizer_source: union"))
    wanted = np.concatenate([base[EMBED], other[EMBED][2:]]) + 2 * other[EMBED]
    np.testing.assert_array_equal(np.asarray(made[EMBED]), wanted)


def test_tables_that_are_not_of_tokens_stay(place: Place) -> None:
    """Positions and patches with as many rows as there are tokens."""
    names = ("model.embed_positions.weight", "vision_model.patch_embed.weight")
    drawn = {name: np.arange(24, dtype=np.float32).reshape(3, 8) for name in names}
    for name, words in {"base": "abc", "other": "cba"}.items():
        place.model(name, kit.words(*words), tensors=drawn)
    made = place.run(place.linear("base", "other", tail="tokenizer_source: base"))
    for name in names:
        np.testing.assert_array_equal(np.asarray(made[name]), 3 * drawn[name])


def test_without_a_base_the_first_model_is_it(place: Place) -> None:
    """Its ids, its files, its rows first; the same in every run."""
    for name, words in {"one": "ab", "two": "cba"}.items():
        place.model(name, kit.words(*words))
    recipe = place.linear("one", "two", tail="tokenizer_source: union")
    recipe.write_text(recipe.read_text().replace(f"base_model: {place.folder}/one\n", ""))
    place.run(recipe)
    assert [line["token"] for line in place.table()] == ["a", "b", "c"]


def test_rows_that_are_other_tokens_are_told_without_a_tokenizer_key(place: Place) -> None:
    """Tables of one size can be merged row by row, but then the rows of different tokens are mixed."""
    place.model("base", kit.words(*"uabcd"), rows=6)
    place.model("same", kit.words(*"uabcd"), rows=6)
    place.model("moved", kit.words(*"ubacde"))
    place.model("none", rows=6)
    place.run(place.linear("base", "same", "none", tail=""))
    assert not place.said.warnings
    place.run(place.linear("base", "moved", tail=""))
    (line,) = place.said.warnings
    assert "x.yml:6: models[1].model: 3 ids stand for another token than in " in line
    assert "1 is 'b' (output: 'a'), 2 is 'a' (output: 'b'), 5 is 'e' (output: none); add" in line
    assert "'tokenizer_source: union'" in line
    place.run(place.linear("base", "moved", tail="tokenizer_source: union"))
    assert not any("stand for" in each for each in place.said.warnings)
    place.run(place.linear("base", "moved", tail="only: ['*.self_attn.*']"))  # no row is mixed
    assert not place.said.warnings
    (place.folder / "moved" / "tokenizer.json").write_text("{")
    place.run(place.linear("base", "moved", tail=""))  # it is not the output's
    (line,) = place.said.warnings
    assert "its tokens could not be compared with those of " in line and "tokenizer.json" in line
