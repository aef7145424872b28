"""Laws that every merge method obeys, run from one table; packages that add methods run them on theirs.

    ROWS = [Row(method="mine", reference=mine_in_float64, numbers=({"weight": (0.3, 0.7)},), ...)]

    @pytest.mark.parametrize(("row", "law"), cases(ROWS))
    def test_law(row, law):
        LAWS[law](row)

*To rounding* is 16 units in the last place of the larger of the element and the tensor's rms (`testing.close`);
*bit for bit* is equal bytes. A law that has nothing to try on a row fails: the row then opts out of it by name and
says why. Numbers are written as in recipes: by their YAML names, a tuple for one number a model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from jmerge.ckpt.dtypes import NUMPY
from jmerge.ckpt.open import open_checkpoint
from jmerge.engine.kernel import bracket_kernel, combine_kernel, magnitude_kernel, sums_kernel
from jmerge.engine.run import run
from jmerge.engine.schedule import PIECE, make_schedule
from jmerge.errors import NonFiniteError
from jmerge.jobs import merge, plan_recipe
from jmerge.methods import REGISTRY, Method
from jmerge.methods.random import make_key
from jmerge.methods.reduce import BLOCK
from jmerge.methods.spec import Required
from jmerge.plan.steps import Plan
from jmerge.testing.close import assert_close, assert_same_bytes
from jmerge.testing.tiny import write_checkpoint

Numbers = Mapping[str, Any]
Shape = tuple[int, ...]

# (models [models, *shape], base [*shape] or None, numbers as the row writes them) -> the merged tensor, in float64;
# for a random method also keys=, two words for each model. It knows the defaults of unset numbers by itself, so that
# a wrong declared default shows.
Reference = Callable[..., np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method in the table of laws."""

    method: str
    reference: Reference
    numbers: tuple[Numbers, ...]  # examples; every switch should be seen in both positions
    identity: tuple[Numbers, ...] = ()  # with weights summing to one, and nothing dropped
    models: int = 3  # how many (without the base) where no example's number says so
    opt_out: Mapping[str, str] = field(default_factory=dict)  # law -> why it cannot hold


class Inputs(NamedTuple):
    """What one tensor is merged from."""

    models: tuple[np.ndarray, ...]  # without the base
    base: np.ndarray | None

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> Inputs:
        """The same `change` made to models and base."""
        base = None if self.base is None else change(self.base)
        return Inputs(tuple(change(model) for model in self.models), base)


# Scalars, one element, none, all ranks, and sizes around the borders of the blocks that sums are made of. Compiling
# takes most of the time, so a law tries many shapes with a row's first numbers and few with the others.
SMALL: tuple[Shape, ...] = ((), (1,), (0,), (3, 0), (3, 5), (2, 3, 4))
SHAPES: tuple[Shape, ...] = (*SMALL, (BLOCK,), (BLOCK + 1,), (3, BLOCK - 1))
FEW: tuple[Shape, ...] = ((2, 3, 4), (3, BLOCK - 1))
LONG = 7 * BLOCK - 7  # elements: whole it takes one kernel, in pieces that and a shorter one
EXTREME_LENGTHS = {(): "F32", (0,): "F32", (BLOCK - 1,): "BF16", (PIECE + BLOCK + 1,): "BF16"}
PIECES = (BLOCK, 2 * BLOCK, 3 * BLOCK)
TENSOR = "tensor"  # its name, where a law needs one only; random numbers depend on it


# The laws


def check_equal_inputs(row: Row) -> None:
    """Models that are all equal come back, to rounding, when their weights sum to one and nothing is dropped.

    The base of a delta method is another tensor; any other base is an input like the rest, so it is equal too.
    """
    method = REGISTRY[row.method]
    assert row.identity, "no example of numbers that keep equal inputs"
    for setting in settings(row, row.identity):
        for shape in FEW:
            (model,), other = draw(shape, 1, has_base=True)
            base = (other if method.takes == "delta" else model) if setting.has_base else None
            same = Inputs((model,) * setting.models, base)
            with about(setting, shape=shape):
                assert_close(by_hand(method, same, setting.numbers), model)


def check_order(row: Row) -> None:
    """Reordering the models together with their numbers changes nothing, to rounding."""
    method, tried = REGISTRY[row.method], False
    for setting in settings(row):
        numbers, tried = setting.numbers, tried or setting.models > 1
        inputs = setting.draw((64, 65))
        order = [*range(1, setting.models), 0]
        moved = Inputs(tuple(inputs.models[i] for i in order), inputs.base)
        renumbered = {
            name: tuple(value[i] for i in order) if isinstance(value, tuple) else value
            for name, value in numbers.items()
        }
        with about(setting, order=order):
            found = by_hand(method, moved, renumbered)
            assert_close(found, by_hand(method, inputs, numbers))
    assert tried, "no example has several models"


