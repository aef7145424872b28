"""Checks of token tables against config.json: rows, columns, which of embedding and head there are, and ties."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from jmerge.arch.fields import TOKEN_ID
from jmerge.arch.infer import VISION, Config, class_names, config_dicts
from jmerge.verify.folder import Finding, Folder

HEADED = ("ForCausalLM", "LMHeadModel")  # how classes end that give a score to every token
# how classes end that give it to some, or to none at times
SCORING = (*HEADED, "ForMaskedLM", "ForConditionalGeneration")
# how classes end that read tokens, besides
READING = (
    "ForMaskedLM",
    "ForConditionalGeneration",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
HEAD = "lm_head"
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
# config keys of models whose embedding has another width than their layers
OTHER_WIDTHS = (
    "embedding_size",
    "input_embedding_size",
    "word_embed_proj_dim",
    "embed_dim",
    "d_embed",
    "emb_dim",
)
A_WIDTH = re.compile(r".*(hidden_(size|dim)|width|d_model|embedding_)\w*")
# Keys of what has rows of a table too: codes of pictures and sounds, learned prompts
OTHER_TOKENS = re.compile(r".*(vocab|codebook|prompt).*")
MOST_SIZES = 50  # of which all pairs are looked at
CALLED = (
    ".weight",
    "embedding",
)  # how names of tables end, and not those of what is learned beside them


def token_tables(folder: Folder) -> Iterator[Finding]:
    """What does not fit in the rows and columns of embeddings and heads."""
    config = folder.config
    parts = [part for _, part in config_dicts(config)]
    rows = {part["vocab_size"] for part in parts if type(part.get("vocab_size")) is int}
    widths = {part[key] for part in parts for key in WIDTHS if type(part.get(key)) is int}
    if any(key in part for part in parts for key in OTHER_WIDTHS):
        widths = set()
    embeddings = [name for name in folder.layout.embeddings if name.endswith(CALLED)]
    heads = list(dict.fromkeys((*folder.layout.heads, *called_heads(folder))))
    if not embeddings:  # else what has as many rows as one is a head
        heads = [n for n in heads if folder.tensors[n].spec.shape[0] in rows or HEAD in n]
    tables = list(dict.fromkeys((*embeddings, *heads)))
    shapes = {name: folder.tensors[name].spec.shape for name in tables}
    counted = _counted_rows(parts, rows)
    # of which some models have rows behind those of the text
    pictures = [
        value
        for part in parts
        for key, value in part.items()
        if type(value) is int and VISION.search(str(key)) and TOKEN_ID.fullmatch(str(key))
    ]
    whole = Counter[str]()  # rows of tables that lie side by side
    for name, shape in shapes.items():
        whole[name.rpartition(".")[0]] += shape[0]
    for name, shape in shapes.items():
        scores = name not in heads or class_name(config).endswith(SCORING)
        if any(max(rows, default=0) <= each < shape[0] for each in pictures):
            continue
        fits = {shape[0], whole[name.rpartition(".")[0]]} & (rows | counted)
        if rows and not fits and scores:
            # some models read more tokens than they write, and count the latter (mllama: pictures)
            written = {shapes[head][0] for head in heads}
            more = shape[0] > max(rows) and bool(written) and written <= rows
            message = f"has {shape[0]} rows; vocab_size is {listed(rows)}"
            yield Finding(message, tensor=name, warning=more)
    if rows and widths:
        yield from _columns(parts, shapes, widths)
    matrices = {n for n, s in folder.specs.items() if len(s.shape) == 2 and s.shape[0] in rows}
    bare = not folder.layout.embeddings and matrices <= set(heads)
    if folder.whole and rows and bare and _reads_text(folder):
        message = (
            f"vocab_size is {listed(rows)}; the weights have no embedding for {class_name(config)}"
        )
        yield Finding(message, folder.config_file)


def _reads_text(folder: Folder) -> bool:
    """Whether the class is one that reads tokens: what hears or sees has convolutions, and may have a vocabulary that it
    only writes."""
    named = class_name(folder.config)
    if named.endswith(HEADED):
        return True
    plain = all(len(spec.shape) < 3 for spec in folder.specs.values())
    return plain and named.endswith(READING) and not VISION.search(str(folder.config).lower())


def _counted_rows(parts: list[Config], rows: set[int]) -> set[int]:
    """How many rows tables may have by what config.json says of other tokens than those of text: so many, so many for
    each codebook, either beside the text's or alone, and one for padding."""
    sizes = [
        value
        for part in parts
        for key, value in part.items()
        if type(value) is int and value > 1 and OTHER_TOKENS.fullmatch(str(key))
    ][:MOST_SIZES]
    products = {a * b for a, b in combinations(sizes, 2)}
    other = {*sizes} - rows
    more = products | {size + 1 for size in products} | other | ({1} if other else set())
    return {base + each for base in {0, *rows} for each in more}


