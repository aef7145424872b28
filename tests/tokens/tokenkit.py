"""Real tokenizers of every kind, trained on the spot, and folders of models that have them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers.processors import TemplateProcessing

from jmerge.ckpt.source import LocalSource
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.tokens.align import Alignment, Input, align
from jmerge.tokens.model import ModelTokens, read_tokens
from jmerge.tokens.pieces import message_class

ENGLISH = (
    "the cat sat on the mat while the other cat looked at the hat",
    "hello there, the weather is fine and the sea is wide",
    "a merge of models is a mean of weights, or something wiser",
)
FRENCH = (
    "bonjour le chat, bonjour la mer, bonjour les autres",
    "le chat regarde la mer et la mer regarde le chat",
    "une fusion de modèles est une moyenne de poids",
)
TEXTS = (*ENGLISH, *FRENCH, "naïve  café\n\t<x> 🙂", "")
KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
UNK, BOS, EOS = "<unk>", "<s>", "</s>"


@cache
def trained(kind: str, texts: tuple[str, ...] = ENGLISH, size: int = 320) -> str:
    """The tokenizer.json of a tokenizer of one kind, trained on some texts, that puts bos before a text."""
    special = [UNK, BOS, EOS]
    if kind == "BPE":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    elif kind == "Unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=100, special_tokens=special, unk_token=UNK, show_progress=False
        )
    elif kind == "WordPiece":
        made = Tokenizer(models.WordPiece(unk_token=UNK))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=120, special_tokens=special, show_progress=False
        )
    else:
        made = Tokenizer(models.WordLevel(unk_token=UNK))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    made.train_from_iterator(texts, trainer)
    made.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, made.token_to_id(BOS))]
    )
    return str(made.to_str(pretty=True))


@cache
def metaspace_bpe(texts: tuple[str, ...] = ENGLISH, size: int = 110) -> str:
    """The tokenizer.json of a BPE that spells spaces as sentencepiece does."""
    made = Tokenizer(models.BPE(unk_token=UNK, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[UNK, BOS, EOS], show_progress=False
    )
    # word by word, so that no piece holds two
    made.train_from_iterator([word for text in texts for word in text.split()], trainer)
    return str(made.to_str())


def words(*tokens: str, added: dict[str, dict[str, Any]] | None = None) -> str:
    """The tokenizer.json of a WordLevel whose words are `tokens`, with ids from 0; added ones with their flags."""
    made = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=tokens[0]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for token, flags in (added or {}).items():
        made.add_tokens([AddedToken(token, **flags)])
    return str(made.to_str(pretty=True))


def with_tokens(text: str, *tokens: str, special: bool = False) -> str:
    """A tokenizer.json with more added tokens."""
    made = Tokenizer.from_str(text)
    each = [AddedToken(token, normalized=not special) for token in tokens]
    (made.add_special_tokens if special else made.add_tokens)(each)
    return str(made.to_str(pretty=True))


def size_of(text: str) -> int:
    """The number of tokens of a tokenizer.json."""
    return int(Tokenizer.from_str(text).get_vocab_size())


def sentencepiece(
    pieces: list[tuple[str, float, int]],
    *,
    bpe: bool,
    byte_fallback: bool = False,
    **normalizer: Any,
) -> bytes:
    """A sentencepiece model of these (text, score, type)."""
    model = message_class()()
    for text, score, kind in pieces:
        model.pieces.add(piece=text, score=score, type=kind)
    model.trainer_spec.model_type = 2 if bpe else 1
    model.trainer_spec.byte_fallback = byte_fallback
    model.normalizer_spec.remove_extra_whitespaces = False
    for key, value in normalizer.items():
        setattr(model.normalizer_spec, key, value)
    return bytes(model.SerializeToString())


def folder(place: Path, **files: Any) -> Path:
    """A folder of files whose names have `__` for a dot; maps and lists become JSON."""
    place.mkdir(parents=True, exist_ok=True)
    for key, content in files.items():
        if isinstance(content, dict | list):
            content = json.dumps(content)
        data = content.encode("utf-8") if isinstance(content, str) else content
        (place / key.replace("__", ".")).write_bytes(data)
    return place


def read(place: Path, **files: Any) -> ModelTokens:
    """The tokenizer of a folder with these files."""
    found = read_tokens(LocalSource(folder(place, **files)))
    assert found is not None
    return found


def recipe_of(*models: str, tail: str = "tokenizer_source: union", base: bool = True) -> Recipe:
    """A recipe over these models, the first of them its base; `tail` begins on line 5 + their number."""
    lines = ["merge_method: linear", *([f"base_model: {models[0]}"] if base else []), "models:"]
    lines += [f"  - {{model: {model}, parameters: {{weight: 1}}}}" for model in models]
    return Recipe.from_text("\n".join([*lines, tail, ""]), "x.yml")


def aligned(place: Path, recipe: Recipe, **inputs: Any) -> Alignment:
    """Align models given as tokenizer.json texts, or (text, rows), or (text, rows, config's size), or files."""
    found = {}
    for name, given in inputs.items():
        text, *sizes = given if isinstance(given, tuple) else (given,)
        files = text if isinstance(text, dict) else {"tokenizer__json": text}
        tokens = None if text is None else read(place / name, **files)
        rows = sizes[0] if sizes or tokens is None else tokens.vocabulary.size
        found[ModelRef(name)] = Input(tokens, rows, *sizes[1:])
    return align(recipe, found)