def check_shift(row: Row) -> None:
    """A delta method sees changes only: a tensor added to base and models is added to the result, to rounding.

    All values are short binary fractions, so that no sum of inputs is rounded and no choice between near values is
    tipped; the added tensor is larger than the rest, so that it sets the scale of the rounding.
    """
    assert REGISTRY[row.method].takes == "delta", "not a delta method"
    shape = (3, BLOCK - 1)
    other = draw(shape, 1, False, seed=1).models[0]
    for setting in filter(lambda setting: setting.has_base, settings(row)):
        inputs = setting.draw(shape).map(_shorten)
        still = streamed(row.method, {TENSOR: inputs}, setting.numbers)[TENSOR]
        for shift in (np.full_like(other, 8), _shorten(8 * other)):
            shifted = {TENSOR: _plus(inputs, shift)}
            with about(setting):
                found = streamed(row.method, shifted, setting.numbers)[TENSOR]
                assert_close(found, still + shift)


def check_reference(row: Row) -> None:
    """The method in float32 agrees with the float64 reference, to rounding."""
    method = REGISTRY[row.method]
    for setting in settings(row):
        for shape in SHAPES if setting.first else FEW:
            for spread in (1.0, 0.01):  # models that have little in common; fine-tuned ones
                inputs = setting.draw(shape, spread)
                with about(setting, shape=shape, spread=spread):
                    found = by_hand(method, inputs, setting.numbers)
                    assert_close(found, wanted_of(row, inputs, setting.numbers))


def check_jit(row: Row) -> None:
    """The function under `jit` agrees with the function called eagerly, to rounding."""
    method = REGISTRY[row.method]
    for setting in settings(row):
        for shape in FEW if setting.first else FEW[:1]:
            inputs = setting.draw(shape)
            with about(setting, shape=shape):
                eager = by_hand(method, inputs, setting.numbers, jit=False)
                assert_close(by_hand(method, inputs, setting.numbers), eager)


def check_chunks(row: Row) -> None:
    """A tensor merged in pieces of any size is the tensor merged whole, bit for bit.

    Whole is as much at once as a kernel takes; the first example has a tensor that is longer. In another most
    magnitudes are equal, so that methods that choose among elements must choose the same of them.
    """
    for setting in settings(row):
        shapes: dict[Shape, str] = {(LONG,): "F32", **(EXTREME_LENGTHS if setting.first else {})}
        tensors = {name_of(shape): setting.draw(shape, dtype=shapes[shape]) for shape in shapes}
        tensors["coarse"] = setting.draw((LONG,)).map(np.round)
        whole = streamed(row.method, tensors, setting.numbers)
        for piece in PIECES:
            cut = streamed(row.method, tensors, setting.numbers, piece=piece)
            for name in tensors:
                with about(setting, tensor=name, piece=piece):
                    assert_same_bytes(cut[name], whole[name])


def check_compiles(row: Row) -> None:
    """New numbers are new inputs of the same program: a second recipe with other numbers compiles nothing."""
    tried = False
    for setting in settings(row):
        changed = {name: _changed(value) for name, value in setting.numbers.items()}
        if changed == setting.numbers:
            continue  # it holds flags, zeros and ones only
        tried = True
        tensors = {TENSOR: setting.draw((9 * BLOCK,))}
        forget_kernels()
        with about(setting, changed=changed):
            with compilations() as first:
                streamed(row.method, tensors, setting.numbers, piece=3 * BLOCK)
            assert first, "nothing was compiled for the first numbers, so this law measures nothing"
            with compilations() as second:
                streamed(row.method, tensors, changed, piece=3 * BLOCK)
            assert not second, f"compiled again: {second}"
    assert tried, "no example has a continuous number"


def check_finite(row: Row) -> None:
    """Finite inputs give finite results of the right shape, whatever the inputs have in common."""
    method = REGISTRY[row.method]
    for setting in settings(row):
        for shape in SMALL if setting.first else SMALL[-1:]:
            drawn = setting.draw(shape)
            for name, change in EXTREME_INPUTS.items():
                with about(setting, shape=shape, inputs=name):
                    found = by_hand(method, change(drawn), setting.numbers)
                    assert found.shape == shape and found.dtype == np.float32, found.shape
                    assert np.isfinite(found).all(), found


