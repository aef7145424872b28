"""From recipe and tokenizers to the output's tokens: the whole of it on real tokenizers, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenkit as kit
from hypothesis import given, settings
from hypothesis import strategies as st
from permute import permuted
from said import uncoded
from tokenizers import Tokenizer

from jmerge.errors import RecipeError
from jmerge.recipe.refs import ModelRef
from jmerge.tokens.align import Alignment, Input, align
from jmerge.tokens.files import NO_EDITS
from jmerge.tokens.model import ModelTokens
from jmerge.tokens.table import embedding_rows
from jmerge.tokens.vocabulary import PLAIN, SPECIAL, Vocabulary, vocabulary

BASE = kit.trained("BPE")
SIZE = kit.size_of(BASE)
CHAT = kit.with_tokens(BASE, "<|im_start|>", "<|im_end|>", special=True)
PADDED = kit.with_tokens(BASE, "<u0>", "<u1>", "<u2>", "<u3>", special=True)
THREE = {"base": BASE, "chat": CHAT, "padded": (PADDED, SIZE + 4, SIZE)}


def output(found: Alignment) -> Tokenizer:
    """The tokenizer that the edited files have."""
    return Tokenizer.from_str(found.edits.written["tokenizer.json"].decode())


def said(found: Alignment) -> list[str]:
    """The notes, without their lines."""
    return [note.message for note in found.notes]


def tables(*sizes: int) -> dict[int, np.ndarray]:
    """Random tables of two columns."""
    generator = np.random.default_rng(0)
    return {m: generator.normal(size=(n, 2)).astype(np.float32) for m, n in enumerate(sizes)}


# The three models of the reference's own tests


def test_base(tmp_path: Path) -> None:
    """The base's tokens and its files as they are."""
    recipe = kit.recipe_of("base", "chat", "padded", tail="tokenizer_source: base")
    found = kit.aligned(tmp_path, recipe, **THREE)
    assert found.edits == NO_EDITS and found.donor == 0 and found.special_ids == {}
    assert found.vocabulary.size == found.rows.rows == SIZE
    assert found.rows.own.tolist() == [list(range(SIZE))] * 3
    assert found.ordinary == found.added == ()


def test_union(tmp_path: Path) -> None:
    """The used tokens of the chat model join, those that have no row do not."""
    recipe = kit.recipe_of("base", "chat", "padded")
    found = kit.aligned(tmp_path, recipe, **THREE)
    assert found.rows.rows == SIZE + 2 and found.added == ("<|im_start|>", "<|im_end|>")
    made = tables(SIZE, SIZE + 2, SIZE + 4)
    seen = permuted(made, embedding_rows(found))
    for table in seen:
        np.testing.assert_array_equal(table[SIZE:], made[1][SIZE:])
    np.testing.assert_array_equal(seen[0][:SIZE], made[0])
    assert output(found).get_vocab() == Tokenizer.from_str(CHAT).get_vocab()
    assert said(found) == [
        f"'padded' has {SIZE} usable rows; left out for higher ids: 4 tokens ('<u0>', '<u1>', '<u2>', ...)"
    ]


def test_source_is_a_model(tmp_path: Path) -> None:
    """Its tokenizer is the output's, and the base is filled from it."""
    recipe = kit.recipe_of("base", "chat", "padded", tail="tokenizer: {source: chat}")
    found = kit.aligned(tmp_path, recipe, **THREE)
    assert found.donor == 1 and found.edits == NO_EDITS
    assert found.rows.own[0].tolist() == [*range(SIZE), -1, -1]


def test_source_beyond_its_table_is_cut(tmp_path: Path) -> None:
    """As the base is."""
    recipe = kit.recipe_of("base", "padded", tail="tokenizer: {source: padded}")
    models = {"base": BASE, "padded": THREE["padded"]}
    found = kit.aligned(tmp_path, recipe, **models)
    assert found.rows.rows == SIZE
    assert output(found).get_vocab() == Tokenizer.from_str(BASE).get_vocab()


def test_padding(tmp_path: Path) -> None:
    """Rows are rounded up; the tokenizer is not."""
    tail = "tokenizer: {source: union, pad_to_multiple_of: 256}"
    found = kit.aligned(tmp_path, kit.recipe_of("base", "chat", "padded", tail=tail), **THREE)
    assert (
        found.rows.rows == 512
        and found.vocabulary.size == SIZE + 2 == output(found).get_vocab_size()
    )
    made = tables(SIZE, SIZE + 2, SIZE + 4)
    for table in permuted(made, embedding_rows(found)):
        np.testing.assert_allclose(table[-1], table[: SIZE + 2].mean(axis=0), rtol=1e-5)


