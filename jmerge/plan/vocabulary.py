"""Tokens: tables with a row for each token, as a recipe with a `tokenizer` merges them, and models whose tokens or chat
templates are not those of the output."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np

from jmerge.arch.config import Change, set_vocabulary_size, vocabulary_keys
from jmerge.ckpt.source import Source
from jmerge.ckpt.weights import read_json_file
from jmerge.dtypes import FLOATS, TensorSpec
from jmerge.errors import CheckpointError
from jmerge.plan.inputs import Gathered, Read, Stored
from jmerge.plan.outcomes import OTHER_VOCABULARY, Maps, Outcome, shapes_text
from jmerge.plan.pairing import Template, View
from jmerge.plan.problems import PlanProblem, error, warning
from jmerge.plan.steps import Step
from jmerge.plan.targets import Found, Heads, Views
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.tokens import TokenizerPart
from jmerge.tokens.align import Alignment
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
from jmerge.tokens.rows import ABSENT, TableRows
from jmerge.tokens.special import set_special_ids

SHOWN = 3  # ids that a message names
FILES = (TOKENIZER, SPECIAL_MAP, ADDED, "vocab.json", "merges.txt", "vocab.txt")

Inputs = Sequence[
    tuple[int, Stored | Gathered]
]  # sources as they are merged: position in the slice, input
Used = Mapping[int, Collection[str]]  # the tensors that steps read, by number of the model


class Gathering(NamedTuple):
    """A tensor's sources as they are merged."""

    inputs: Inputs | None  # None: that is impossible, or the recipe's tokens are
    maps: Maps = {}  # those that are new
    problems: tuple[PlanProblem, ...] = ()


