"""Tables with a row for each token, such as embeddings and heads, as a recipe with a `tokenizer` merges them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jmerge.arch.config import Change, set_vocabulary_size, vocabulary_keys
from jmerge.dtypes import FLOATS, TensorSpec
from jmerge.plan.heads import Heads
from jmerge.plan.inputs import Assembled, Gathered, Read, Stored
from jmerge.plan.models import read_of
from jmerge.plan.notes import Notes
from jmerge.plan.steps import Step
from jmerge.plan.views import Template, View
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.tokens import TokenizerPart
from jmerge.tokens.align import Alignment
from jmerge.tokens.inputs import token_tables
from jmerge.tokens.rows import ABSENT, TableRows
from jmerge.tokens.special import set_special_ids

# The sources that have a tensor: position in the slice, where it lies; and the same as they are merged.
Found = list[tuple[int, Stored]]
Inputs = Sequence[tuple[int, Stored | Gathered]]


class Tables:
    """The token tables of the models of a plan.

    Attributes:
      maps: what makes the rows of gathered inputs, by number.
    """

    def __init__(
        self,
        part: TokenizerPart,
        views: Mapping[ModelRef, View],
        guests: Sequence[View],
        heads: Heads,
        alignment: Alignment | None,
        notes: Notes,
    ) -> None:
        """guests: models that are not merged, whose rows fill tokens; alignment: None when the tokens are at fault, so
        that no table can be made."""
        self.part = part
        self.merged = len(views)
        self.views = (*views.values(), *guests)  # in the order of `alignment.models`
        self.heads = heads
        self.alignment = alignment
        self.notes = notes
        self.maps: list[TableRows] = []
        self._numbers: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        self._names = [frozenset(token_tables(v.checkpoint, v.layout)) for v in self.views]
        if alignment is not None:
            self._check_config(alignment)

    def inputs(self, name: str, template: Template, found: Found) -> Inputs | None:
        """The sources of the output tensor `name` as they are merged: with a row for each token of the output where
        they have one for each of their own.

        None where that is impossible, which is noted as a fault.
        """
        reads = [read for _, read in found if isinstance(read, Read)]
        if len(reads) < len(found):
            return found  # tables have one form
        has = [read.name in self._names[read.model] for read in reads]
        if not any(has):
            return None if self._lies_across(name, reads) else found
        if not all(has):
            ref = self.views[reads[has.index(False)].model].ref
            self._fault(f"{name} has a row for each token, but in {ref} it has others")
            return None
        if self.alignment is None:
            return None
        items = self._gathered(self.alignment, name, template, reads)
        places = [i for i, _ in found]
        return None if items is None else list(zip(places, items, strict=True))

    def _lies_across(self, name: str, reads: Sequence[Read]) -> bool:
        """Whether it is a row with a number for each token, some of which would move, as BART's bias of logits is:
        a fault."""
        if self.alignment is None or not name.endswith("bias"):
            return False
        for read in reads:
            layout, index = self.views[read.model].layout, self.views[read.model].checkpoint.index
            count = index[layout.embeddings[0]].spec.shape[0]
            if read.spec.shape == (1, count):
                rows = self.alignment.rows.of((read.model,))
                if not rows.copies(0, count):
                    self._fault(
                        f"{name} is {list(read.spec.shape)}, a row with a number for each token, which cannot be put "
                        "in another order; leave the tokenizer as it is"
                    )
                    return True
        return False

    def kept(self, step: Step, template: Template, found: Found) -> Step | None:
        """The copy of a tensor that is not merged; where it has a row for each token, with those of the output, which
        the other models that have it (`found`) may fill. None where that is impossible, which is noted."""
        (read,) = step.inputs
        assert isinstance(read, Read | Assembled)  # of one model, as it is
        alike = [each for each in found if each[1].spec.shape[1:] == read.spec.shape[1:]]
        inputs = self.inputs(step.name, template, alike)
        if inputs is None:
            return None
        item = inputs[[own for _, own in alike].index(read)][1]
        spec = TensorSpec(step.spec.dtype, item.spec.shape)
        return dataclasses.replace(step, inputs=(item,), spec=spec)

    def new_config(self, config: dict[str, Any]) -> tuple[dict[str, Any], list[Change]]:
        """config.json of the output with its number of tokens and the ids of its special ones, and what changed."""
        assert self.alignment is not None  # nothing is planned without
        rows, before = self.alignment.rows.rows, self._first_rows()
        config, changes = set_vocabulary_size(config, rows, before)
        if not self.alignment.donor:
            return config, changes
        owner = self.views[self.alignment.donor].checkpoint.config
        ids, moved = self.alignment.special_ids, self.alignment.moved
        config, more = set_special_ids(config, ids, owner, moved)
        return config, changes + more

    def _first_rows(self) -> int:
        """The rows of the donor's first embedding."""
        donor = self.views[0]
        return donor.checkpoint.index[donor.layout.embeddings[0]].spec.shape[0]

    def _check_config(self, alignment: Alignment) -> None:
        """Refuse another number of tokens where config.json has no place for it: loaders would take a default."""
        donor = self.views[0]
        rows, before = alignment.rows.rows, self._first_rows()
        if rows != before and not vocabulary_keys(donor.checkpoint.config, before):
            message = f"config.json of {donor.ref} does not say that it has {before} tokens, so {rows} cannot be told"
            self._fault(f"{message} to loaders; add vocab_size to it")

    def _gathered(
        self, alignment: Alignment, name: str, template: Template, reads: Sequence[Read]
    ) -> list[Read | Gathered] | None:
        """The inputs of the output tensor `name` as they are to be merged; None, with a fault, when rows that it needs
        do not fit, and as they are when they have not all one width, which others tell."""
        tables = {read.model: read for read in reads}
        if (base := self._table_of(0, template, name)) is not None:
            tables.setdefault(0, base)
        kinds = [read.spec.dtype for read in tables.values() if read.spec.dtype not in FLOATS]
        if kinds:
            message = f"{name} has rows of {kinds[0]}, which cannot be put in another order"
            self._fault(message)
            return None
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
            return list(reads)
        for number, read in tables.items():
            if read.spec.shape[1:] != width:
                shapes = f"{list(read.spec.shape)} in {self.views[number].ref} and {list(reads[0].spec.shape)}"
                shapes += f" in {self.views[reads[0].model].ref}"
                self._fault(f"{name} is {shapes}: rows of other lengths cannot fill its tokens")
                return None
        key = holders, tuple(lacking)
        if key not in self._numbers:
            rows = rows.without(lacking) if lacking else rows
            self._numbers[key] = len(self.maps)
            self.maps.append(rows)
            self._note_empty(alignment, name, rows)
        number = self._numbers[key]
        return [self._input(number, read, tables) for read in reads]

    def _input(self, number: int, own: Read, tables: Mapping[int, Read]) -> Read | Gathered:
        """One input: the table as it is where nothing in it moves."""
        rows = self.maps[number]
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

    def _table_of(self, number: int, template: Template, name: str) -> Read | None:
        """The table of a model that goes into the output tensor `name`; None when it has none."""
        view = self.views[number]
        found = view.names.get((template.name, None)) if number < self.merged else None
        if found is None and number < self.merged:
            found = self.heads.stand_in(view, template)
        elif found is None:
            found = self._guest_table(view, template)
        if found is None or found not in self._names[number]:
            return None
        return read_of(view, found)

    def _guest_table(self, view: View, template: Template) -> str | None:
        """The table of the same kind of a model whose names need not be those of the output."""
        layout, merged = view.layout, self.views[: self.merged]
        names = {each.names.get((template.name, None)) for each in merged}
        if any(names & set(each.layout.heads) for each in merged):
            same = layout.heads or layout.embeddings
        elif any(names & set(each.layout.embeddings) for each in merged):
            same = layout.embeddings
        else:
            return template.name if template.name in layout.vocab_biases else None
        return template.name if template.name in same else same[0]

    def _note_empty(self, alignment: Alignment, name: str, rows: TableRows) -> None:
        """Say which tokens get zeros without being asked to."""
        asked = [i for i, filler in alignment.rows.fillers.items() if filler.model == ABSENT]
        empty = np.setdiff1d(rows.empty, asked)
        if empty.size:
            token = alignment.vocabulary.by_id()[int(empty[0])]
            more = f" and {empty.size - 1:,} more" if empty.size > 1 else ""
            message = f"no model that {name} is made of has a row for '{token}'{more}: zeros"
            self.notes.warn(message, self.part.source_path)

    def _fault(self, message: str) -> None:
        self.notes.fault(message, self.part.source_path)
