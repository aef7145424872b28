"""Everything about tokens that a merge will do: decided before a weight is read, as part of the plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from jmerge.arch.config import Change
from jmerge.arch.infer import Layout
from jmerge.ckpt.open import Checkpoint
from jmerge.errors import CheckpointError, Problem, RecipeError, raise_all
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.tokens.align import Alignment, Input, align
from jmerge.tokens.chat import PATH as TEMPLATE_PATH
from jmerge.tokens.chat import Chosen, choose_template
from jmerge.tokens.ending import ending_ids, ending_token, never_ends
from jmerge.tokens.files import NO_EDITS, FileEdits, template_edits
from jmerge.tokens.inputs import read_input
from jmerge.tokens.model import ModelTokens, read_tokens
from jmerge.tokens.special import set_special_ids
from jmerge.tokens.table import summary, table_lines

GENERATION = "generation_config.json"


@dataclass(frozen=True, eq=False)
class TokenPlan:
    """The tokens of the output and the files that speak of them.

    Attributes:
      alignment: None: the tokens are the donor's.
      donor: number of the model whose tokenizer files the output has.
      edits: how they differ.
      changes: what else changes in files beside config.json, by file.
      template: which chat template the output has and why; empty where the recipe asks for none.
      notes: what the user may not expect.
    """

    alignment: Alignment | None
    donor: int
    edits: FileEdits = field(repr=False)
    changes: Mapping[str, tuple[Change, ...]]
    template: str
    notes: tuple[Problem, ...]

    @property
    def summary(self) -> list[str]:
        """What becomes of the tokens and the chat template, in a few lines."""
        lines = [] if self.alignment is None else summary(self.alignment)
        return lines + ([f"chat template: {self.template}"] if self.template else [])

    def table(self) -> str | None:
        """Which rows made which token, a JSON object a line; None where tokens are the donor's."""
        if self.alignment is None:
            return None
        return "".join(f"{line}\n" for line in table_lines(self.alignment))

    def plain(self) -> dict[str, object]:
        """What tells it from others, for JSON: files by hash."""
        written = self.edits.written.items()
        return {
            "donor": self.donor,
            "summary": self.summary,
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in written},
            "left_out": sorted(self.edits.left_out),
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenPlan) and self.plain() == other.plain()


def plan_tokens(
    recipe: Recipe, checkpoints: Mapping[ModelRef, Checkpoint], layouts: Mapping[ModelRef, Layout]
) -> TokenPlan | None:
    """What the recipe's `tokenizer` and `chat_template` make of the models; None when it has neither.

    Args:
      checkpoints, layouts: of the models of the merge, and of those that fill tokens.

    Raises:
      RecipeError: everything that is wrong, each at its line.
      RunError: a file cannot be reached, or no process can be started.
    """
    if recipe.tokenizer is None and recipe.chat_template is None:
        return None
    return _Planner(recipe, checkpoints, layouts).plan()