@dataclasses.dataclass(frozen=True)
class Tables:
    """The token tables of the models of a plan.

    Attributes:
      guests: models that are not merged, whose rows fill tokens.
      alignment: None when the recipe's tokens are wrong, so that no table can be made.
    """

    part: TokenizerPart
    merged: Views
    guests: Sequence[View]
    heads: Heads
    alignment: Alignment | None

    @cached_property
    def _views(self) -> tuple[View, ...]:  # in the order of `alignment.models`
        return (*self.merged.values(), *self.guests)

    @cached_property
    def _names(self) -> list[frozenset[str]]:
        return [frozenset(token_tables(view.checkpoint, view.layout)) for view in self._views]

    def inputs(self, name: str, template: Template, found: Found, maps: Maps) -> Gathering:
        """The sources of the output tensor `name` as they are merged: with a row for each token of the output where
        they have one for each of their own.

        maps: those that tensors before this one have.
        """
        reads = [read for _, read in found if isinstance(read, Read)]
        if len(reads) < len(found):
            return Gathering(found)  # tables have one form
        has = [read.name in self._names[read.model] for read in reads]
        if not any(has):
            across = self._across(name, reads)
            return self._refused(across) if across else Gathering(found)
        if not all(has):
            ref = self._views[reads[has.index(False)].model].ref
            return self._refused(f"{name} has a row for each token, but in {ref} it has others")
        if self.alignment is None:
            return Gathering(None)
        return self._gathered(self.alignment, name, template, found, reads, maps)

    def _refused(self, message: str) -> Gathering:
        return Gathering(None, problems=(error("JM229", message, self.part.source_path),))

    def _across(self, name: str, reads: Sequence[Read]) -> str | None:
        """What is wrong with a row with a number for each token, some of which would move, as BART's bias of logits."""
        if self.alignment is None or not name.endswith("bias"):
            return None
        for read in reads:
            layout, index = self._views[read.model].layout, self._views[read.model].checkpoint.index
            count = index[layout.embeddings[0]].spec.shape[0]
            if read.spec.shape == (1, count):
                if not self.alignment.rows.of((read.model,)).copies(0, count):
                    return (
                        f"{name} is {list(read.spec.shape)}, a row with a number for each token, which cannot be put "
                        "in another order; leave the tokenizer as it is"
                    )
        return None

    def copied(
        self, outcome: Outcome, template: Template, found: Found | None, maps: Maps
    ) -> Outcome:
        """The copy of a tensor that is not merged; where it has a row for each token, with those of the output, which
        the other models that have it (`found`; None: there are none) may fill."""
        step = outcome.step
        if step is None:
            return outcome
        (read,) = step.inputs
        found = [(0, cast(Stored, read))] if found is None else found
        alike = [each for each in found if each[1].spec.shape[1:] == read.spec.shape[1:]]
        inputs, new, problems = self.inputs(step.name, template, alike, maps)
        if inputs is None:
            return outcome._replace(step=None, problems=problems)
        item = inputs[[own for _, own in alike].index(cast(Stored, read))][1]
        spec = TensorSpec(step.spec.dtype, item.spec.shape)
        step = dataclasses.replace(step, inputs=(item,), spec=spec)
        return outcome._replace(step=step, problems=problems, maps=new)

    def new_config(self, config: dict[str, Any]) -> tuple[dict[str, Any], list[Change]]:
        """config.json of the output with its number of tokens and the ids of its special ones, and what changed."""
        assert self.alignment is not None  # nothing is planned without
        config, changes = set_vocabulary_size(config, self.alignment.rows.rows, self._first_rows())
        if not self.alignment.donor:
            return config, changes
        owner = self._views[self.alignment.donor].checkpoint.config
        ids, moved = self.alignment.special_ids, self.alignment.moved
        config, more = set_special_ids(config, ids, owner, moved)
        return config, changes + more

    def _first_rows(self) -> int:
        """The rows of the donor's first embedding."""
        donor = self._views[0]
        return donor.checkpoint.index[donor.layout.embeddings[0]].spec.shape[0]

    def config_problems(self) -> Iterator[PlanProblem]:
        """Another number of tokens where config.json has no place for it: loaders would take a default."""
        if self.alignment is None:
            return
        donor, rows, before = self._views[0], self.alignment.rows.rows, self._first_rows()
        if rows != before and not vocabulary_keys(donor.checkpoint.config, before):
            message = (
                f"config.json of {donor.ref} does not say that it has {before} tokens, so loaders"
            )
            message += f" would not learn that it has {rows} now; add vocab_size to it"
            yield error("JM229", message, self.part.source_path)

    def _gathered(
        self,
        alignment: Alignment,
        name: str,
        template: Template,
        found: Found,
        reads: Sequence[Read],
        maps: Maps,
    ) -> Gathering:
        """The inputs as they are to be merged; as they are when they do not all have one width, which others tell."""
        tables = {read.model: read for read in reads}
        if (base := self._table_of(0, template, name)) is not None:
            tables.setdefault(0, base)
        kinds = [read.spec.dtype for read in tables.values() if read.spec.dtype not in FLOATS]
        if kinds:
            message = f"{name} has rows of {kinds[0]}, which cannot be put in another order"
            return self._refused(message)
        holders = tuple(sorted(tables))
        rows = alignment.rows.of(holders)
        lacking = []
        for guest in rows.guests:
            table = self._table_of(guest, template, name)
            if table is None:
                lacking.append(guest)
            else:
                tables[guest] = table
        width = reads[0].spec.shape[1:]
        if any(read.spec.shape[1:] != width for read in reads):
            return Gathering(found)
        for number, read in tables.items():
            if read.spec.shape[1:] != width:
                refs = [self._views[each].ref for each in (number, reads[0].model)]
                shapes = shapes_text(read.spec.shape, refs[0], reads[0].spec.shape, refs[1])
                return self._refused(
                    f"{name} is {shapes}: rows of other lengths cannot fill its tokens"
                )
        key = holders, tuple(lacking)
        new: Maps = {}
        problems: tuple[PlanProblem, ...] = ()
        if key not in maps:
            new = {key: rows.without(lacking) if lacking else rows}
            problems = tuple(self._empty(alignment, name, new[key]))
        rows = {**maps, **new}[key]
        number = list({**maps, **new}).index(key)
        items = [_gather(number, rows, read, tables) for read in reads]
        return Gathering(
            [(i, item) for (i, _), item in zip(found, items, strict=True)], new, problems
        )

    def _table_of(self, number: int, template: Template, name: str) -> Read | None:
        """The table of a model that goes into the output tensor `name`; None when it has none."""
        view = self._views[number]
        if number < len(self.merged):
            found = view.names.get((template.name, None)) or self.heads.stand_in(view, template)
        else:
            found = self._guest_table(view, template)
        if found is None or found not in self._names[number]:
            return None
        return view.read(found)

    def _guest_table(self, view: View, template: Template) -> str | None:
        """The table of the same kind of a model whose names need not be those of the output."""
        layout, merged = view.layout, self.merged.values()
        names = {each.names.get((template.name, None)) for each in merged}
        if any(names & set(each.layout.heads) for each in merged):
            same = layout.heads or layout.embeddings
        elif any(names & set(each.layout.embeddings) for each in merged):
            same = layout.embeddings
        else:
            return template.name if template.name in layout.vocab_biases else None
        return template.name if template.name in same else same[0]

    def _empty(self, alignment: Alignment, name: str, rows: TableRows) -> Iterator[PlanProblem]:
        """The tokens that get zeros without being asked to."""
        asked = [i for i, filler in alignment.rows.fillers.items() if filler.model == ABSENT]
        empty = np.setdiff1d(rows.empty, asked)
        if empty.size:
            token = alignment.vocabulary.by_id()[int(empty[0])]
            more = f" and {empty.size - 1:,} more" if empty.size > 1 else ""
            message = f"no model that {name} is made of has a row for '{token}'{more}: zeros"
            yield warning("JM230", message, self.part.source_path)


