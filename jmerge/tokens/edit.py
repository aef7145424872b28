"""tokenizer.json with other tokens: only its vocabulary, merges and added tokens change, the pipeline stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jmerge.tokens.vocabulary import Vocabulary

Merge = tuple[str, str]


def pipeline_tokens(document: Mapping[str, Any]) -> list[str]:
    """The tokens that the pipeline of a tokenizer.json cannot do without, in no order of note."""
    model = document["model"]
    found = []
    if isinstance(model.get("unk_token"), str):
        found.append(model["unk_token"])
    if type(model.get("unk_id")) is int and model["unk_id"] < len(model["vocab"]):
        found.append(model["vocab"][model["unk_id"]][0])
    todo = [document.get("post_processor") or {}]
    while todo:
        part = todo.pop()
        todo += part.get("processors", [])
        found += part.get("special_tokens", {})  # of a template
        found += [part[key][0] for key in ("sep", "cls") if key in part]
    return list(dict.fromkeys(found))


def model_ids(document: Mapping[str, Any]) -> dict[str, int]:
    """The model's own vocabulary in a tokenizer.json, without added tokens that stand outside of it."""
    vocab = document["model"]["vocab"]
    return (
        dict(vocab) if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    )


def merges_of(document: Mapping[str, Any]) -> list[Merge]:
    """The merges of a BPE, in order."""
    found = []
    for each in document["model"]["merges"]:
        left, right = each if isinstance(each, list) else each.split(" ", 1)
        found.append((left, right))
    return found


def product(document: Mapping[str, Any], merge: Merge) -> str:
    """The token that a merge makes."""
    prefix = document["model"].get("continuing_subword_prefix") or ""
    return merge[0] + merge[1].removeprefix(prefix)


def edited(
    document: Mapping[str, Any],
    wanted: Vocabulary,
    ordinary: Mapping[str, int] | None = None,
    merges: Iterable[Merge] = (),
) -> dict[str, Any]:
    """A tokenizer.json whose tokens are `wanted`, with the ids they have there.

    Args:
      document: the tokenizer.json to begin with; it is not changed.
      wanted: its tokens but for those that go, and those that come.
      ordinary: which of those that come belong into the model's own vocabulary (BPE only); the others become added.
      merges: what is appended to the merges (BPE only).
    """
    model = dict(document["model"])
    before = model_ids(document)
    vocab = {token: i for token, i in before.items() if wanted.ids.get(token) == i}
    vocab.update(ordinary or {})
    added = _added_entries(document.get("added_tokens") or [], wanted)
    if isinstance(model["vocab"], dict):
        vocab.update(_misplaced(vocab, added))
    if vocab != before:
        size = 1 + max(vocab.values(), default=-1)
        model["vocab"] = vocab if isinstance(model["vocab"], dict) else model["vocab"][:size]
    more = list(merges)
    if "merges" in model and (more or vocab.keys() != before.keys()):
        model["merges"] = _merges(document, vocab, more)
    return {**document, "added_tokens": added, "model": model}


def _added_entries(before: Sequence[Mapping[str, Any]], wanted: Vocabulary) -> list[dict[str, Any]]:
    """`added_tokens` for the wanted ones: those it has in their order, then the others by id."""
    entries = {each["content"]: dict(each) for each in before if each["content"] in wanted.added}
    for token, flags in wanted.added.items():
        if token not in entries:
            entries[token] = {"id": wanted.ids[token], "content": token, **flags._asdict()}
        entries[token]["id"] = wanted.ids[token]
    return list(entries.values())


def _misplaced(vocab: Mapping[str, int], added: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Added tokens that the library would give another id, were they not in the model's vocabulary as well.

    It gives a token that the model lacks the number of the model's tokens, or one more than the largest id of an added
    token that the model lacks too, whichever is more: not the wanted one where the model's ids have gaps.
    """
    inside: dict[str, int] = {}
    while True:
        count, size, largest = len(inside), len(vocab) + len(inside), -1
        for each in added:
            token, wanted = each["content"], each["id"]
            if token in vocab or token in inside:
                continue
            if wanted == max(size, largest + 1):
                largest = wanted
            else:
                inside[token] = wanted
                size += 1
        if len(inside) == count:  # else the model is larger from the first token on
            return inside


def _merges(document: Mapping[str, Any], vocab: Mapping[str, int], more: list[Merge]) -> list[Any]:
    """The merges that are still possible, and `more`, as the document writes them."""
    before = document["model"]["merges"]
    kept = [
        (shown, merge)
        for shown, merge in zip(before, merges_of(document), strict=True)
        if merge[0] in vocab and merge[1] in vocab and product(document, merge) in vocab
    ]
    pairs = bool(before) and isinstance(before[0], list)
    if pairs or not any(" " in part for merge in more for part in merge):
        shown = [shown for shown, _ in kept]
        return shown + [list(each) if pairs else " ".join(each) for each in more]
    return [list(merge) for _, merge in kept] + [list(merge) for merge in more]