def _columns(
    parts: list[Config], shapes: Mapping[str, tuple[int, ...]], widths: set[int]
) -> Iterator[Finding]:
    """Tables of another width than config.json tells anywhere; one beside others may have it several times, as where
    two streams or the inputs of all layers lie side by side."""
    told = widths | {
        value
        for part in parts
        for key, value in part.items()
        if type(value) is int and A_WIDTH.fullmatch(str(key))
    }
    fitting = {n for n, shape in shapes.items() if any(size in told for size in shape[1:])}
    for name, shape in shapes.items():
        several = bool(fitting) and any(size % each == 0 for size in shape[1:] for each in told)
        if name not in fitting and not several:
            message = f"has {shape[1]} columns; config.json says {listed(widths)}"
            yield Finding(message, tensor=name)


def called_heads(folder: Folder) -> list[str]:
    """Matrices that are called heads, whatever their shapes."""
    specs = folder.specs.items()
    return [n for n, s in specs if f".{n}".endswith(f".{HEAD}.weight") and len(s.shape) == 2]


def class_name(config: Config) -> str:
    """The class that saved the model; empty when config.json names none."""
    return next(iter(class_names(config)), "")


def ties(folder: Folder) -> Iterator[Finding]:
    """There is a head where config.json does not tie it to the embedding."""
    told = _ties_told(folder.config)
    layout = folder.layout
    named = class_name(folder.config)
    headless = not layout.heads and not any(HEAD in name for name in folder.tensors)
    if told == {False} and layout.embeddings and headless and named.endswith(SCORING):
        message = f"tie_word_embeddings is false; the weights have no head for {named}"
        if folder.whole:
            yield Finding(message, folder.config_file)
    pair = _one_table(folder)
    if pair is not None:
        head, table = (folder.tensors[name].spec for name in pair)
        if head.shape != table.shape:
            message = f"tie_word_embeddings is true; the head is {head}, the embedding {table}"
            yield Finding(message, folder.config_file, pair[0])


def tied_tables(folder: Folder) -> tuple[str, str] | None:
    """Head and embedding that config.json says are one, where both are stored in one shape and dtype."""
    pair = _one_table(folder)
    if pair is None or folder.tensors[pair[0]].spec != folder.tensors[pair[1]].spec:
        return None
    return pair


def _one_table(folder: Folder) -> tuple[str, str] | None:
    """The stored head and embedding that config.json says are one."""
    layout = folder.layout
    if _ties_told(folder.config) != {True} or not layout.heads or not layout.embeddings:
        return None
    pairs = [
        (head, table)
        for head in layout.heads
        for table in layout.embeddings
        if layout.roles[head].module == layout.roles[table].module
    ]
    # of several towers' tables, one of the head's shape is meant, wherever it stands in the files
    same = (p for p in pairs if folder.tensors[p[0]].spec == folder.tensors[p[1]].spec)
    return next(same, pairs[0] if pairs else None)


def _ties_told(config: Config) -> set[bool]:
    told = [part.get("tie_word_embeddings") for _, part in config_dicts(config)]
    return {each for each in told if isinstance(each, bool)}


def quantised(config: Config) -> bool:
    """Whether weights are stored packed, perhaps not those of all layers."""
    return any(
        isinstance(part.get("quantization_config"), dict) for _, part in config_dicts(config)
    )


def listed(numbers: set[Any]) -> str:
    """Numbers as a message has them."""
    return " or ".join(map(str, sorted(numbers)))