def _gather(number: int, rows: TableRows, own: Read, tables: Mapping[int, Read]) -> Read | Gathered:
    """One input: the table as it is where nothing in it moves."""
    holder = rows.holders.index(own.model)
    if rows.copies(holder, own.spec.shape[0]):
        return own
    models, means = rows.fills_of(holder)
    others = tuple(tables[model] for model in models if model != own.model)
    dtypes = {own.spec.dtype, *(read.spec.dtype for read in others)}
    dtype = own.spec.dtype
    if means or len(dtypes) > 1:
        dtype = "F64" if "F64" in dtypes else "F32"
    spec = TensorSpec(dtype, (rows.rows, *own.spec.shape[1:]))
    return Gathered(rows=number, own=own, others=others, spec=spec)


def row_problems(steps: Iterable[Step], views: Views, recipe: Recipe) -> Iterator[PlanProblem]:
    """Tables that only another model makes, as in a stack of layers, with other rows than the donor's config.json and
    tokenizer have; of models that make one together the shapes are compared anyway."""
    donor = next(iter(views.values()))
    if recipe.tokenizer is not None or not _tables(donor):
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
                path = recipe.first_path(view.ref)
                yield error("JM226", f"{message}: {OTHER_VOCABULARY}", path)


def other_tokens(views: Views, used: Used, recipe: Recipe) -> Iterator[PlanProblem]:
    """Models whose tables are read though a row is another token's there than in the donor: tables of one size
    are merged row by row, whatever the rows stand for."""
    donor, *others = views.values()
    others = [each for each in others if _tables(each).intersection(used[each.number])]
    if recipe.tokenizer is not None or not others or not _tables(donor):
        return
    wanted = None
    for view in others:
        path = recipe.first_path(view.ref)
        try:
            if _same_files(view.checkpoint.main_source, donor.checkpoint.main_source):
                continue
            wanted = _tokens(donor) if wanted is None else wanted
            own = _tokens(view)
        except CheckpointError as failure:
            why = " ".join(each.text for each in failure.problems)
            message = f"its tokens could not be compared with those of {donor.ref}: {why}"
            yield warning("JM302", message, path)
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
            yield warning(
                "JM227",
                f"{count} for another token than in {donor.ref}, whose tokenizer the output has: "
                f"{', '.join(shown)}{more}; add 'tokenizer_source: union' to merge token by token",
                path,
            )


def other_templates(views: Views, number: int, used: Used, recipe: Recipe) -> Iterator[PlanProblem]:
    """Merged models with another chat template than the model of this number, whose the output has."""
    if recipe.chat_template is not None:
        return
    donor = list(views.values())[number]
    found: dict[ModelRef, str] = {}
    for view in views.values():
        try:
            found[view.ref] = (read_template(view.checkpoint.main_source) or "").strip()
        except CheckpointError as failure:
            why = " ".join(each.text for each in failure.problems)
            message = f"its chat template could not be compared: {why}"
            yield warning("JM302", message, recipe.first_path(view.ref))
    kept = found.get(donor.ref)
    others = [ref for ref, own in found.items() if own and own != kept and used[views[ref].number]]
    if kept is None or not others:
        return
    if kept:
        message = f"the output has the chat template of {donor.ref}; another comes with "
    else:
        message = f"the output has no chat template, as {donor.ref} has none; one comes with "
    message += ", ".join(map(str, others)) + " ('chat_template: auto' takes that of most models)"
    yield warning("JM228", message, recipe.first_path(others[0]))


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
