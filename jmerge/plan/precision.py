"""The dtype of what a merge makes: the recipe's, but for tensors that the donor keeps wider on purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from jmerge.dtypes import BITS, FLOATS, promote
from jmerge.names import did_you_mean
from jmerge.plan.coverage import patterns
from jmerge.plan.inputs import Item
from jmerge.plan.notes import Notes
from jmerge.plan.patterns import any_layer
from jmerge.plan.views import View
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path

SHOWN = 4  # kinds of tensors that a warning names


class Precision:
    """Says of each tensor which dtype it gets.

    The bias of a router, `A_log` or `dt_bias` is F32 in a model that is BF16 otherwise because rounding it would change
    which experts are chosen. So a tensor keeps the dtype that the donor stores it in where that is wider than most
    bytes of the donor and than the dtype that the recipe asks for, unless a pattern of the recipe's `cast` matches it.

    Bytes decide, not numbers of tensors: `dtype` is set for what takes room. Where two widths have equally many bytes,
    the wider one is the model's own, and nothing is kept. A donor that is all F32 is cast as asked. F16 and BF16 are
    equally wide. A layer that comes from another model goes by the donor's own layers, so that all layers of the output
    are stored alike; a tensor that the donor lacks goes by the first model that has it.
    """

    def __init__(self, views: Mapping[ModelRef, View], notes: Notes) -> None:
        recipe = notes.recipe
        self._views = tuple(views.values())
        self._notes = notes
        self._asked = recipe.out_dtype or recipe.dtype
        self._cast = patterns(recipe, "cast", recipe.cast)
        self._matched: set[Path] = set()
        self._names: dict[str, None] = {}
        self._usual = [_usual_bits(view) for view in self._views]
        self._kept: dict[tuple[ModelRef, str], list[str]] = {}  # (whose, dtype) -> tensors

    def of(self, name: str, template: str, inputs: Sequence[Item]) -> tuple[str, str]:
        """The dtype of the output tensor `name` that is made of `inputs`, and a note where it is not as asked."""
        self._names[name] = None
        stored = [(read.model, read.spec.dtype) for read in (i.reads[0] for i in inputs)]
        if self._asked is None:
            return promote([dtype for _, dtype in stored]), ""
        cast = [each.path for each in self._cast if each.regex.match(name)]
        self._matched.update(cast)
        owner, dtype = self._example(template, stored)
        narrow = max(self._usual[owner.number], BITS[self._asked])
        if cast or dtype not in FLOATS or BITS[dtype] <= narrow:
            return self._asked, ""
        self._kept.setdefault((owner.ref, dtype), []).append(name)
        return dtype, f"kept in {dtype}, as in {owner.ref}"

    def _example(self, template: str, stored: Sequence[tuple[int, str]]) -> tuple[View, str]:
        """The model by which a tensor goes, and the dtype there; `stored` are the numbers of models and dtypes."""
        donor = self._views[0]
        own = [dtype for number, dtype in stored if number == donor.number]
        own = own or self._of_donor.get(template, [])
        if own:
            return donor, max(own, key=BITS.__getitem__)
        number, dtype = stored[0]
        return self._views[number], dtype

    @cached_property
    def _of_donor(self) -> dict[str, list[str]]:
        """The dtypes of the donor's tensors, by template."""
        found: dict[str, list[str]] = {}
        for (template, _), name in self._views[0].names.items():
            dtypes = found.setdefault(template, [])
            if (dtype := self._views[0].spec(name).dtype) not in dtypes:
                dtypes.append(dtype)
        return found

    def tell(self) -> None:
        """Note what is not cast, and patterns that match nothing."""
        path = ("out_dtype",) if self._notes.recipe.out_dtype else ("dtype",)
        for (ref, dtype), names in self._kept.items():
            kinds = list(dict.fromkeys(map(any_layer, names)))
            listed = ", ".join(kinds[:SHOWN])
            more = f" and {len(kinds) - SHOWN} more kinds" if len(kinds) > SHOWN else ""
            count = "1 tensor keeps" if len(names) == 1 else f"{len(names)} tensors keep"
            message = f"{count} {dtype}, as {ref} has them beside narrower weights: {listed}{more}"
            self._notes.warn(
                f"{message}; to cast them all the same, write 'cast: [{listed}]'", path
            )
        for each in self._cast:
            if self._asked is None:
                self._notes.warn("has no effect without dtype or out_dtype", each.path)
            elif each.path not in self._matched:
                hint = did_you_mean(each.text, self._names, show=0)
                message = f"'{each.text}' matches no tensor that is merged{hint}"
                self._notes.fault(message, each.path)


def _usual_bits(view: View) -> int:
    """The width of most bytes of a model's trained tensors; 0 when it has none."""
    weight: dict[int, int] = {}
    for name, role in view.layout.roles.items():
        spec = view.checkpoint.index[name].spec
        if spec.dtype in FLOATS and not role.buffer:
            bits = BITS[spec.dtype]
            weight[bits] = weight.get(bits, 0) + spec.nbytes
    return max(weight, key=lambda bits: (weight[bits], bits), default=0)
