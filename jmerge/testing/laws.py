"""Laws that every merge method obeys, run from one table; packages that add methods run them on theirs.

    ROWS = [Row(method="mine", reference=mine_in_float64, hyperparameters=({"weight": (0.3, 0.7)},), ...)]

    @pytest.mark.parametrize(("row", "law"), cases(ROWS))
    def test_law(row, law):
        LAWS[law](row)

*To rounding* is 16 units in the last place of the larger of the element and the tensor's rms (`testing.close`);
*bit for bit* is equal bytes. A law that has nothing to try on a row fails: the row then opts out of it by name and
says why. Numbers are written as in recipes: by their YAML names, a tuple for one number a model.

Compiling is nearly all that laws cost. So what has to hold to rounding is compiled quickly (`testing.ways`), but for
a few shapes of every example, which are compiled in full like everything that has to hold bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from jmerge.dtypes import NUMPY
from jmerge.engine.schedule import PIECE, ROW
from jmerge.errors import NonFiniteError
from jmerge.methods import find_method
from jmerge.methods.reduce import BLOCK
from jmerge.testing.close import assert_close, assert_same_bytes
from jmerge.testing.examples import (
    EXTREME_INPUTS,
    FEW,
    IN_FULL,
    SHAPES,
    SMALL,
    Row,
    Shape,
    about,
    draw,
    name_of,
    other_value,
    plus,
    settings,
    shortened,
    spoiled,
    wanted_of,
)
from jmerge.testing.ways import (
    TENSOR,
    Inputs,
    by_hand,
    compilations,
    from_recipe,
)

# What is cut into pieces. Whole, a long tensor takes one kernel, in pieces that and a shorter one; the longest are
# longer than any kernel, and of 16 bits.
LONG: Shape = (7 * BLOCK - 7,)
LONG_ROWS: Shape = (97, 30, 10)  # which are cut between rows or slabs where these stay together
SHORT: tuple[Shape, ...] = ((), (0,), (BLOCK - 1,))
LONGEST: tuple[Shape, ...] = ((PIECE + BLOCK + 1,),)
PIECES = (BLOCK, 2 * BLOCK, 3 * BLOCK)
LONG_PIECES = (8 * BLOCK,)  # of the longest, which would be very many otherwise
MANY = 8  # models


# The laws


def check_equal_inputs(row: Row) -> None:
    """Models that are all equal come back, to rounding, when their weights sum to one and nothing is dropped.

    The base of a delta method is another tensor; any other base is an input like the rest, so it is equal too.
    """
    method = find_method(row.method)
    assert row.identity, "no example of numbers that keep equal inputs"
    for setting in settings(row, row.identity):
        for shape in FEW:
            (model,), other = draw(shape, 1, has_base=True)
            base = (other if method.takes == "delta" else model) if setting.has_base else None
            same = Inputs((model,) * setting.models, base)
            with about(setting, shape=shape):
                found = by_hand(method, same, setting.hyperparameters, way="quick")
                assert_close(found, np.broadcast_to(model, found.shape))


def check_order(row: Row) -> None:
    """Reordering the models together with their numbers changes nothing, to rounding."""
    method, tried = find_method(row.method), False
    for setting in settings(row):
        hyperparameters, tried = setting.hyperparameters, tried or setting.models > 1
        inputs = setting.draw(FEW[-1])
        order = [*range(1, setting.models), 0]
        moved = Inputs(tuple(inputs.models[i] for i in order), inputs.base)
        renumbered = {
            name: tuple(value[i] for i in order) if isinstance(value, tuple) else value
            for name, value in hyperparameters.items()
        }
        with about(setting, order=order):
            found = by_hand(method, moved, renumbered, way="quick")
            assert_close(found, by_hand(method, inputs, hyperparameters, way="quick"))
    assert tried, "no example has several models"


def check_shift(row: Row) -> None:
    """A delta method sees changes only: a tensor added to base and models is added to the result, to rounding.

    All values are short binary fractions, so that no sum of inputs is rounded and no choice between near values is
    tipped; the added tensor is larger than the rest, so that it sets the scale of the rounding.
    """
    assert find_method(row.method).takes == "delta", "not a delta method"
    shape = (3, BLOCK - 1)
    other = draw(shape, 1, False, seed=1).models[0]
    for setting in filter(lambda setting: setting.has_base, settings(row)):
        inputs = setting.draw(shape).map(shortened)
        still = setting.streamed(row, {TENSOR: inputs})[TENSOR]
        for shift in (np.full_like(other, 8), shortened(8 * other)):
            shifted = {TENSOR: plus(inputs, shift)}
            with about(setting):
                found = setting.streamed(row, shifted)[TENSOR]
                assert_close(found, still + shift)


def check_reference(row: Row) -> None:
    """The method in float32 agrees with the float64 reference, to rounding."""
    method = find_method(row.method)
    for setting in settings(row):
        for shape in SHAPES if setting.first else FEW:
            for spread in (1.0, 0.01):  # models that have little in common; fine-tuned ones
                inputs = setting.draw(shape, spread)
                with about(setting, shape=shape, spread=spread):
                    found = by_hand(method, inputs, setting.hyperparameters, way=setting.way(shape))
                    assert_close(found, wanted_of(row, inputs, setting.hyperparameters))
            if row.chooses:
                inputs = setting.draw(shape).map(np.round)
                with about(setting, shape=shape, inputs="coarse"):
                    found = by_hand(method, inputs, setting.hyperparameters, way=setting.way(shape))
                    assert_close(found, wanted_of(row, inputs, setting.hyperparameters))


def check_jit(row: Row) -> None:
    """The function under `jit` agrees with the function called eagerly, to rounding."""
    method = find_method(row.method)
    for setting in settings(row):
        for shape in FEW if setting.first else FEW[:1]:
            inputs = setting.draw(shape)
            with about(setting, shape=shape):
                eager = by_hand(method, inputs, setting.hyperparameters, way="eager")
                assert_close(by_hand(method, inputs, setting.hyperparameters), eager)


def check_chunks(row: Row) -> None:
    """A tensor merged in pieces of any size is the tensor merged whole, bit for bit.

    Whole is as much at once as a kernel takes; the first example has a tensor that is longer. In another most
    magnitudes are equal, so that methods that choose among elements must choose the same of them.
    """
    for setting in settings(row):
        shapes = (LONG, LONG_ROWS, *SHORT) if setting.first else (LONG, LONG_ROWS)
        # what is coarse comes first, so that a cut through whole models lies in it
        tensors = {"coarse": setting.draw(LONG).map(np.round)}
        tensors |= {name_of(shape): setting.draw(shape) for shape in shapes}
        tried: list[tuple[dict[str, Inputs], Sequence[int]]] = [(tensors, PIECES)]
        if setting.first and LONGEST:
            longest = {name_of(shape): setting.draw(shape, dtype="BF16") for shape in LONGEST}
            tried.append((longest, LONG_PIECES))
        for inputs, pieces in tried:
            whole = setting.streamed(row, inputs)
            for piece in pieces:
                cut = setting.streamed(row, inputs, piece=piece)
                for name in inputs:
                    with about(setting, tensor=name, piece=piece):
                        assert_same_bytes(cut[name], whole[name])


def check_bundles(row: Row) -> None:
    """Small tensors merged many at a time are those merged one at a time, bit for bit, of many models too."""
    method = find_method(row.method)
    setting = next(each for each in settings(row) if each.first)
    defaults = {name: each.default for name, each in method.settable.items()}
    whole = {**defaults, **setting.hyperparameters}
    if method.of_model or not method.bundled or method.unit(whole) != "element":
        return  # none is merged with others
    models = min(method.counts[1] or MANY, MANY)
    hyperparameters = {
        name: tuple(value[i % len(value)] for i in range(models))
        if isinstance(value, tuple)
        else value
        for name, value in setting.hyperparameters.items()
    }
    setting = setting._replace(hyperparameters=hyperparameters, models=models, base_at=0)
    sizes = dict.fromkeys(np.geomspace(1, ROW, 48).astype(int).tolist())
    tensors = {name_of((size,)): setting.draw((size,)) for size in sizes}
    together = setting.streamed(row, tensors)
    alone = setting.streamed(row, tensors, piece=BLOCK)
    for name in tensors:
        with about(setting, tensor=name):
            assert_same_bytes(together[name], alone[name])


def check_compiles(row: Row) -> None:
    """New numbers are new inputs of the same program: a second recipe with other numbers compiles nothing."""
    tried = False
    for setting in settings(row):
        changed = {name: other_value(value) for name, value in setting.hyperparameters.items()}
        if changed == setting.hyperparameters:
            continue  # it holds flags, zeros and ones only
        tried = True
        tensors = {TENSOR: setting.draw(LONG)}
        with about(setting, changed=changed):
            setting.streamed(row, tensors, piece=PIECES[-1])
            with compilations() as found:
                setting._replace(hyperparameters=changed).streamed(row, tensors, piece=PIECES[-1])
            assert not found, f"compiled again: {found}"
    assert tried, "no example has a continuous number"


def check_finite(row: Row) -> None:
    """Finite inputs give finite results of the right shape, whatever the inputs have in common."""
    method = find_method(row.method)
    for setting in settings(row):
        for shape in SMALL if setting.first else SMALL[-1:]:
            drawn = setting.draw(shape)
            for name, change in EXTREME_INPUTS.items():
                with about(setting, shape=shape, inputs=name):
                    given = change(drawn)
                    found = by_hand(method, given, setting.hyperparameters, way=setting.way(shape))
                    wanted = (setting.models, *shape) if method.per_model_output else shape
                    assert found.shape == wanted and found.dtype == np.float32, found.shape
                    assert np.isfinite(found).all(), found


def check_nonfinite(row: Row) -> None:
    """A single NaN or infinity in any input stops the run, even where a number of zero would hide it."""
    for setting in settings(row):
        drawn = setting.draw(FEW[0])
        for position in range(setting.models + setting.has_base):
            for bad in (np.nan, np.inf, -np.inf):
                with about(setting, position=position, bad=bad):
                    spoilt = {TENSOR: spoiled(drawn, position, bad)}
                    try:
                        setting.streamed(row, spoilt)
                    except NonFiniteError:
                        continue
                    raise AssertionError("the run did not notice it")


def check_recipe(row: Row) -> None:
    """A recipe run as from the command line gives what the function called by hand under `jit` gives, bit for bit.

    Inputs of 16 bits are widened first and the result is cast once; those of 64 bits are merged in 64 bits and
    agree with the float64 reference to rounding. The base stands anywhere among the sources.
    """
    method = find_method(row.method)
    for setting in settings(row):
        for dtype in ("F32", "BF16", "F64") if setting.first else ("F32",):
            shapes: tuple[Shape, ...] = FEW[-1:] if setting.first else FEW[:1]
            if setting.first and dtype == "F32":
                shapes = IN_FULL
            tensors = {name_of(shape): setting.draw(shape, dtype=dtype) for shape in shapes}
            if setting.first and dtype == "F32":
                tensors["coarse"] = setting.draw(FEW[1]).map(np.round)  # full of equal magnitudes
            # statistics of whole models are those of a tensor when it is all there is
            recipes = [{n: i} for n, i in tensors.items()] if method.of_model else [tensors]
            found: dict[str, np.ndarray] = {}
            for each in recipes:
                found |= from_recipe(
                    row.method, each, setting.hyperparameters, base_at=setting.base_at
                )
            for name, inputs in tensors.items():
                with about(setting, tensor=name, dtype=dtype):
                    own = by_hand(method, inputs, setting.hyperparameters, tensor=name)
                    assert_same_bytes(found[name], own.astype(NUMPY[dtype]))
                    if dtype == "F64":
                        assert_close(
                            found[name], wanted_of(row, inputs, setting.hyperparameters, name)
                        )


LAWS: Mapping[str, Callable[[Row], None]] = {
    "equal_inputs": check_equal_inputs,
    "order": check_order,
    "shift": check_shift,
    "reference": check_reference,
    "jit": check_jit,
    "chunks": check_chunks,
    "bundles": check_bundles,
    "compiles": check_compiles,
    "finite": check_finite,
    "nonfinite": check_nonfinite,
    "recipe": check_recipe,
}


def cases(rows: Iterable[Row]) -> list[tuple[Row, str]]:
    """Every row with the name of every law but those it opts out of; ValueError for an opt-out without sense."""
    found = []
    for row in rows:
        for law, reason in row.opt_out.items():
            if law not in LAWS or not reason.strip():
                raise ValueError(f"{row.method}: opts out of {law!r} because {reason!r}")
        found += [(row, law) for law in LAWS if law not in row.opt_out]
    return found
