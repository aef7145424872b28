"""Which rows made which token: a table for a file, and a few lines for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from jmerge.tokens.align import Alignment
from jmerge.tokens.rows import ABSENT, TableRows


def embedding_rows(alignment: Alignment) -> TableRows:
    """The rows of a table that every model of the merge has, as the input embedding."""
    return alignment.rows.of(range(alignment.merged))


def table_lines(alignment: Alignment) -> Iterator[str]:
    """A JSON object for every row of the output, without line ends.

    `rows` are the models' own rows, `fill` is what models get that have none: a list of [model, row], of which the mean
    is taken, or "zero"; rows of no token have `fill: "mean of all tokens"`.
    """
    rows = embedding_rows(alignment)
    names = [str(ref) for ref in alignment.models]
    own = [part.tolist() for part in rows.own]
    fill, starts = rows.fill.tolist(), rows.starts.tolist()
    models, sources = rows.models.tolist(), rows.sources.tolist()
    forced = alignment.rows.forced.tolist()
    tokens = alignment.vocabulary.by_id()
    for i in range(rows.rows):
        token = tokens[i] if i < len(tokens) else None
        line: dict[str, object] = {"id": i, "token": token}
        if token is None:
            line["fill"] = "mean of all tokens"
        else:
            line["rows"] = {names[h]: part[i] for h, part in enumerate(own) if part[i] != ABSENT}
            if fill[i] != ABSENT:
                terms = range(starts[fill[i]], starts[fill[i] + 1])
                line["fill"] = [[names[models[k]], sources[k]] for k in terms] or "zero"
            if forced[i]:
                line["forced"] = True
        yield json.dumps(line, ensure_ascii=False)


def summary(alignment: Alignment) -> list[str]:
    """What became of the tokens, in a few lines."""
    rows = embedding_rows(alignment)
    tokens, padding = int(rows.named.sum()), rows.padding
    donor = alignment.models[alignment.donor]
    padded = f"; {_count(padding, 'row')} of no token: means of all others" if padding else ""
    lines = [f"{_count(tokens, 'token')} in {_count(rows.rows, 'row')}{padded}"]
    joined = len(alignment.ordinary) + len(alignment.added)
    if not alignment.edits.written:
        lines.append(f"tokenizer of '{donor}', byte for byte")
    elif joined:
        lines.append(f"tokenizer of '{donor}' with {_count(joined, 'token')} more")
    else:
        lines.append(f"tokenizer of '{donor}' with fewer tokens or other flags")
    if alignment.edits.left_out:
        names = ", ".join(sorted(alignment.edits.left_out))
        lines.append(f"files of '{donor}' that are left out, as they have other tokens: {names}")
    for h, ref in enumerate(alignment.models[: alignment.merged]):
        has = int((rows.own[h] != ABSENT).sum())
        if has < tokens:
            lines.append(f"'{ref}' has rows of its own for {has}, {tokens - has} are filled")
    lines += _fills(alignment, rows)
    return lines


def _fills(alignment: Alignment, rows: TableRows) -> Iterator[str]:
    """Where filled rows come from."""
    counts = np.diff(rows.starts)
    single = rows.models[rows.starts[:-1][counts == 1]]
    for model in np.unique(single).tolist():
        filled = int((single == model).sum())
        yield f"{_count(filled, 'token')} filled from '{alignment.models[model]}'"
    if several := int((counts > 1).sum()):
        yield f"{_count(several, 'token')} filled with the mean of the models that have them"
    if empty := int((counts == 0).sum()):
        yield f"{_count(empty, 'token')} filled with zeros"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
