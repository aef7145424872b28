"""Vocabularies in plain text, `vocab.json` with `merges.txt` or `vocab.txt`, as the tokenizer.json that means the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def byte_level_document(
    vocab: Mapping[str, int], merges: Sequence[str], config: Mapping[str, Any]
) -> dict[str, Any]:
    """The tokenizer.json of a byte-level BPE, as GPT-2 has it.

    Args:
      vocab: what vocab.json says.
      merges: the lines of merges.txt; those that begin with `#version` and empty ones are none.
      config: tokenizer_config.json.

    Raises:
      ValueError: a line is no merge; says which.
    """
    pairs = []
    for number, line in enumerate(merges, 1):
        if line.startswith("#version") or not line.strip():
            continue
        pair = line.split(" ")
        if len(pair) != 2 or any(part not in vocab for part in (*pair, "".join(pair))):
            raise ValueError(f"line {number}: '{line}' is not a merge of tokens of vocab.json")
        pairs.append(pair)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": bool(config.get("add_prefix_space", False)),
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocab),
            "merges": pairs,
        },
    }


def word_piece_document(lines: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json of a WordPiece vocabulary, as BERT has it.

    Args:
      lines: those of vocab.txt, a token each; ids are their numbers from 0.
      config: tokenizer_config.json.

    Raises:
      ValueError: a token stands twice, or `[UNK]`, `[CLS]` or `[SEP]` is missing.
    """
    vocab = {line: number for number, line in enumerate(lines)}
    if len(vocab) != len(lines):
        raise ValueError("has a token twice")
    names = {}
    for key, usual in (("unk_token", "[UNK]"), ("cls_token", "[CLS]"), ("sep_token", "[SEP]")):
        value = config.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        names[key] = value if isinstance(value, str) and value else usual
        if names[key] not in vocab:
            raise ValueError(f"lacks the token '{names[key]}'")
    cls, sep = names["cls_token"], names["sep_token"]
    lower = bool(config.get("do_lower_case", True))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
            "strip_accents": config.get("strip_accents"),
            "lowercase": lower,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing",
            "sep": [sep, vocab[sep]],
            "cls": [cls, vocab[cls]],
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": names["unk_token"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }
