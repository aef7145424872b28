"""From what a recipe says of the tokenizer and what models have: the output's tokens, their rows and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jmerge.errors import Problem, RecipeError, raise_all
from jmerge.names import did_you_mean, nearest
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.tokens import ModelToken, TokenEntry, TokenizerPart, Zero
from jmerge.tokens.bpe import family, united_merges, why_not
from jmerge.tokens.edit import Merge, pipeline_tokens
from jmerge.tokens.files import FileEdits, vocabulary_edits
from jmerge.tokens.model import TOKENIZER, ModelTokens
from jmerge.tokens.rows import ABSENT, Filler, TokenRows, own_rows
from jmerge.tokens.special import moved_ids, special_ids
from jmerge.tokens.union import Union, unite
from jmerge.tokens.vocabulary import PLAIN, Vocabulary

SHOWN = 3  # tokens that a message names
LONGEST_HINT = 50_000  # tokens among which a misspelt one is looked for


class Input(NamedTuple):
    """What alignment has to know of one model."""

    tokens: ModelTokens | None  # None: it has no tokenizer
    rows: int  # of its input embedding
    config_size: int | None = None  # tokens that its config.json says it has

    @property
    def limit(self) -> int:
        """Only tokens with ids below it can be used."""
        return self.rows if self.config_size is None else min(self.config_size, self.rows)


@dataclass(frozen=True, eq=False)
class Alignment:
    """The tokens of the output.

    Attributes:
      models: those of the merge, the base first, then those that only `model_token` names.
      merged: how many are of the merge.
      donor: number of the model whose tokenizer files the output has, but for the edits.
      vocabulary: every token of the output.
      ordinary, added: the tokens that the donor lacks, by id: ordinary ones of other models, and all the rest.
      rows: which rows make which.
      edits: how the donor's tokenizer files change; none where its tokens are those of the output.
      special_ids: `bos_token_id` and the like where the tokenizer is not the base's; else empty, as nothing changes.
      moved: the output's id of each token of the base, by the base's id; empty where the tokenizer is the base's.
      notes: what the user may not expect, at its line.
    """

    models: tuple[ModelRef, ...]
    merged: int
    donor: int
    vocabulary: Vocabulary = field(repr=False)
    ordinary: tuple[str, ...] = field(repr=False)
    added: tuple[str, ...] = field(repr=False)
    rows: TokenRows = field(repr=False)
    edits: FileEdits = field(repr=False)
    special_ids: Mapping[str, int]
    moved: Mapping[int, int] = field(repr=False)
    notes: tuple[Problem, ...]


def align(recipe: Recipe, inputs: Mapping[ModelRef, Input]) -> Alignment:
    """The output's tokens, as the recipe's `tokenizer` asks for.

    Args:
      recipe: one with a `tokenizer`.
      inputs: every model of the merge, and those of `model_token` entries.

    Raises:
      RecipeError: what is wrong, one line a problem at its line of the recipe.
    """
    return _Aligner(recipe, inputs).align()


class _Aligner:
    def __init__(self, recipe: Recipe, inputs: Mapping[ModelRef, Input]) -> None:
        assert recipe.tokenizer is not None  # as `align` asks for
        self.recipe = recipe
        self.part: TokenizerPart = recipe.tokenizer
        self.refs = recipe.models()
        guests = [ref for ref in self.part.token_models() if ref not in self.refs]
        self.models = (*self.refs, *guests)
        self.inputs = [inputs[ref] for ref in self.models]
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []

    def problem(
        self, message: str, path: tuple[str | int, ...] | None = None, *, code: str
    ) -> None:
        """Note what makes the alignment impossible; at the source of the vocabulary unless `path` says where."""
        where = self.part.source_path if path is None else path
        self.problems.append(self.recipe.problem(message, where, code=code))

    def note(self, message: str, *, code: str) -> None:
        """Note what the user may not expect."""
        self.notes.append(self.recipe.problem(message, self.part.source_path, code=code))

    def align(self) -> Alignment:
        """The whole."""
        tokens = self.tokenizers()
        raise_all(RecipeError, self.problems)
        usable = [
            each.vocabulary.below(one.limit)
            for each, one in zip(tokens, self.inputs[: len(self.refs)], strict=True)
        ]
        self.note_ghosts(tokens, usable)
        donor = self.refs.index(self.part.source) if isinstance(self.part.source, ModelRef) else 0
        self.check_pipeline(tokens[donor], usable[donor], donor)
        united = self.unite(tokens, usable, donor)
        raise_all(RecipeError, self.problems)
        keys = dict.fromkeys((e.token for e in self.part.tokens), PLAIN)
        more = {t: flags for t, flags in keys.items() if t not in united.vocabulary.ids}
        wanted = united.vocabulary.with_added(more)
        rows = self.rows(wanted, usable)
        raise_all(RecipeError, self.problems)
        ordinary: Mapping[str, int] = {}
        merges: Sequence[Merge] = ()
        if self.part.union_mode == "bpe" and united.ordinary:
            ordinary = {t: wanted.ids[t] for t in united.ordinary}
            documents = [each.document for each in tokens]
            merges = united_merges(documents[0], documents[1:], wanted.ids)
        try:
            edits = vocabulary_edits(tokens[donor], wanted, ordinary, merges)
        except ValueError as error:
            self.problem(
                f"the tokenizer of '{self.models[donor]}' cannot be edited: {error}", code="JM305"
            )
            raise_all(RecipeError, self.problems)
            raise
        if edits.written and tokens[donor].file != TOKENIZER:
            self.note(
                f"'{self.models[donor]}' has no {TOKENIZER}; one is made from its {tokens[donor].file}",
                code="JM312",
            )
        return Alignment(
            models=self.models,
            merged=len(self.refs),
            donor=donor,
            vocabulary=wanted,
            ordinary=united.ordinary,
            added=(*united.added, *more),
            rows=rows,
            edits=edits,
            special_ids=special_ids(tokens[donor], wanted) if donor else {},
            moved=moved_ids(tokens[0], wanted) if donor else {},
            notes=tuple(self.notes),
        )

    def tokenizers(self) -> list[ModelTokens]:
        """The tokenizer of every model of the merge; that of the base where one has none."""
        base = self.inputs[0].tokens
        found = []
        for ref, one in zip(self.refs, self.inputs, strict=False):
            if one.tokens is not None:
                found.append(one.tokens)
            elif ref in (self.refs[0], self.part.source):
                self.problem(
                    f"'{ref}' has no tokenizer; add its tokenizer.json to its folder", code="JM301"
                )
            elif base is not None:
                self.note(
                    f"'{ref}' has no tokenizer; its rows are assumed to be in the base's order",
                    code="JM311",
                )
                found.append(base)
        return found

    def note_ghosts(self, tokens: Sequence[ModelTokens], usable: Sequence[Vocabulary]) -> None:
        """Say which tokens have no row."""
        for ref, each, one, known in zip(self.refs, tokens, self.inputs, usable, strict=False):
            if known is not each.vocabulary:
                ghosts = each.vocabulary.ids.keys() - known.ids.keys()
                ids = each.vocabulary.ids
                names = sorted(ghosts, key=lambda token: (ids[token], token))
                self.note(
                    f"'{ref}' has {one.limit} usable rows; left out for higher ids: {_several(names)}",
                    code="JM306",
                )

    def check_pipeline(self, tokens: ModelTokens, usable: Vocabulary, donor: int) -> None:
        """Refuse a tokenizer that would lose a token it cannot work without."""
        if usable == tokens.vocabulary:
            return
        for token in pipeline_tokens(tokens.document):
            if token in tokens.vocabulary.ids and token not in usable.ids:
                self.problem(
                    f"'{self.refs[donor]}': the tokenizer needs '{token}' with id "
                    f"{tokens.vocabulary.ids[token]}, but the model has only {self.inputs[donor].limit} usable rows",
                    code="JM305",
                )

    def unite(
        self, tokens: Sequence[ModelTokens], usable: Sequence[Vocabulary], donor: int
    ) -> Union:
        """The tokens of the output, but for those that only `tokens` of the recipe names."""
        if self.part.source != "union":
            return Union(usable[donor], (), (), ())
        bpe = self.part.union_mode == "bpe"
        if bpe:
            self.check_bpe(tokens)
        united = unite(usable, None if bpe else PLAIN)
        for number in dict.fromkeys(number for number, _ in united.differing):
            names = [token for n, token in united.differing if n == number]
            message = f"'{self.refs[number]}' has different flags for {_several(names)}; those of the earlier model are kept"
            self.note(message, code="JM307")
        if united.ordinary and not bpe:
            message = f"not in the base, so added tokens, which are found before the base's own: {_several(list(united.ordinary))}"
            if not self.why_not_bpe(tokens):
                message += "; 'union_mode: bpe' keeps them ordinary"
            self.note(message, code="JM308")
        own = tokens[0].vocabulary
        promoted = [t for t in united.vocabulary.added if t in own.ids and t not in own.added]
        if promoted:
            self.note(
                f"ordinary tokens of the base that become added tokens, as in another model: {_several(promoted)}",
                code="JM308",
            )
        return united

    def check_bpe(self, tokens: Sequence[ModelTokens]) -> None:
        """Refuse to unite merges that mean different things."""
        for message in self.why_not_bpe(tokens):
            self.problem(message, (*self.part.path, "union_mode"), code="JM309")

    def why_not_bpe(self, tokens: Sequence[ModelTokens]) -> list[str]:
        """Whose merges cannot be united, and why."""
        found = []
        kinds = [family(each.document) for each in tokens]
        for ref, each, kind in zip(self.refs, tokens, kinds, strict=True):
            if kind is None or kind != kinds[0]:
                shown = f"{kind} {each.kind}" if kind else each.kind
                message = f"bpe needs the same kind of byte-level or sentencepiece BPE in all models; '{ref}' has {shown}"
                found.append(message if kinds[0] is None else f"{message}, the base {kinds[0]}")
            elif reason := why_not(tokens[0].document, each.document):
                found.append(f"bpe cannot unite the merges of '{ref}': {reason}")
        return found

    def rows(self, wanted: Vocabulary, usable: Sequence[Vocabulary]) -> TokenRows:
        """Which rows make which tokens."""
        tokens = wanted.by_id()
        own = np.full((len(self.models), len(tokens)), ABSENT, np.int32)
        for number, (each, one) in enumerate(zip(usable, self.inputs, strict=False)):
            own[number] = own_rows(tokens, each, one.limit)
        forced = np.zeros(len(tokens), bool)
        fillers = {}
        for entry in self.part.tokens:
            i = wanted.ids[entry.token]
            forced[i] = entry.force
            if entry.source is None:
                self.check_known(entry, bool((own[:, i] != ABSENT).any()), wanted)
            elif (filler := self.filler(entry, i, own, usable)) is not None:
                fillers[i] = filler
        step = self.part.pad_to_multiple_of or 1
        count = -(-len(tokens) // step) * step
        dropped = self.inputs[0].rows - count
        if dropped > 0 and not self.part.pad_to_multiple_of:
            self.note(
                f"the output has {count} rows, {dropped} fewer than '{self.refs[0]}'; "
                "pad_to_multiple_of adds padding rows",
                code="JM310",
            )
        return TokenRows(
            own=own,
            named=np.asarray([token is not None for token in tokens], bool),
            forced=forced,
            fillers=fillers,
            rows=count,
        )

    def check_known(self, entry: TokenEntry, has: bool, wanted: Vocabulary) -> None:
        """Refuse an entry that says nothing of the row of a token that exists nowhere."""
        if not has:
            hint = _hint(entry.token, [t for t in wanted.ids if t != entry.token])
            message = f"no model has the token '{entry.token}'; give it a source"
            self.problem(f"{message}{hint}", entry.path, code="JM304")

    def filler(
        self, entry: TokenEntry, i: int, own: np.ndarray, usable: Sequence[Vocabulary]
    ) -> Filler | None:
        """What an entry fills its token with; None, with a problem, when there is no such row."""
        source = entry.source
        if isinstance(source, Zero):
            return Filler(ABSENT, 0)
        if isinstance(source, ModelRef):
            number = self.models.index(source)
            if own[number, i] == ABSENT:
                hint = _hint(entry.token, usable[number].ids)
                message = f"'{source}' has no row for the token '{entry.token}'{hint}"
                self.problem(message, entry.source_path, code="JM304")
                return None
            return Filler(number, int(own[number, i]))
        assert isinstance(source, ModelToken)  # the only other kind
        number = self.models.index(source.model)
        one = self.inputs[number]
        row = source.token_id
        if row is None:
            assert source.token is not None  # one of the two is given
            ids = one.tokens.vocabulary.ids if one.tokens else {}
            if source.token not in ids:
                what = f"has no token '{source.token}'" if one.tokens else "has no tokenizer"
                message = f"'{source.model}' {what}{_hint(source.token, ids)}"
                self.problem(message, (*entry.source_path, "token"), code="JM304")
                return None
            row = ids[source.token]
        if row >= one.rows:
            key = "token" if source.token_id is None else "token_id"
            message = f"'{source.model}' has {one.rows} rows, so there is no row {row}"
            self.problem(message, (*entry.source_path, key), code="JM304")
            return None
        return Filler(number, row)


def _several(tokens: Sequence[str]) -> str:
    """A few tokens and how many there are: `the token '<x>'`, `3 tokens ('a', 'b', 'c')`."""
    if len(tokens) == 1:
        return f"the token '{tokens[0]}'"
    names = ", ".join(f"'{token}'" for token in tokens[:SHOWN])
    return f"{len(tokens)} tokens ({names}{', ...' if len(tokens) > SHOWN else ''})"


def _hint(token: str, known: Mapping[str, int] | Sequence[str]) -> str:
    """`; did you mean ...?` where a token is like this one."""
    if (
        len(known) > LONGEST_HINT
    ):  # comparing with each would take seconds; look among those that begin alike
        known = [each for each in known if each[:2] == token[:2]][:LONGEST_HINT]
    best = nearest(token, known)
    return "" if best is None else did_you_mean(token, [best])
