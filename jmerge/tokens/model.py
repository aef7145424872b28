"""What the files of one model say about its tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jmerge.ckpt.jsontext import check_values, parse_json
from jmerge.ckpt.source import Source
from jmerge.ckpt.weights import MAX_JSON_BYTES, read_json_file
from jmerge.errors import CheckpointError
from jmerge.tokens import library
from jmerge.tokens.pieces import Pieces, parse_pieces, pieces_document
from jmerge.tokens.plain import byte_level_document, word_piece_document
from jmerge.tokens.vocabulary import PLAIN, SPECIAL, Added, Vocabulary

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL_MAP, ADDED = "special_tokens_map.json", "added_tokens.json"
JINJA, TEMPLATE_JSON = "chat_template.jinja", "chat_template.json"
PIECES = re.compile(r"tokenizer\.model|spiece\.model|sentencepiece.*\.model")
UNREADABLE = re.compile(r".*\.tiktoken|tekken\.json")  # vocabularies without a fast form

NAMED = tuple(f"{word}_token" for word in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
LISTED = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class ModelTokens:
    """The tokenizer of one model.

    Attributes:
      label: the model, as errors name it.
      file: what the vocabulary was read from, such as tokenizer.json or tokenizer.model.
      kind: `BPE`, `Unigram`, `WordPiece` or `WordLevel`.
      text: the content of tokenizer.json, as it is or made from `file`.
      pieces: of a folder with a sentencepiece model, where the vocabulary was read from it.
      vocabulary: every token, those too that only companion files mention.
      config: tokenizer_config.json; empty when there is none.
      special_map, added_map: special_tokens_map.json and added_tokens.json; None when there is none.
      template: the chat template, if any; of several named ones the default.
      files: the names of all files of the folder.
      joined: the tokens that only companion files name.
    """

    label: str
    file: str
    kind: str
    text: str = field(repr=False)
    pieces: Pieces | None = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    special_map: Mapping[str, Any] | None = field(repr=False)
    added_map: Mapping[str, Any] | None = field(repr=False)
    template: str | None = field(repr=False)
    files: frozenset[str] = field(repr=False)
    joined: frozenset[str] = field(default=frozenset(), repr=False)

    @cached_property
    def document(self) -> dict[str, Any]:
        """tokenizer.json, parsed; not to be changed."""
        parsed: dict[str, Any] = json.loads(self.text)
        return parsed

    @cached_property
    def specials(self) -> dict[str, str]:
        """Which token each name, such as `bos_token`, stands for; of those that the vocabulary has."""
        named = {}
        for each in (self.special_map or {}, self.config):
            for name in NAMED:
                token = content_of(each.get(name))
                if token in self.vocabulary.ids:
                    named[name] = token
        return named

    @property
    def pieces_files(self) -> list[str]:
        """The names of its sentencepiece files."""
        return sorted(name for name in self.files if PIECES.fullmatch(name))


def read_tokens(source: Source) -> ModelTokens | None:
    """The tokenizer in the files of a model; None when there is none.

    Raises:
      CheckpointError: a file is not what its name says, or the vocabulary is only there in a form that cannot be read.
      RunError: the files cannot be reached.
    """
    names = frozenset(source.names())
    config = read_json_file(source, CONFIG, missing={})
    found = _find_text(source, names, config)
    if found is None:
        unreadable = sorted(name for name in names if UNREADABLE.fullmatch(name))
        if unreadable:
            message = "cannot be converted here: save the tokenizer as tokenizer.json with transformers first"
            raise source.broken(unreadable[0], message, code="JM302")
        return None
    file, text, pieces = found
    try:
        tokenizer = library.load(text)
    except ValueError as error:
        raise source.broken(file, f"is not a tokenizer: {error}", code="JM302") from error
    special_map = _optional(source, SPECIAL_MAP, names)
    added_map = _optional(source, ADDED, names)
    before = library.read_vocabulary(tokenizer)
    missing = _missing(source, before, config, special_map or {}, added_map or {})
    if missing:
        library.add(tokenizer, missing)
    return ModelTokens(
        label=source.label,
        file=file,
        kind=library.kind_of(tokenizer),
        text=text,
        pieces=pieces,
        vocabulary=library.read_vocabulary(tokenizer) if missing else before,
        config=config,
        special_map=special_map,
        added_map=added_map,
        template=read_template(source),
        files=names,
        joined=frozenset(missing),
    )


def read_template(source: Source) -> str | None:
    """The chat template of a model, which needs no tokenizer; of several named ones the default.

    Raises:
      CheckpointError: a file that holds one is not what its name says.
    """
    if source.size(JINJA) is not None:
        return _read_text(source, JINJA)
    for name in (CONFIG, TEMPLATE_JSON):
        found = template_of(read_json_file(source, name, missing={}).get("chat_template"))
        if found is not None:
            return found
    return None


def template_of(value: Any) -> str | None:
    """The template in a value of the key `chat_template`: a text, or a list of {name, template}; None: none."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        for each in value:
            if isinstance(each, dict) and each.get("name") == "default":
                template = each.get("template")
                return template if isinstance(template, str) else None
    return None


