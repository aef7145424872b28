"""Checks of the layers in the weights: how many there are, and what each has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jmerge.arch.infer import (
    LAYER_KEYS,
    NUMBER,
    VISION,
    Config,
    KeyPath,
    Stack,
    config_dicts,
    may_count,
)
from jmerge.plan.incomplete import missing_alone
from jmerge.verify.folder import Finding, Folder
from jmerge.verify.tables import quantised

PLAIN = (".weight", ".bias")
# Keys of models that go through the same layers several times, and count the times
LOOPS = re.compile(r".*(loop|cycle|recur|repeat|passes|hidden_groups).*")
# Norms that layers begin with, and how names of the token tables of such models end; GPT's own `ln_1` comes last
FIRST_NORMS = (("input_layernorm", ""), ("ln_1", ".wte.weight"))
NORM = re.compile(r"norm|(^|[._])ln(_?\w)?([._]|$)", re.IGNORECASE)
Layered = Mapping[str, list[tuple[str, tuple[int, ...]]]]  # see `by_prefix`


class Count(NamedTuple):
    """A count of layers in config.json."""

    path: KeyPath
    value: int
    part: Mapping[str, Any]  # that it is in

    @property
    def key(self) -> str:
        """Where it is, dotted."""
        return ".".join(self.path)

    @property
    def summed(self) -> bool:
        """Whether a list beside it shares it out: blocks of stages, which are stored otherwise."""
        lists = (value for value in self.part.values() if isinstance(value, list) and value)
        return any(
            all(type(each) is int for each in value)
            and sum(value) > 1
            and self.value % sum(value) == 0
            for value in lists
        )


def layers(folder: Folder) -> Iterator[Finding]:
    """There are as many layers as config.json says, each with what its kind has."""
    if not folder.whole:
        return
    told = [
        Count((*path, key), part[key], part)
        for path, part in config_dicts(folder.config)
        for key in LAYER_KEYS
        if type(part.get(key)) is int and part[key] > 1
    ]
    layered = by_prefix(folder)
    gaps = list(_gaps(folder, layered, max((count.value for count in told), default=0)))
    yield from gaps
    own = [count for count in told if not VISION.search(count.key)]
    # two layers that have little in common are no stack, and there all the same
    stacked = any(role.stack is not None for role in folder.layout.roles.values())
    if own and not stacked and not any(NUMBER.search(name) for name in folder.tensors):
        message = f"{own[0].key} is {own[0].value}; the weights have no layers"
        yield Finding(message, folder.config_file)
    if not gaps:
        yield from _miscounted(folder, layered, told)
    yield from _holes(folder)
    yield from _final_norm(folder)


def _miscounted(folder: Folder, layered: Layered, told: list[Count]) -> Iterator[Finding]:
    """Counts of layers that no stack has, each with a stack that it may be meant for and that no count fits."""
    stacks = folder.layout.stacks
    depths = {stack.depth for stack in stacks.values()} | _depths_inside(folder)
    wrong = [count for count in told if count.value not in depths and not count.summed]
    sizes = Counter({prefix: len(each) for prefix, each in layered.items() if prefix in stacks})
    most = max(sizes.values(), default=0)
    free = [
        stacks[prefix]
        for prefix, size in sizes.most_common()
        if 5 * size >= most  # not a head with some layers of its own
        if stacks[prefix].depth > 1 and not stacks[prefix].keys and alike(layered[prefix])
        if not _is_staged(folder, prefix)
    ]
    wrong = [count for count in wrong if not any(_goes_round(count, stack) for stack in free)]
    for stack in free:
        fitting = [count for count in wrong if may_count(stack.prefix, count.path, folder.config)]
        for count in fitting[:1]:
            wrong.remove(count)
            message = f"{count.key} is {count.value}; '{stack.prefix}' has {stack.depth} layers"
            yield Finding(message, folder.config_file)


def _depths_inside(folder: Folder) -> set[int]:
    """How many layers there are of anything that is numbered, inside of what is numbered too."""
    numbers: dict[str, set[str]] = {}
    for name in folder.tensors:
        for number in list(NUMBER.finditer(name))[1:]:
            numbers.setdefault(name[: number.start()], set()).add(number[0])
    return {len(each) for each in numbers.values()}


def _is_staged(folder: Folder, prefix: str) -> bool:
    """Whether what is numbered are stages whose blocks a list in config.json counts, so that no count of layers is of them."""
    blocks: dict[str, dict[int, set[str]]] = {}
    for name in folder.tensors:
        if not name.startswith(f"{prefix}."):
            continue
        numbers = [*NUMBER.finditer(name, len(prefix) + 1)][:2]
        if len(numbers) == 2:
            stage, block = numbers
            between = name[stage.end() : block.start()]
            if between.count(".") <= 2:  # else they are inside of a module, as experts are
                blocks.setdefault(between, {}).setdefault(int(stage[0]), set()).add(block[0])
    lists = [v for _, part in config_dicts(folder.config) for v in part.values() if type(v) is list]
    return any(
        len(stages) > 1 and [len(stages[number]) for number in sorted(stages)] in lists
        for stages in blocks.values()
    )


def _goes_round(count: Count, stack: Stack) -> bool:
    """Whether a count is of passes through layers, which come round several times, or of guesses."""
    if is_guessed(count.part, count.path[-1]) and count.value == stack.depth + 1:
        return True
    return count.value % stack.depth == 0 and goes_round(count.part)


def is_guessed(part: Config, key: str) -> bool:
    """Whether a count may be of guesses at the objects of a picture, the first of which comes before the layers."""
    return key == "decoder_layers" and "vocab_size" not in part


def goes_round(part: Config) -> bool:
    """Whether a model goes through the same layers several times, by what a part of config.json says."""
    return any(LOOPS.fullmatch(str(key).lower()) for key in part)


def by_prefix(folder: Folder) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """What stands before the first number of names -> what stands behind it, and the shape."""
    found: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, entry in folder.tensors.items():
        if number := NUMBER.search(name):
            prefix = name[: number.start()].removesuffix(".")
            found.setdefault(prefix, []).append((name[number.end() :], entry.spec.shape))
    return found


def alike(layered: list[tuple[str, tuple[int, ...]]]) -> bool:
    """Whether layers have tensors of the same names and shapes, as those that are counted have."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for rest, shape in layered:
        shapes.setdefault(rest, []).append(shape)
    shared = [
        Counter(each).most_common(1)[0][1] / len(each) for each in shapes.values() if len(each) > 1
    ]
    enough = sum(each >= 0.5 for each in shared) >= 0.8 * len(shared)
    return len(shared) >= 0.5 * len(shapes) and enough


