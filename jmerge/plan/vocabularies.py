"""Where the recipe does not say whose tokens or chat template the output has: models that have others than the donor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jmerge.ckpt.source import Source
from jmerge.ckpt.weights import read_json_file
from jmerge.errors import CheckpointError
from jmerge.plan.findings import OTHER_VOCABULARY
from jmerge.plan.inputs import Read
from jmerge.plan.notes import Notes
from jmerge.plan.steps import Step
from jmerge.plan.views import View
from jmerge.recipe.refs import ModelRef
from jmerge.tokens.inputs import table_rows, token_tables
from jmerge.tokens.model import (
    ADDED,
    CONFIG,
    LISTED,
    NAMED,
    PIECES,
    SPECIAL_MAP,
    TOKENIZER,
    UNREADABLE,
    read_template,
    read_tokens,
)

SHOWN = 3  # ids that a message names
FILES = (TOKENIZER, SPECIAL_MAP, ADDED, "vocab.json", "merges.txt", "vocab.txt")


def check_table_sizes(steps: Iterable[Step], views: Mapping[ModelRef, View], notes: Notes) -> None:
    """Refuse tables that only another model makes, as in a stack of layers, with other rows than the donor's config.json
    and tokenizer have; of models that make one together the shapes are compared anyway."""
    donor = next(iter(views.values()))
    if notes.recipe.tokenizer is not None or not _tables(donor):
        return
    by_number = {view.number: (view, _tables(view)) for view in views.values()}
    index, first = donor.checkpoint.index, donor.layout.embeddings[0]
    for step in steps:
        for read in step.inputs:
            if not isinstance(read, Read):
                continue  # tables have one form, and nothing is gathered without a tokenizer
            view, tables = by_number[read.model]
            if read.name not in tables:
                continue
            rows = index[step.name if step.name in index else first].spec.shape[0]
            if read.spec.shape[0] != rows:
                message = f"{step.name} has {read.spec.shape[0]} rows in {view.ref}, {rows} in {donor.ref}"
                notes.fault(f"{message}: {OTHER_VOCABULARY}", notes.recipe.first_path(view.ref))


def tell_other_tokens(views: Mapping[ModelRef, View], notes: Notes) -> None:
    """Warn of models whose tables are read though a row is another token's there than in the donor: tables of one size
    are merged row by row, whatever the rows stand for."""
    donor, *others = views.values()
    others = [each for each in others if each.used.keys() & _tables(each)]
    if notes.recipe.tokenizer is not None or not others or not _tables(donor):
        return
    wanted = None
    for view in others:
        path = notes.recipe.first_path(view.ref)
        try:
            if _same_files(view.checkpoint.main_source, donor.checkpoint.main_source):
                continue
            wanted = _tokens(donor) if wanted is None else wanted
            own = _tokens(view)
        except CheckpointError as error:
            fault = " ".join(map(str, error.faults))
            notes.warn(f"its tokens could not be compared with those of {donor.ref}: {fault}", path)
            continue
        if not own or not wanted:
            continue
        rows = min(_rows(view), _rows(donor))
        ids = [i for i in sorted(own.keys() | wanted.keys()) if own.get(i) != wanted.get(i)]
        ids = [i for i in ids if i < rows]
        if ids:
            shown = [f"{i} is {_word(own, i)} (output: {_word(wanted, i)})" for i in ids[:SHOWN]]
            more = ", ..." if len(ids) > SHOWN else ""
            count = "1 id stands" if len(ids) == 1 else f"{len(ids):,} ids stand"
            notes.warn(
                f"{count} for another token than in {donor.ref}, whose tokenizer the output has: "
                f"{', '.join(shown)}{more}; add 'tokenizer_source: union' to merge token by token",
                path,
            )


def tell_other_templates(views: Mapping[ModelRef, View], number: int, notes: Notes) -> None:
    """Warn of merged models with another chat template than the model of this number, whose the output has."""
    if notes.recipe.chat_template is not None:
        return
    donor = list(views.values())[number]
    found: dict[ModelRef, str] = {}
    for view in views.values():
        try:
            found[view.ref] = (read_template(view.checkpoint.main_source) or "").strip()
        except CheckpointError as error:
            fault = " ".join(map(str, error.faults))
            message = f"its chat template could not be compared: {fault}"
            notes.warn(message, notes.recipe.first_path(view.ref))
    kept = found.get(donor.ref)
    others = [ref for ref, own in found.items() if own and own != kept and views[ref].used]
    if kept is None or not others:
        return
    if kept:
        message = f"the output has the chat template of {donor.ref}; another comes with "
    else:
        message = f"the output has no chat template, as {donor.ref} has none; one comes with "
    message += ", ".join(map(str, others)) + " ('chat_template: auto' takes that of most models)"
    notes.warn(message, notes.recipe.first_path(others[0]))


def _tables(view: View) -> set[str]:
    return set(token_tables(view.checkpoint, view.layout))


def _rows(view: View) -> int:
    return table_rows(view.checkpoint, view.layout)


def _tokens(view: View) -> dict[int, str]:
    """The token of each id that has a row; none when the model has no tokenizer."""
    tokens = read_tokens(view.checkpoint.main_source)
    found = tokens.vocabulary.below(_rows(view)).by_id() if tokens is not None else []
    return {i: token for i, token in enumerate(found) if token is not None}


def _same_files(one: Source, other: Source) -> bool:
    """Whether the files of two models that say what their tokens are do not differ, which is found fast."""
    names = [
        {n for n in each.names() if n in FILES or PIECES.fullmatch(n) or UNREADABLE.fullmatch(n)}
        for each in (one, other)
    ]
    if names[0] != names[1] or any(one.size(name) != other.size(name) for name in names[0]):
        return False
    said = [read_json_file(each, CONFIG, missing={}) for each in (one, other)]
    keys = (*NAMED, *LISTED, "added_tokens_decoder")  # the rest is not about tokens
    return all(said[0].get(key) == said[1].get(key) for key in keys) and all(
        one.read(name) == other.read(name) for name in names[0]
    )


def _word(tokens: Mapping[int, str], i: int) -> str:
    return f"'{tokens[i]}'" if i in tokens else "none"