def content_of(value: Any) -> str:
    """The text of a token that companion files write as a text or as a map; empty when it is neither."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def special_tokens(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The tokens that the named and listed keys of a companion file hold, with what it says of each."""
    for name in NAMED:
        if content_of(values.get(name)):
            yield content_of(values[name]), values[name]
    for name in LISTED:
        items = values.get(name)
        items = list(items.values()) if isinstance(items, dict) else items
        for item in items if isinstance(items, list) else ():
            if content_of(item):
                yield content_of(item), item


def vocabulary_file(names: Collection[str]) -> str | None:
    """Which of the files of a model its vocabulary is read from; None when there is none that can be."""
    if TOKENIZER in names:
        return TOKENIZER
    pieces = sorted(name for name in names if PIECES.fullmatch(name))
    if pieces:
        return pieces[0]
    if "vocab.json" in names and "merges.txt" in names:
        return "merges.txt"
    return "vocab.txt" if "vocab.txt" in names else None


def _find_text(
    source: Source, names: frozenset[str], config: Mapping[str, Any]
) -> tuple[str, str, Pieces | None] | None:
    """The file that has the vocabulary, the text of tokenizer.json, and the pieces it was made of."""
    file = vocabulary_file(names)
    if file is None:
        return None
    try:
        if file == TOKENIZER:
            text = _read_text(source, file)
            check_values(parse_json(text.encode("utf-8"), repeats=True))
            return file, text, None
        if PIECES.fullmatch(file):
            pieces = parse_pieces(source.read(file))
            return file, json.dumps(pieces_document(pieces, config), ensure_ascii=False), pieces
        if file == "merges.txt":
            vocab = read_json_file(source, "vocab.json")
            if not all(type(i) is int and i >= 0 for i in vocab.values()):
                raise source.broken("vocab.json", "is not a map from tokens to ids", code="JM302")
            lines = _read_text(source, file).split("\n")
            document = byte_level_document(
                vocab, [line.removesuffix("\r") for line in lines], config
            )
        else:
            lines = _read_text(source, file).removesuffix("\n").split("\n")
            document = word_piece_document([line.removesuffix("\r") for line in lines], config)
    except CheckpointError:
        raise
    except ValueError as error:
        raise source.broken(file, str(error), code="JM302") from error
    return file, json.dumps(document, ensure_ascii=False), None


def _missing(
    source: Source,
    vocabulary: Vocabulary,
    config: Mapping[str, Any],
    special_map: Mapping[str, Any],
    added_map: Mapping[str, Any],
) -> dict[str, Added]:
    """The tokens that companion files mention and the tokenizer lacks, in the order in which they get their ids."""
    special: dict[str, Added] = {}
    for values in (config, special_map):
        for token, value in special_tokens(values):
            special.setdefault(token, _flags(value, SPECIAL))
    numbered: list[tuple[int, str, Added]] = []
    for key, value in _decoder(source, config).items():
        if content_of(value):
            numbered.append((key, content_of(value), _flags(value, PLAIN)))
    for token, number in added_map.items():
        if type(number) is not int:
            raise source.broken(ADDED, f"'{token}': expected an id, found {number!r}", code="JM302")
        numbered.append((number, token, special.get(token, PLAIN)))
    found: dict[str, Added] = {}
    for _, token, flags in sorted(numbered, key=lambda each: each[0]):
        if token and token not in vocabulary.ids:
            found.setdefault(token, flags)
    for token, flags in special.items():
        if token not in vocabulary.ids:
            found.setdefault(token, flags)
    return found


def _decoder(source: Source, config: Mapping[str, Any]) -> dict[int, Any]:
    """`added_tokens_decoder` with numbers for keys."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict) or not all(k.isdecimal() and len(k) < 10 for k in decoder):
        raise source.broken(
            CONFIG, "added_tokens_decoder is not a map from ids to tokens", code="JM302"
        )
    return {int(key): value for key, value in decoder.items()}


def _flags(value: Any, default: Added) -> Added:
    """The flags that a companion file gives a token."""
    if not isinstance(value, dict):
        return default
    known = {name: bool(value[name]) for name in Added._fields if name in value}
    return default._replace(**known)


def _optional(source: Source, name: str, names: frozenset[str]) -> dict[str, Any] | None:
    return read_json_file(source, name) if name in names else None


def _read_text(source: Source, name: str) -> str:
    if source.size_of(name) > MAX_JSON_BYTES:
        raise source.broken(name, f"is larger than {MAX_JSON_BYTES:,} bytes", code="JM124")
    try:
        return source.read(name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise source.broken(name, "is not text in UTF-8", code="JM302") from error