def check_nonfinite(row: Row) -> None:
    """A single NaN or infinity in any input stops the run, even where a number of zero would hide it."""
    for setting in settings(row):
        drawn = setting.draw(FEW[0])
        for position in range(setting.models + setting.has_base):
            for bad in (np.nan, np.inf, -np.inf):
                with about(setting, position=position, bad=bad):
                    spoilt = {TENSOR: _spoil(drawn, position, bad)}
                    try:
                        streamed(row.method, spoilt, setting.numbers)
                    except NonFiniteError:
                        continue
                    raise AssertionError("the run did not notice it")


def check_recipe(row: Row) -> None:
    """A recipe run as from the command line gives what the function called by hand under `jit` gives, bit for bit.

    Inputs of 16 bits are widened first and the result is cast once; those of 64 bits are merged in 64 bits and
    agree with the float64 reference to rounding. The base stands anywhere among the sources.
    """
    method = REGISTRY[row.method]
    for number, setting in enumerate(settings(row)):
        base_at = number % (setting.models + 1)
        for dtype in ("F32", "BF16", "F64") if setting.first else ("F32",):
            shapes: tuple[Shape, ...] = FEW if setting.first else FEW[:1]
            shapes += ((), (0,)) if setting.first and dtype == "F32" else ()
            tensors = {name_of(shape): setting.draw(shape, dtype=dtype) for shape in shapes}
            if setting.first and dtype == "F32":
                tensors["coarse"] = setting.draw(FEW[1]).map(np.round)  # full of equal magnitudes
            found = from_recipe(row.method, tensors, setting.numbers, base_at)
            for name, inputs in tensors.items():
                with about(setting, tensor=name, dtype=dtype, base_at=base_at):
                    own = by_hand(method, inputs, setting.numbers, tensor=name)
                    assert_same_bytes(found[name], own.astype(NUMPY[dtype]))
                    if dtype == "F64":
                        assert_close(found[name], wanted_of(row, inputs, setting.numbers, name))