def test_rows_beyond_the_tokens_are_dropped(tmp_path: Path) -> None:
    """Where the recipe does not ask for padding; said, as the base had them."""
    recipe = kit.recipe_of("base", "chat", tail="tokenizer: {source: base}")
    found = kit.aligned(tmp_path, recipe, base=(BASE, SIZE + 10), chat=CHAT)
    assert found.rows.rows == SIZE
    assert said(found) == [
        f"the output has {SIZE} rows, 10 fewer than 'base'; pad_to_multiple_of adds padding rows"
    ]


# Every kind


@pytest.mark.parametrize("kind", kit.KINDS)
def test_union_of_every_kind(kind: str, tmp_path: Path) -> None:
    """Two vocabularies trained on other texts: all tokens, the base's ids, its pipeline, and its own ids for texts
    that have none of the new words."""
    mine, theirs = kit.trained(kind), kit.trained(kind, kit.FRENCH)
    found = kit.aligned(tmp_path, kit.recipe_of("a", "b"), a=mine, b=theirs)
    before, other = Tokenizer.from_str(mine), Tokenizer.from_str(theirs)
    made = output(found)
    assert made.get_vocab().keys() == before.get_vocab().keys() | other.get_vocab().keys()
    assert {t: made.token_to_id(t) for t in before.get_vocab()} == before.get_vocab()
    new = [
        t
        for t, i in sorted(made.get_vocab().items(), key=lambda item: item[1])
        if i >= kit.size_of(mine)
    ]
    theirs_by_id = other.get_vocab()
    assert new == sorted(
        theirs_by_id.keys() - before.get_vocab().keys(), key=theirs_by_id.__getitem__
    )
    edited, original = json.loads(made.to_str()), json.loads(mine)
    for key in original.keys() - {"added_tokens"}:
        assert edited[key] == original[key]
    assert made.encode("qqq").ids == before.encode("qqq").ids
    for m, tokenizer in enumerate((before, other)):
        tokens = found.vocabulary.by_id()
        assert found.rows.own[m].tolist() == [
            tokenizer.get_vocab().get(t or "", -1) for t in tokens
        ]
    (note,) = said(found)
    assert ("'union_mode: bpe' keeps them ordinary" in note) == (kind == "BPE")  # where it can


@pytest.mark.parametrize("kind", kit.KINDS)
def test_ghosts_of_every_kind(kind: str, tmp_path: Path) -> None:
    """A base whose tokenizer has more tokens than its table rows loses those, in the files too."""
    text = kit.trained(kind)
    size = kit.size_of(text)
    recipe = kit.recipe_of("a", "b", tail="tokenizer_source: base")
    found = kit.aligned(tmp_path, recipe, a=(text, size - 2), b=text)
    assert found.rows.rows == size - 2 == output(found).get_vocab_size()
    assert found.rows.own.tolist() == [list(range(size - 2))] * 2
    assert len(said(found)) == 1 and f"'a' has {size - 2} usable rows" in said(found)[0]


@pytest.mark.parametrize("mode", ["added", "bpe"])
def test_same_bytes(mode: str, tmp_path: Path) -> None:
    """The library hands out tokens in another order at every call; nothing of it is left."""
    recipe = kit.recipe_of("a", "b", tail=f"tokenizer: {{union_mode: {mode}}}")
    models = {"a": BASE, "b": kit.trained("BPE", kit.FRENCH)}
    one, two = (kit.aligned(tmp_path, recipe, **models) for _ in range(2))
    assert one.edits == two.edits and one.ordinary == two.ordinary
    assert one.rows.own.tobytes() == two.rows.own.tobytes()


def test_a_tokenizer_json_is_made_where_there_is_none(tmp_path: Path) -> None:
    """Of pieces that get company; said, and the pieces stay beside it."""
    head = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    files = {"tokenizer__model": kit.sentencepiece([*head, ("▁a", -1.0, 1)], bpe=True)}
    other = kit.words("<unk>", added={"<x>": {"special": True}})
    found = kit.aligned(tmp_path, kit.recipe_of("a", "b"), a=(files, 4), b=other)
    assert output(found).get_vocab() == {"<unk>": 0, "<s>": 1, "</s>": 2, "▁a": 3, "<x>": 4}
    assert said(found) == ["'a' has no tokenizer.json; one is made from its tokenizer.model"]
    same = kit.aligned(tmp_path, kit.recipe_of("a", "c"), a=(files, 4), c=(files, 4))
    assert same.edits == NO_EDITS and said(same) == []


# Entries


def entries(text: str) -> str:
    """A union with these entries under `tokens`, from line 8 on."""
    return "tokenizer:\n  source: union\n  tokens:\n" + "".join(
        f"    {line}\n" for line in text.splitlines()
    )


def filled(tmp_path: Path, text: str, *, source: str = "union") -> list[list[float]]:
    """Rows of the last tokens as models a and b are seen; both have w0 to w2, b has S; c is no model of the merge."""
    tail = entries(text).replace("source: union", f"source: {source}", 1)
    words = ("w0", "w1", "w2")
    models = {"a": kit.words(*words), "b": kit.words(*words, added={"S": {"special": True}})}
    files = {name: kit.read(tmp_path / name, tokenizer__json=t) for name, t in models.items()}
    files["c"] = kit.read(tmp_path / "c", tokenizer__json=kit.words("q", "r"))
    inputs = {ModelRef(name): Input(tokens, 6) for name, tokens in files.items()}
    recipe = kit.recipe_of("a", "b", tail=tail)
    used = {ref: one for ref, one in inputs.items() if str(ref) in ("a", "b") or "model: c" in text}
    found = align(recipe, used)
    made = {m: np.arange(6, dtype=np.float32)[:, None] + 10 * m for m in range(len(found.models))}
    return [table[:, 0].tolist() for table in permuted(made, embedding_rows(found))]