class _Planner:
    def __init__(
        self,
        recipe: Recipe,
        checkpoints: Mapping[ModelRef, Checkpoint],
        layouts: Mapping[ModelRef, Layout],
    ) -> None:
        self.recipe = recipe
        self.checkpoints = checkpoints
        self.layouts = layouts
        self.refs = recipe.models()
        self.problems: list[Problem] = []
        self.tokens: dict[ModelRef, ModelTokens | None] = {}

    def plan(self) -> TokenPlan:
        """The whole."""
        alignment = self.align() if self.recipe.tokenizer is not None else None
        donor = alignment.donor if alignment else 0
        edits = alignment.edits if alignment else NO_EDITS
        notes = alignment.notes if alignment else ()
        chosen = None
        if self.recipe.chat_template is not None:
            edits, chosen = self.choose_template(donor, edits)
        raise_all(RecipeError, self.problems)
        changes: dict[str, tuple[Change, ...]] = {}
        if alignment is not None and alignment.donor:
            made, data = self.edit_generation(alignment)
            if made:
                changes[GENERATION] = made
                edits = FileEdits({**edits.written, GENERATION: data}, edits.left_out)
        if chosen is not None:
            notes += chosen.notes + self.doubts(chosen, donor, edits, alignment)
        return TokenPlan(alignment, donor, edits, changes, chosen.reason if chosen else "", notes)

    def align(self) -> Alignment | None:
        """The output's tokens; None, with problems, when they cannot be aligned."""
        inputs: dict[ModelRef, Input] = {}
        for ref, checkpoint in self.checkpoints.items():
            try:
                inputs[ref] = read_input(checkpoint, self.layouts[ref])
                self.tokens[ref] = inputs[ref].tokens
            except CheckpointError as error:
                self.blame(ref, error)
        if self.problems:
            return None
        try:
            return align(self.recipe, inputs)
        except RecipeError as error:
            self.problems += error.problems
            return None

    def choose_template(self, donor: int, edits: FileEdits) -> tuple[FileEdits, Chosen | None]:
        """The edits with the chat template, and which it is; None, with problems, when it cannot be."""
        asked = self.refs if self.recipe.chat_template == "auto" else (self.refs[donor],)
        for ref in asked:
            if ref not in self.tokens and not self.problems:
                try:
                    self.tokens[ref] = read_tokens(self.checkpoints[ref].main_source)
                except CheckpointError as error:
                    self.blame(ref, error)
        found = [self.tokens.get(ref) for ref in self.refs]
        try:
            chosen = choose_template(
                self.recipe, [each.template if each else None for each in found]
            )
        except RecipeError as error:
            self.problems += error.problems
            return edits, None
        if chosen.template is not None and not self.problems:
            edits = template_edits(found[donor], edits, chosen.template)
        return edits, chosen

    def doubts(
        self, chosen: Chosen, donor: int, edits: FileEdits, alignment: Alignment | None
    ) -> tuple[Problem, ...]:
        """What to say of a template that writes what is no token, which a model sees in pieces, or whose turns do not
        end."""
        own = self.tokens.get(self.refs[donor])
        if own is None:
            return ()
        known = alignment.vocabulary if alignment else own.vocabulary
        strange = [mark for mark in chosen.marks if mark not in known.ids]
        if strange:
            message = f"writes {', '.join(strange)}, for which the output has no token"
            hint = "name them under 'tokenizer: tokens:', or choose another template"
            return (self.recipe.problem(f"{message}; {hint}", TEMPLATE_PATH, code="JM315"),)
        token = ending_token(chosen.after, known)
        base = self.checkpoints[self.refs[0]]
        generation = base.generation
        if GENERATION in edits.written:
            generation = json.loads(edits.written[GENERATION])
        ids = ending_ids(own, known, generation, {} if donor else base.config)
        if token is None or known.ids[token] in ids:
            return ()
        message = never_ends(token, known, ids)
        for ref in self.refs:
            with suppress(CheckpointError):  # of a model whose tokenizer nobody asked for
                tokens = self.tokens.get(ref) or read_tokens(self.checkpoints[ref].main_source)
                if tokens and tokens.specials.get("eos_token") == token:
                    hint = f"'tokenizer_source: {ref}'"
                    message += f", or take the tokenizer of a model that ends like this ({hint})"
                    break
        return (self.recipe.problem(message, TEMPLATE_PATH, code="JM316"),)

    def edit_generation(self, alignment: Alignment) -> tuple[tuple[Change, ...], bytes]:
        """generation_config.json with the ids of the tokenizer's special tokens."""
        before, own = (
            self.checkpoints[ref].generation for ref in (self.refs[0], self.refs[alignment.donor])
        )
        if not before:
            return (), b""
        config, changes = set_special_ids(before, alignment.special_ids, own, alignment.moved)
        return tuple(changes), (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()

    def blame(self, ref: ModelRef, error: CheckpointError) -> None:
        """Note what is wrong with a model at its line of the recipe."""
        where = self.recipe.first_path(ref)
        self.problems += [
            self.recipe.problem(problem.text, where, code=problem.code)
            for problem in error.problems
        ]
