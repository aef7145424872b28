"""sentencepiece's `tokenizer.model`: its pieces, and the tokenizer.json that means the same.

The file is a protobuf message; only the fields below are looked at, and the file itself is never written again.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
UNIGRAM, BPE = 1, 2  # types of models
MAX_PIECE = (
    1000  # characters: all ways to cut a piece in two are looked at; real ones have up to 128
)
SPACE = "▁"  # what stands for one in pieces

# Number, name, type and default of the fields that we read, by message.
FIELDS: dict[str, tuple[tuple[int, str, str, str], ...]] = {
    "Piece": (
        (1, "piece", "string", ""),
        (2, "score", "float", ""),
        (3, "type", "int32", "1"),
    ),
    "Trainer": (
        (3, "model_type", "int32", "1"),
        (35, "byte_fallback", "bool", "false"),
        (40, "unk_id", "int32", "0"),
        (41, "bos_id", "int32", "1"),
        (42, "eos_id", "int32", "2"),
        (43, "pad_id", "int32", "-1"),
    ),
    "Normalizer": (
        (2, "precompiled_charsmap", "bytes", ""),
        (3, "add_dummy_prefix", "bool", "true"),
        (4, "remove_extra_whitespaces", "bool", "true"),
    ),
    "Model": (
        (1, "pieces", "Piece", ""),
        (2, "trainer_spec", "Trainer", ""),
        (3, "normalizer_spec", "Normalizer", ""),
    ),
}

# Classes that put tokens around a text unless tokenizer_config.json says otherwise.
ADDS_BOS = ("Llama", "CodeLlama", "Gemma", "Mistral")
ADDS_EOS = ("T5", "MT5", "Pegasus", "BigBirdPegasus", "UMT5")


class Piece(NamedTuple):
    """One entry of a sentencepiece vocabulary; its id is its position."""

    text: str
    score: float
    type: int


class Pieces(NamedTuple):
    """What a sentencepiece model says."""

    pieces: tuple[Piece, ...]
    model_type: int  # UNIGRAM or BPE
    byte_fallback: bool
    unk_id: int
    bos_id: int  # -1: none
    eos_id: int  # -1: none
    charsmap: bytes  # compiled rules of normalisation; empty: none
    dummy_prefix: bool  # a space before every text
    squeeze: bool  # runs of spaces become one, those at the ends go


@cache
def message_class() -> Any:
    """The protobuf class of a sentencepiece model."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="jmerge/sentencepiece.proto", package="jmerge.sentencepiece", syntax="proto2"
    )
    for message, fields in FIELDS.items():
        described = file.message_type.add(name=message)
        for number, name, type_name, default in fields:
            field = described.field.add(name=name, number=number, label=kind.LABEL_OPTIONAL)
            if type_name in FIELDS:
                field.type, field.type_name = kind.TYPE_MESSAGE, f".{file.package}.{type_name}"
                field.label = kind.LABEL_REPEATED if name == "pieces" else kind.LABEL_OPTIONAL
            else:
                field.type = getattr(kind, f"TYPE_{type_name.upper()}")
                if default:
                    field.default_value = default
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.Model"))


def parse_pieces(data: bytes) -> Pieces:
    """The pieces in the bytes of a sentencepiece model; ValueError with one line when they are none."""
    from google.protobuf.message import DecodeError

    model = message_class()()
    try:
        model.ParseFromString(data)
        pieces = tuple(Piece(each.piece, each.score, each.type) for each in model.pieces)
    except (DecodeError, UnicodeDecodeError) as error:
        raise ValueError("is not a sentencepiece model") from error
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    if not pieces:
        raise ValueError("is not a sentencepiece model: it has no pieces")
    if trainer.model_type not in (UNIGRAM, BPE):
        raise ValueError(
            f"is a sentencepiece model of type {trainer.model_type}; only unigram (1) and BPE (2) can be read"
        )
    longest = max(len(piece.text) for piece in pieces)
    if longest > MAX_PIECE:
        raise ValueError(f"is a sentencepiece model with a piece of {longest:,} characters")
    texts = {piece.text for piece in pieces}
    if len(texts) != len(pieces):
        raise ValueError("is a sentencepiece model with a duplicate piece")
    if not 0 <= trainer.unk_id < len(pieces):
        raise ValueError(f"is a sentencepiece model whose unk_id {trainer.unk_id} is not a piece")
    return Pieces(
        pieces,
        trainer.model_type,
        trainer.byte_fallback,
        trainer.unk_id,
        trainer.bos_id if 0 <= trainer.bos_id < len(pieces) else -1,
        trainer.eos_id if 0 <= trainer.eos_id < len(pieces) else -1,
        normalizer.precompiled_charsmap,
        normalizer.add_dummy_prefix,
        normalizer.remove_extra_whitespaces,
    )


