"""A true union of BPEs: new ordinary tokens stay ordinary, with the merges that make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jmerge.tokens.edit import Merge, merges_of, product

Family = Literal["byte-level", "sentencepiece"]

# What two BPEs must have alike for the merges of one to mean the same in the other.
ALIKE = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")


def family(document: Mapping[str, Any]) -> Family | None:
    """How a BPE's tokens spell a text: as visible bytes, or with `▁` for spaces; None: neither, or no BPE."""
    if "merges" not in document["model"]:
        return None
    steps = [
        step
        for key in ("normalizer", "pre_tokenizer", "decoder")
        for step in _steps(document.get(key))
    ]
    if any(step.get("type") == "ByteLevel" for step in steps):
        return "byte-level"
    spaces = ("Metaspace", "Prepend", "Replace")
    if any(step.get("type") in spaces and "▁" in str(step) for step in steps):
        return "sentencepiece"
    return None


def why_not(base: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Why the merges of two BPEs of one family cannot be united, or None when they can."""
    for key in ALIKE:
        mine, theirs = base["model"].get(key) or None, other["model"].get(key) or None
        if mine != theirs:
            return f"{key} is {theirs} there and {mine} in the base's tokenizer"
    return None


def united_merges(
    base: Mapping[str, Any], others: Sequence[Mapping[str, Any]], vocab: Mapping[str, int]
) -> list[Merge]:
    """The merges that the others add to the base's: in their order, once each, where parts and product are tokens."""
    seen = set(merges_of(base))
    found = []
    for other in others:
        for merge in merges_of(other):
            known = merge[0] in vocab and merge[1] in vocab and product(other, merge) in vocab
            if known and merge not in seen:
                seen.add(merge)
                found.append(merge)
    return found


def _steps(part: Any) -> list[dict[str, Any]]:
    """The steps of a part of the pipeline, those of sequences one by one."""
    if not isinstance(part, dict):
        return []
    inner = [
        *part.get("normalizers", []),
        *part.get("pretokenizers", []),
        *part.get("decoders", []),
    ]
    return [each for item in inner for each in _steps(item)] if inner else [part]