def _gaps(folder: Folder, layered: Layered, most: int) -> Iterator[Finding]:
    """Layers of which there is nothing, between others or at the beginning.

    Layers have modules of their own. Where a number stands for a single weight with its bias, what lies between may be a
    function without weights.
    """
    found: dict[str, set[int]] = {}
    for name in folder.tensors:
        if number := NUMBER.search(name):
            found.setdefault(name[: number.start()], set()).add(int(number[0]))
    largest = max(layered, key=lambda each: len(layered[each]), default="") + "."
    for prefix, numbers in found.items():
        missing = next((n for n in range(min(numbers), max(numbers)) if n not in numbers), None)
        # a few numbers with gaps are modules of a sequence, some of which have no weights
        enough = max(3, most / 2)
        # the most of what is numbered, and the last is that of the count in config.json
        counted = max(numbers) == most - 1 and len(numbers) > 1 and prefix == largest
        few = (len(numbers) < enough and not counted) or max(numbers) >= most
        each = layered[prefix.removesuffix(".")]
        single = all(rest.count(".") < 2 for rest, _ in each)
        if missing is not None and not few and not single and alike(each):
            message = f"there is nothing of '{prefix}{missing}', between layers that are there"
            yield Finding(message)


def _holes(folder: Folder) -> Iterator[Finding]:
    """Tensors that most layers of their kind have."""
    for prefix, stack in folder.layout.stacks.items():
        if stack.depth < 3:
            continue  # too few to tell what layers have, and there may be many
        for lack in missing_alone(folder.view, prefix, whole_blocks=True):
            if quantised(folder.config) and not lack.name.endswith(PLAIN):
                continue  # a scale, of weights that this layer has unpacked
            message = f"is missing; {lack.having} other layers have it"
            yield Finding(message, tensor=lack.name)


def _final_norm(folder: Folder) -> Iterator[Finding]:
    """The norm behind the layers of a decoder. It is there where each layer begins with one, since what comes out of the
    last has been through none."""
    loose = [name for name, role in folder.layout.roles.items() if role.stack is None]
    for prefix, stack in folder.layout.stacks.items():
        around = prefix[: prefix.rfind(".") + 1]
        for norm, table in FIRST_NORMS:
            first = folder.tensors.get(f"{prefix}.{stack.indices[0]}.{norm}.weight")
            if first is None or not stack.keys:
                continue
            tables = [name for name in folder.layout.embeddings if name.startswith(around)]
            if not any(f".{name}".endswith(table) for name in tables):
                continue
            shapes = [
                folder.tensors[name].spec.shape
                for name in loose
                if name.startswith(around) and NORM.search(name)
            ]
            if first.spec.shape not in shapes:
                message = (
                    f"there is no norm behind the last of the {stack.depth} layers of '{prefix}'"
                )
                yield Finding(message)
