"""Unions of vocabularies: which tokens, in which order, with which flags."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jmerge.tokens.union import unite
from jmerge.tokens.vocabulary import PLAIN, SPECIAL, Added, Vocabulary, vocabulary


def vocab(tokens: str, **added: Added) -> Vocabulary:
    """The words of `tokens` with ids from 0, those in `added` being added tokens."""
    return vocabulary({token: i for i, token in enumerate(tokens.split())}, added)


def test_order_of_new_tokens() -> None:
    """First ordinary tokens, then added ones, each in the order of models and of their ids there."""
    base = vocab("a b S", S=SPECIAL)
    one = vocab("z T y a", T=SPECIAL)
    two = vocab("U x z T b", U=PLAIN, T=SPECIAL)
    found = unite([base, one, two])
    assert list(found.vocabulary.ids) == ["a", "b", "S", "z", "y", "x", "T", "U"]
    assert list(found.vocabulary.ids.values()) == list(range(8))
    assert found.ordinary == ("z", "y", "x") and found.added == ("T", "U")
    assert found.vocabulary.added == {
        "S": SPECIAL, "z": PLAIN, "y": PLAIN, "x": PLAIN, "T": SPECIAL, "U": PLAIN,
    }  # fmt: skip


def test_added_anywhere_is_added() -> None:
    """A token that some model has as an added one becomes one; an ordinary one of the base keeps its id."""
    found = unite([vocab("a b c"), vocab("b d", b=SPECIAL), vocab("d", d=PLAIN)])
    assert list(found.vocabulary.ids) == ["a", "b", "c", "d"]
    assert found.vocabulary.added == {"b": SPECIAL, "d": PLAIN}
    assert found.ordinary == () and found.added == ("d",)


def test_flags_of_the_first_model() -> None:
    """Later models with other flags are named, and change nothing."""
    left = Added(lstrip=True)
    found = unite([vocab("a"), vocab("x y", x=left, y=PLAIN), vocab("x y", x=SPECIAL, y=PLAIN)])
    assert found.vocabulary.added == {"x": left, "y": PLAIN}
    assert found.differing == ((2, "x"),)


def test_ids_go_on_after_the_largest() -> None:
    """Ids between those of the base stay free."""
    base = vocabulary({"a": 0, "b": 7, "S": 3}, {"S": SPECIAL})
    assert unite([base, vocab("n")]).vocabulary.ids == {"a": 0, "S": 3, "b": 7, "n": 8}


def test_ordinary_tokens_may_stay_ordinary() -> None:
    """As for a union of merges."""
    found = unite([vocab("a"), vocab("n S", S=SPECIAL)], None)
    assert found.vocabulary.added == {"S": SPECIAL} and found.ordinary == ("n",)


def test_a_token_of_no_text_is_left_out() -> None:
    """The library drops it, so it would shift all ids after it."""
    other = vocabulary({"": 0, "n": 1}, {})
    assert list(unite([vocab("a"), other]).vocabulary.ids) == ["a", "n"]


FLAGS = st.builds(Added, *[st.booleans()] * 5)
TOKENS = st.text("abcd", min_size=1, max_size=2)


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Some tokens with different ids, some of them added."""
    tokens = draw(st.lists(TOKENS, unique=True, max_size=8))
    ids = draw(
        st.lists(st.integers(0, 20), unique=True, min_size=len(tokens), max_size=len(tokens))
    )
    added = {t: draw(FLAGS) for t in tokens if draw(st.booleans())}
    return vocabulary(dict(zip(tokens, ids, strict=True)), added)


@given(st.lists(vocabularies(), min_size=1, max_size=4))
def test_laws_of_unions(models: list[Vocabulary]) -> None:
    """Ids of the base never change, all others are new and different; nobody's token is lost; twice is once."""
    found = unite(models).vocabulary
    base = models[0]
    assert {t: found.ids[t] for t in base.ids} == base.ids
    new = [i for t, i in found.ids.items() if t not in base.ids]
    assert new == list(range(base.size, base.size + len(new)))
    assert found.ids.keys() == set().union(*(each.ids for each in models))
    assert set().union(*(each.added for each in models)) <= found.added.keys()
    assert list(found.ids.values()) == sorted(found.ids.values())
    assert unite([found, *models]).vocabulary == found
    assert unite([found]).vocabulary == found