ENTRIES = {
    # entries, what a and b are seen as
    "nothing": ("{}", [0, 1, 2, 13], [10, 11, 12, 13]),
    "zero": ("w1: {source: {kind: zero}, force: yes}", [0, 0, 2, 13], [10, 0, 12, 13]),
    "zero_for_those_that_lack_it": ("S: {source: {kind: zero}}", [0, 1, 2, 0], [10, 11, 12, 13]),
    "model": ("w1: {source: b, force: yes}", [0, 11, 2, 13], [10, 11, 12, 13]),
    "not_forced": ("w1: {source: b}", [0, 1, 2, 13], [10, 11, 12, 13]),
    "by_token": (
        "N: {source: {kind: model_token, model: a, token: w2}}",
        [0, 1, 2, 13, 2],
        [10, 11, 12, 13, 2],
    ),
    "by_id": (
        "N: {source: {kind: model_token, model: b, token_id: 0}}",
        [0, 1, 2, 13, 10],
        [10, 11, 12, 13, 10],
    ),
    "a_spare_row": (
        "N: {source: {kind: model_token, model: b, token_id: 5}}",
        [0, 1, 2, 13, 15],
        [10, 11, 12, 13, 15],
    ),
    "a_model_outside": (
        "N: {source: {kind: model_token, model: c, token: r}}",
        [0, 1, 2, 13, 21],
        [10, 11, 12, 13, 21],
    ),
    "force_alone": ("w0: {force: yes}", [0, 1, 2, 13], [0, 11, 12, 13]),
    "force_alone_of_what_the_base_lacks": ("S: {force: yes}", [0, 1, 2, 13], [10, 11, 12, 13]),
    "two_new_ones_in_their_order": (
        "N: {source: {kind: zero}}\nM: {source: {kind: model_token, model: b, token: S}}",
        [0, 1, 2, 13, 0, 13],
        [10, 11, 12, 13, 0, 13],
    ),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_entries(case: str, tmp_path: Path) -> None:
    """What fills a token, for the models that lack it or for all."""
    text, a, b = ENTRIES[case]
    assert filled(tmp_path, text) == [a, b]


def test_a_new_token_with_the_base_as_source(tmp_path: Path) -> None:
    """It is new for the base too, even where the base's table has a spare row with its number."""
    assert filled(tmp_path, "N: {source: {kind: zero}}", source="base") == [
        [0, 1, 2, 0],
        [10, 11, 12, 0],
    ]
    assert filled(tmp_path, "S: {}", source="base") == [[0, 1, 2, 13], [10, 11, 12, 13]]


def test_new_tokens_are_plain(tmp_path: Path) -> None:
    """Not special, and normalised; one that is there keeps its flags and stays ordinary."""
    tail = entries('"<new>": {source: {kind: zero}}\nw0: {source: {kind: zero}}')
    found = kit.aligned(tmp_path, kit.recipe_of("a", tail=tail), a=kit.words("w0", "w1"))
    assert found.vocabulary.added == {"<new>": PLAIN} and found.added == ("<new>",)


# What is refused


def refusal(tmp_path: Path, tail: str, **models: Any) -> str:
    """What is said against a merge of these models."""
    with pytest.raises(RecipeError) as caught:
        kit.aligned(tmp_path, kit.recipe_of(*models, tail=tail), **models)
    return uncoded(str(caught.value))


WORDS = kit.words("<unk>", "bonjour", "chat")
REFUSED = {
    "nowhere": (
        entries("bonjuor: {}"),
        "x.yml:9: tokenizer.tokens.bonjuor: no model has the token 'bonjuor'; give it a source; did you mean 'bonjour'?",
    ),
    "lacking": (
        entries("new: {source: a}"),
        "x.yml:9: tokenizer.tokens.new.source: 'a' has no row for the token 'new'",
    ),
    "no_such_token": (
        entries("new: {source: {kind: model_token, model: a, token: chta}}"),
        "x.yml:9: tokenizer.tokens.new.source.token: 'a' has no token 'chta'; did you mean 'chat'?",
    ),
    "no_such_row": (
        entries("new: {source: {kind: model_token, model: b, token_id: 3}}"),
        "x.yml:9: tokenizer.tokens.new.source.token_id: 'b' has 3 rows, so there is no row 3",
    ),
    "all_at_once": (
        entries("n: {}\nm: {source: a}\nchat: {source: {kind: model_token, model: b, token_id: 9}}"),
        "x.yml:9: tokenizer.tokens.n: no model has the token 'n'; give it a source\n"
        "x.yml:10: tokenizer.tokens.m.source: 'a' has no row for the token 'm'\n"
        "x.yml:11: tokenizer.tokens.chat.source.token_id: 'b' has 3 rows, so there is no row 9",
    ),
    "merges_of_words": (
        "tokenizer: {union_mode: bpe}",
        "x.yml:6: tokenizer.union_mode: bpe needs the same kind of byte-level or sentencepiece BPE in all models; "
        "'a' has WordLevel\n"
        "x.yml:6: tokenizer.union_mode: bpe needs the same kind of byte-level or sentencepiece BPE in all models; "
        "'b' has WordLevel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    """One line a problem, at its line."""
    tail, wanted = REFUSED[case]
    assert refusal(tmp_path, tail, a=WORDS, b=WORDS) == wanted


def test_a_token_of_a_row_that_is_not_there(tmp_path: Path) -> None:
    """`model_token` by text knows ghosts too, and their rows are refused."""
    tail = entries("new: {source: {kind: model_token, model: b, token: chat}}")
    said = refusal(tmp_path, tail, a=WORDS, b=(WORDS, 2))
    assert said.endswith(".source.token: 'b' has 2 rows, so there is no row 2")


def test_the_pipeline_needs_its_tokens(tmp_path: Path) -> None:
    """A limit below them is refused, not cut."""
    text = kit.with_tokens(WORDS, "<s>", special=True)
    document = json.loads(text)
    document["post_processor"] = {"type": "BertProcessing", "sep": ["<s>", 3], "cls": ["<s>", 3]}
    said = refusal(tmp_path, "tokenizer_source: base", a=(json.dumps(document), 3), b=WORDS)
    assert said == (
        "x.yml:6: tokenizer_source: 'a': the tokenizer needs '<s>' with id 3, but the model has only 3 usable rows"
    )


def test_no_tokenizer(tmp_path: Path) -> None:
    """A model without one has the base's; the base must have one, and so must the model it is taken from."""
    found = kit.aligned(tmp_path, kit.recipe_of("a", "b"), a=WORDS, b=(None, 2))
    assert found.rows.own.tolist() == [[0, 1, 2], [0, 1, -1]]
    assert said(found) == [
        "'b' has no tokenizer; its rows are assumed to be in the base's order",
        "'b' has 2 usable rows; left out for higher ids: the token 'chat'",
    ]
    wanted = (
        "x.yml:6: tokenizer_source: '{}' has no tokenizer; add its tokenizer.json to its folder"
    )
    assert refusal(tmp_path, "tokenizer_source: union", a=(None, 3), b=WORDS) == wanted.format("a")
    assert refusal(tmp_path, "tokenizer_source: b", a=WORDS, b=(None, 3)) == wanted.format("b")


def test_without_a_base_the_first_model_is_it(tmp_path: Path) -> None:
    """Recipe order, never that of a set."""
    recipe = kit.recipe_of("b", "a", base=False)
    found = kit.aligned(tmp_path, recipe, a=kit.words("x", "y"), b=kit.words("y", "z"))
    assert found.models == (ModelRef("b"), ModelRef("a"))
    assert list(found.vocabulary.ids) == ["y", "z", "x"]


def test_special_ids_of_another_models_tokenizer(tmp_path: Path) -> None:
    """Those that it names; none for the base's own."""
    files = {
        "tokenizer__json": WORDS,
        "tokenizer_config__json": {"eos_token": "chat", "pad_token": "<pad>"},
    }
    recipe = kit.recipe_of("a", "b", tail="tokenizer_source: b")
    found = kit.aligned(tmp_path, recipe, a=WORDS, b=(files, 3))
    assert found.special_ids == {"eos_token_id": 2}
    own = kit.aligned(tmp_path, kit.recipe_of("b", "a"), a=WORDS, b=(files, 4))
    assert own.special_ids == {}
    assert said(found) == ["'b' has 3 usable rows; left out for higher ids: the token '<pad>'"]


def test_differing_flags_are_said(tmp_path: Path) -> None:
    """And those of the earlier model kept."""
    models = {
        name: kit.words("w", added={"S": flags})
        for name, flags in (("a", {"lstrip": True}), ("b", {}))
    }
    found = kit.aligned(tmp_path, kit.recipe_of("a", "b"), **models)
    assert found.edits == NO_EDITS
    assert said(found) == [
        "'b' has different flags for the token 'S'; those of the earlier model are kept"
    ]


def test_ordinary_tokens_of_the_base_that_become_added_are_said(tmp_path: Path) -> None:
    """Since texts are then cut at them."""
    other = kit.words("w", added={"S": {"special": True}})
    found = kit.aligned(tmp_path, kit.recipe_of("a", "b"), a=kit.words("w", "S"), b=other)
    assert found.vocabulary.added == {"S": SPECIAL} and found.vocabulary.ids["S"] == 1
    assert said(found) == [
        "ordinary tokens of the base that become added tokens, as in another model: the token 'S'"
    ]
    assert output(found).encode("wSw").tokens == ["w", "S", "w"]


# A true union of merges


def test_union_of_byte_level_merges(tmp_path: Path) -> None:
    """Texts of the base keep most of their cuts, those of the other model are cut in its tokens; nothing is added."""
    french = kit.with_tokens(kit.trained("BPE", kit.FRENCH), "<x>", special=True)
    base = kit.with_tokens(BASE, "<b>", special=True)
    recipe = kit.recipe_of("a", "b", tail="tokenizer: {source: union, union_mode: bpe}")
    found = kit.aligned(tmp_path, recipe, a=base, b=french)
    made, mine, theirs = output(found), Tokenizer.from_str(base), Tokenizer.from_str(french)
    assert {t: made.token_to_id(t) for t in mine.get_vocab()} == mine.get_vocab()
    assert made.get_vocab().keys() == mine.get_vocab().keys() | theirs.get_vocab().keys()
    assert [t.content for t in made.get_added_tokens_decoder().values()] == [
        "<unk>", "<s>", "</s>", "<b>", "<x>",
    ]  # fmt: skip
    assert found.added == ("<x>",) and "Ġbonjour" in found.ordinary
    assert made.encode("le bonjour").tokens == ["<s>", "le", "Ġbonjour"]
    for text in kit.TEXTS:
        assert made.decode(made.encode(text).ids, skip_special_tokens=False) == "<s>" + text
    merges = json.loads(made.to_str())["model"]["merges"]
    own = json.loads(base)["model"]["merges"]
    assert merges[: len(own)] == own and len({tuple(m) for m in merges}) == len(merges)
    again = kit.recipe_of("u", "b", tail="tokenizer: {source: union, union_mode: bpe}")
    text = found.edits.written["tokenizer.json"].decode()
    assert kit.aligned(tmp_path, again, u=text, b=french).edits == NO_EDITS


def test_union_of_sentencepiece_merges(tmp_path: Path) -> None:
    """Likewise where spaces are marked."""
    recipe = kit.recipe_of("a", "b", tail="tokenizer: {source: union, union_mode: bpe}")
    mine, theirs = kit.metaspace_bpe(), kit.metaspace_bpe(kit.FRENCH)
    found = kit.aligned(tmp_path, recipe, a=mine, b=theirs)
    assert "▁bonjour" in found.ordinary
    assert output(found).encode("le bonjour").tokens[-1] == "▁bonjour"
    said = refusal(tmp_path, "tokenizer: {union_mode: bpe}", a=mine, b=BASE)
    assert said.endswith("'b' has byte-level BPE, the base sentencepiece")


def test_merges_that_mean_other_things(tmp_path: Path) -> None:
    """Two BPEs that cut words by other rules are refused by the rule's name."""
    document = json.loads(BASE)
    document["model"]["ignore_merges"] = True
    said = refusal(tmp_path, "tokenizer: {union_mode: bpe}", a=BASE, b=json.dumps(document))
    assert said == (
        "x.yml:6: tokenizer.union_mode: bpe cannot unite the merges of 'b': "
        "ignore_merges is True there and None in the base's tokenizer"
    )


# Laws


def model_of(found: Vocabulary) -> ModelTokens:
    """A model with these words and added tokens, which is never written."""
    text = kit.words(*(found.ids or {"<unk>": 0}))
    return ModelTokens(
        "m", "tokenizer.json", "WordLevel", text, None, found, {}, None, None, None, frozenset()
    )


@st.composite
def models(draw: st.DrawFn) -> Vocabulary:
    """Some words and added tokens with ids from 0."""
    tokens = draw(
        st.lists(st.text("abcd", min_size=1, max_size=2), unique=True, min_size=1, max_size=6)
    )
    added = [t for t in tokens if draw(st.booleans())]
    return vocabulary({t: i for i, t in enumerate(tokens)}, dict.fromkeys(added, SPECIAL))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(models(), min_size=1, max_size=3),
    st.sampled_from(["union", "base"]),
    st.integers(1, 8),
    st.data(),
)
def test_laws_of_alignment(
    found: list[Vocabulary], source: str, multiple: int, data: st.DataObject
) -> None:
    """Ids of the base's usable tokens never change; every map leads to the same token within the model's rows."""
    names = [f"m{i}" for i in range(len(found))]
    inputs = {}
    for name, each in zip(names, found, strict=True):
        rows = data.draw(st.integers(1, each.size + 2))
        inputs[ModelRef(name)] = Input(model_of(each), rows)
    tail = f"tokenizer: {{source: {source}, pad_to_multiple_of: {multiple}}}"
    recipe = kit.recipe_of(*names, tail=tail)
    if inputs[ModelRef("m0")].rows < found[0].size and found[0].ids:
        return  # its unknown token may be lost, which is refused elsewhere
    made = align(recipe, inputs)
    assert {t: made.vocabulary.ids[t] for t in found[0].ids} == found[0].ids
    assert made.rows.rows % multiple == 0 and 0 <= made.rows.rows - made.vocabulary.size < multiple
    tokens = made.vocabulary.by_id()
    for m, (each, one) in enumerate(zip(found, inputs.values(), strict=True)):
        for i, row in enumerate(made.rows.own[m].tolist()):
            known = each.ids.get(tokens[i] or "", -1)
            assert row == (known if known < one.rows else -1)


def test_a_quarter_of_a_million_tokens(tmp_path: Path) -> None:
    """A union of two large vocabularies takes seconds; were anything in it quadratic, this would not end."""
    texts = []
    for stem in ("a", "b"):
        document = json.loads(WORDS)
        shared = {f"s{i}": i for i in range(128_000)}
        own = {f"{stem}{i}": 128_000 + i for i in range(64_000)}
        document["model"] |= {"vocab": {**shared, **own}, "unk_token": "s0"}
        texts.append(json.dumps(document))
    found = kit.aligned(tmp_path, kit.recipe_of("a", "b"), a=texts[0], b=texts[1])
    rows = embedding_rows(found)
    assert found.rows.rows == 256_000 and rows.starts.size == 128_001