def pieces_document(model: Pieces, config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json of a sentencepiece model.

    Args:
      config: tokenizer_config.json, which says whether bos and eos stand around a text.
    """
    bpe = model.model_type == BPE
    added = [
        {
            "id": i,
            "content": piece.text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": piece.type != USER_DEFINED,
        }
        for i, piece in enumerate(model.pieces)
        if piece.type in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _sequence("normalizers", "Sequence", list(_normalizers(model))),
        "pre_tokenizer": None,  # sentencepiece cuts whole texts: pieces may hold spaces
        "post_processor": _template(model, config),
        "decoder": _sequence("decoders", "Sequence", list(_decoders(model))),
        "model": _bpe(model) if bpe else _unigram(model),
    }


def _sequence(key: str, kind: str, items: list[dict[str, Any]]) -> dict[str, Any] | None:
    if len(items) < 2:
        return items[0] if items else None
    return {"type": kind, key: items}


def _normalizers(model: Pieces) -> Iterator[dict[str, Any]]:
    if model.charsmap:
        charsmap = base64.b64encode(model.charsmap).decode("ascii")
        yield {"type": "Precompiled", "precompiled_charsmap": charsmap}
    if model.squeeze:
        yield {"type": "Strip", "strip_left": True, "strip_right": True}
        yield {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    if model.dummy_prefix:
        yield {"type": "Prepend", "prepend": SPACE}
    yield {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def _decoders(model: Pieces) -> Iterator[dict[str, Any]]:
    yield {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    if model.byte_fallback:
        yield {"type": "ByteFallback"}
    yield {"type": "Fuse"}
    if model.dummy_prefix:
        yield {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _template(model: Pieces, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The post-processor that puts bos before a text and eos after it, where the tokenizer does so."""
    name = str(config.get("tokenizer_class", "")).removesuffix("Fast").removesuffix("Tokenizer")
    bos = config.get("add_bos_token", name in ADDS_BOS) is True and model.bos_id >= 0
    eos = config.get("add_eos_token", name in ADDS_EOS) is True and model.eos_id >= 0
    if not bos and not eos:
        return None
    ids = [i for i, used in ((model.bos_id, bos), (model.eos_id, eos)) if used]

    def around(letter: str, number: int) -> list[dict[str, Any]]:
        def special(i: int) -> dict[str, Any]:
            return {"SpecialToken": {"id": model.pieces[i].text, "type_id": number}}

        inner = [{"Sequence": {"id": letter, "type_id": number}}]
        before = [special(model.bos_id)] if bos else []
        return before + inner + ([special(model.eos_id)] if eos else [])

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            model.pieces[i].text: {
                "id": model.pieces[i].text,
                "ids": [i],
                "tokens": [model.pieces[i].text],
            }
            for i in ids
        },
    }


def _unigram(model: Pieces) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": model.unk_id,
        "vocab": [[piece.text, piece.score] for piece in model.pieces],
        "byte_fallback": model.byte_fallback,
    }


def _bpe(model: Pieces) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.pieces[model.unk_id].text,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": {piece.text: i for i, piece in enumerate(model.pieces)},
        "merges": [list(pair) for pair in piece_merges(model)],
    }


def piece_merges(model: Pieces) -> list[tuple[str, str]]:
    """The merges that make the pieces of a BPE model, the best first."""
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    found = []
    for piece in model.pieces:
        if piece.type != NORMAL:
            continue
        text = piece.text
        pairs = [(text[:k], text[k:]) for k in range(1, len(text))]
        inside = [(ids[a], ids[b], a, b) for a, b in pairs if a in ids and b in ids]
        found += [(piece.score, a, b) for _, _, a, b in sorted(inside)]
    found.sort(key=lambda each: (each[0], len(each[1]), len(each[2])), reverse=True)
    return [(a, b) for _, a, b in found]