LAWS: Mapping[str, Callable[[Row], None]] = {
    "equal_inputs": check_equal_inputs,
    "order": check_order,
    "shift": check_shift,
    "reference": check_reference,
    "jit": check_jit,
    "chunks": check_chunks,
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


# Inputs and numbers


class Setting(NamedTuple):
    """One of a row's examples, and what it is tried on."""

    numbers: Numbers
    models: int  # without the base
    has_base: bool
    first: bool  # of the row

    def draw(self, shape: Shape, spread: float = 1.0, *, dtype: str = "F32") -> Inputs:
        """Inputs for it; see `draw`."""
        return draw(shape, self.models, self.has_base, spread, dtype=dtype)


def settings(row: Row, examples: Sequence[Numbers] = ()) -> Iterator[Setting]:
    """The row's examples (or those given), without and with a base as the method allows."""
    method = REGISTRY[row.method]
    low, high = method.counts
    usual = max(low, min(row.models, high or row.models))
    bases = {"needed": (True,), "input": (False,), "optional": (False, True)}[method.base]
    for number, numbers in enumerate(examples or row.numbers):
        given = [len(value) for value in numbers.values() if isinstance(value, tuple)]
        for has_base in bases:
            first = number == 0 and has_base == bases[-1]
            yield Setting(numbers, given[0] if given else usual, has_base, first)


def draw(
    shape: Shape,
    models: int,
    has_base: bool,
    spread: float = 1.0,
    *,
    dtype: str = "F32",
    seed: int = 0,
) -> Inputs:
    """Seeded normal numbers: a base, and `models` of it plus `spread` times a change of their own.

    Without a base they are models of a common origin all the same.
    """
    rng = np.random.default_rng([seed, models, *shape])
    origin, *changes = (np.asarray(rng.standard_normal(shape)) for _ in range(models + 1))
    cast = NUMPY[dtype]
    base = origin.astype(cast) if has_base else None
    return Inputs(tuple((origin + spread * change).astype(cast) for change in changes), base)


def name_of(shape: Shape) -> str:
    """A name for a tensor of this shape."""
    return "x".join([TENSOR, *map(str, shape)])


def _plus(inputs: Inputs, shift: np.ndarray) -> Inputs:
    return inputs.map(lambda array: array + shift)


def _shorten(array: np.ndarray) -> np.ndarray:
    """`array` rounded to multiples of 2^-10."""
    result: np.ndarray = np.round(array * 1024) / array.dtype.type(1024)
    return result


def _opposite(inputs: Inputs) -> Inputs:
    """Every other input is the first one's opposite, the first model the base's."""
    first = inputs.models[0]
    sides = tuple(first if i % 2 else -first for i in range(len(inputs.models)))
    return Inputs(sides, None if inputs.base is None else first)


def _spoil(inputs: Inputs, position: int, value: float) -> Inputs:
    """The last element of one input, the base coming last, set to `value`."""
    arrays = [array.copy() for array in (*inputs.models, inputs.base) if array is not None]
    arrays[position].reshape(-1)[-1] = value
    count = len(inputs.models)
    return Inputs(tuple(arrays[:count]), arrays[count] if len(arrays) > count else None)


def _first(inputs: Inputs, factor: float) -> Inputs:
    """The first model times a factor."""
    first, *others = inputs.models
    return Inputs((first * np.float32(factor), *others), inputs.base)


EXTREME_INPUTS: Mapping[str, Callable[[Inputs], Inputs]] = {
    "zeros": lambda drawn: drawn.map(np.zeros_like),
    "identical": lambda drawn: drawn.map(lambda _: drawn.models[0]),
    "opposite": _opposite,
    "one zero": lambda drawn: _first(drawn, 0),
    "zero base": lambda drawn: Inputs(
        drawn.models, None if drawn.base is None else np.zeros_like(drawn.base)
    ),
    "tiny": lambda drawn: drawn.map(lambda array: array * np.float32(1e-30)),
    "huge": lambda drawn: drawn.map(lambda array: array * np.float32(1e30)),
    "huge opposite": lambda drawn: _opposite(drawn).map(lambda array: array * np.float32(1e30)),
    "one huge": lambda drawn: _first(drawn, 1e30),
}


def _changed(value: Any) -> Any:
    """Another value of a continuous number, nearer to zero; flags, unset numbers and a special one (1) stay."""
    if isinstance(value, tuple):
        return tuple(map(_changed, value))
    return value * 0.75 if isinstance(value, float) and value != 1 else value


def wanted_of(row: Row, inputs: Inputs, numbers: Numbers, tensor: str = TENSOR) -> np.ndarray:
    """What the row's reference makes of the inputs, in float64."""
    wide = inputs.map(lambda array: array.astype(np.float64))
    keys = _keys(REGISTRY[row.method], len(inputs.models), tensor)
    extra = {} if keys is None else {"keys": keys}
    return np.asarray(row.reference(np.stack(wide.models), wide.base, numbers, **extra))


def _keys(method: Method, models: int, tensor: str) -> np.ndarray | None:
    """The keys uint32 [models, 2] of a random method under seed 0; None for another."""
    if "keys" not in method.reserved:
        return None
    return np.asarray([make_key(0, tensor, model) for model in range(models)], np.uint32)


# The function called by hand


def by_hand(
    method: Method, inputs: Inputs, numbers: Numbers, *, jit: bool = True, tensor: str = TENSOR
) -> np.ndarray:
    """What research code gets: the function on whole arrays in float32 (float64 for float64 arrays)."""
    wide = any(array.dtype == np.float64 for array in inputs.models)
    dtype = np.dtype(np.float64 if wide else np.float32)
    with jax.enable_x64(True) if wide else nullcontext():
        models = [jnp.asarray(model.astype(dtype)) for model in inputs.models]
        base = None if inputs.base is None else jnp.asarray(inputs.base.astype(dtype))
        traced, static = keyword_arguments(method, numbers, len(models), dtype)
        keys = _keys(method, len(models), tensor)
        if keys is not None:
            traced["keys"] = jnp.asarray(keys)
        program = _program(method.function, method.takes, tuple(static.items()))
        if jit:
            program = _jitted(program)
        return np.asarray(program(models, base, traced))


def keyword_arguments(
    method: Method, numbers: Numbers, models: int, dtype: np.dtype[Any]
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """The function's keyword arguments for numbers of a recipe, unset ones at their defaults: traced and static.

    Flags are static, and so are the shares of a `Density`, from which counts are made.
    """
    traced: dict[str, jax.Array] = {}
    static: dict[str, Any] = {}
    unknown = set(numbers) - set(method.parameters)
    assert not unknown, f"{method.name} has no parameter {unknown}"
    for name, declared in method.parameters.items():
        value = numbers.get(name, declared.default)
        assert not isinstance(value, Required), f"{method.name} needs {name!r}"
        if declared.per_model and value is not None and not isinstance(value, tuple):
            value = (value,) * models
        if declared.kind != "float" or declared.count or declared.concrete or value is None:
            static[method.keywords[name]] = value
        else:
            traced[method.keywords[name]] = jnp.asarray(value, dtype)
    return traced, static


@cache
def _program(
    function: Callable[..., Any], takes: str, static: tuple[tuple[str, Any], ...]
) -> Callable[..., Any]:
    def program(
        models: list[jax.Array], base: jax.Array | None, traced: dict[str, jax.Array]
    ) -> Any:
        numbers = {**traced, **dict(static)}
        if base is None:
            return function(jnp.stack(models), **numbers)
        if takes == "delta":
            return base + function(jnp.stack([model - base for model in models]), **numbers)
        return function(base, jnp.stack(models), **numbers)

    return program


_jitted = cache(jax.jit)  # one compilation for all numbers, as in research code


# The engine


@contextmanager
def recipe_of(
    method: str, tensors: Mapping[str, Inputs], numbers: Numbers, base_at: int = 0
) -> Iterator[Path]:
    """A recipe file that merges `tensors` with these numbers, its base as the source number `base_at`, and tiny
    checkpoints to go with it, in a folder that is gone afterwards."""
    declared = REGISTRY[method].parameters
    names = [f"model{i}" for i in range(len(next(iter(tensors.values())).models))]
    has_base = next(iter(tensors.values())).base is not None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sources: list[dict[str, Any]] = []
        for i, model in enumerate(names):
            write_checkpoint(
                folder / model, {name: each.models[i] for name, each in tensors.items()}
            )
            own = {
                name: value[i]
                for name, value in numbers.items()
                if declared[name].per_model and isinstance(value, tuple)
            }
            sources.append({"model": str(folder / model), "parameters": own})
        shared = {
            name: value
            for name, value in numbers.items()
            if not isinstance(value, tuple) and value is not None
        }
        recipe: dict[str, Any] = {"merge_method": method, "parameters": shared}
        if has_base:
            bases = {name: each.base for name, each in tensors.items() if each.base is not None}
            write_checkpoint(folder / "base", bases)
            sources.insert(base_at, {"model": str(folder / "base")})
            recipe["base_model"] = str(folder / "base")
        file = folder / "recipe.yml"
        file.write_text(yaml.safe_dump({**recipe, "models": sources}))
        yield file


def from_recipe(
    method: str, tensors: Mapping[str, Inputs], numbers: Numbers, base_at: int = 0
) -> dict[str, np.ndarray]:
    """What `jmerge --config recipe.yml --out merged` writes, in this process."""
    with recipe_of(method, tensors, numbers, base_at) as recipe:
        merge(recipe, recipe.parent / "merged")
        checkpoint = open_checkpoint(recipe.parent / "merged")
        return {name: checkpoint[name].copy() for name in tensors}


def streamed(
    method: str, tensors: Mapping[str, Inputs], numbers: Numbers, *, piece: int = PIECE
) -> dict[str, np.ndarray]:
    """What the engine makes when it works on `piece` elements at a time."""
    with recipe_of(method, tensors, numbers) as recipe:
        plan = plan_recipe(recipe)
        sink = Memory(plan)
        run(plan, make_schedule(plan, piece), sink)
        return sink.arrays()


class Memory:
    """A sink that keeps every tensor in memory; bytes that nothing is written to are all ones (a NaN)."""

    def __init__(self, plan: Plan) -> None:
        self.specs = plan.outputs
        self.bytes = {name: bytearray(b"\xff" * spec.nbytes) for name, spec in self.specs.items()}

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Put `data` at byte `start` of a tensor."""
        self.bytes[tensor][start : start + len(data)] = data

    def arrays(self) -> dict[str, np.ndarray]:
        """The tensors by name."""
        return {
            name: np.frombuffer(self.bytes[name], NUMPY[spec.dtype]).reshape(spec.shape)
            for name, spec in self.specs.items()
        }


# What was compiled


def forget_kernels() -> None:
    """Make the engine compile its programs again; needed, too, when a method's function was replaced."""
    for kernel in (combine_kernel, sums_kernel, magnitude_kernel, bracket_kernel):
        kernel.cache_clear()


_COMPILED: list[str] = []


@cache
def _listen() -> None:
    def listener(event: str, duration_secs: float, **facts: str | int) -> None:
        if "/compile/" in event:
            _COMPILED.append(f"{event} of {facts.get('fun_name', 'a program')}")

    jax.monitoring.register_event_duration_secs_listener(listener)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """A list that holds, after the block, what JAX traced, lowered or compiled in it."""
    _listen()
    found: list[str] = []
    start = len(_COMPILED)
    yield found
    found += _COMPILED[start:]


@contextmanager
def about(setting: Setting, **facts: Any) -> Iterator[None]:
    """Add what was being tried to the error that a law raises."""
    try:
        yield
    except Exception as error:
        facts = {**setting._asdict(), **facts}
        error.add_note(", ".join(f"{name} {value}" for name, value in facts.items()))
        raise
