"""Checks of tensors against config.json and against each other: shapes, dtypes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations

from jmerge.arch.infer import LAYER_KEYS, Config, config_dicts
from jmerge.dtypes import CONFIG_NAMES, FLOATS
from jmerge.verify.folder import Finding, Folder
from jmerge.verify.tables import MOST_SIZES, quantised, token_tables


def shapes(folder: Folder) -> Iterator[Finding]:
    """Token tables have the rows and columns that config.json says, and a tensor has one shape in all layers."""
    yield from token_tables(folder)
    if not _per_layer(folder.config) and not quantised(folder.config):
        yield from _one_shape(folder)


def _one_shape(folder: Folder) -> Iterator[Finding]:
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, role in folder.layout.roles.items():
        if role.stack is not None and not role.buffer:
            groups.setdefault(role.template, {})[name] = folder.tensors[name].spec.shape
    stacks = folder.layout.stacks
    widths = _widths(folder, groups.values())
    for template, group in groups.items():
        stack = stacks[template.partition("{}")[0].rstrip(".")]
        if len(group) == 3 and not stack.keys:
            continue  # of heads and sums of a few layers, the first and last of which are mostly others
        usual = _usual(group)
        if usual is None:
            continue
        odd = {name: shape for name, shape in group.items() if shape != usual}
        if template.count(".", template.index("{}")) == 1:  # a chain of single modules
            roles, last = folder.layout.roles, stack.depth - 1
            odd = {
                name: shape
                for name, shape in odd.items()
                if not _at_an_end(shape, usual, roles[name].layer, last)
            }
        if _listed_alone(folder, odd) or _reads_others(folder, odd, usual):
            continue
        for name, shape in odd.items():
            role, others = folder.layout.roles[name], len(group) - len(odd)
            other = {size for size, each in zip(shape, usual, strict=False) if size != each}
            wider = len(shape) == len(usual) and other <= widths.get(
                (role.stack, role.layer), set()
            )
            if not wider:
                message = f"has shape {list(shape)}, in {others} other layers {list(usual)}"
                yield Finding(message, tensor=name)


def _usual(group: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape that a tensor has in all layers but a few; None where layers are made to differ."""
    ((usual, count), *_) = Counter(group.values()).most_common()
    return usual if len(group) >= 3 and count >= 0.75 * len(group) - 0.25 else None


def _at_an_end(
    shape: tuple[int, ...], usual: tuple[int, ...], layer: int | None, last: int
) -> bool:
    """Whether a module of a chain is another only in what the first reads or the last gives."""
    return (layer == 0 and shape[:-1] == usual[:-1]) or (layer == last and shape[1:] == usual[1:])


def _widths(
    folder: Folder, groups: Iterable[Mapping[str, tuple[int, ...]]]
) -> dict[tuple[str | None, int | None], set[int]]:
    """Stack and layer -> the sizes there in which tensors are made to differ from layer to layer.

    Layers that get wider have such a size in other tensors too, some of which are alike in most of the layers.
    """
    found: dict[tuple[str | None, int | None], set[int]] = {}
    for group in groups:
        shapes = list(group.values())
        if len(shapes) < 3 or _usual(group) is not None or len({len(s) for s in shapes}) > 1:
            continue
        differing = [i for i, sizes in enumerate(zip(*shapes, strict=True)) if len({*sizes}) > 1]
        for name, shape in group.items():
            role = folder.layout.roles[name]
            found.setdefault((role.stack, role.layer), set()).update(shape[i] for i in differing)
    return found


def _reads_others(
    folder: Folder, odd: Mapping[str, tuple[int, ...]], usual: tuple[int, ...]
) -> bool:
    """Whether the first layer or the last alone is another, by a size that config.json tells: of what goes in or out."""
    roles, stacks = folder.layout.roles, folder.layout.stacks
    ends = {
        (role.stack, layer)
        for role in (roles[name] for name in odd)
        if role.stack is not None
        for layer in (0, stacks[role.stack].depth - 1)
        if role.layer == layer
    }
    sizes = {size for shape in odd.values() for size in shape} - set(usual)
    values = (value for _, part in config_dicts(folder.config) for value in part.values())
    told = {value for value in values if type(value) is int and value > 1}
    products = told | {a * b for a, b in combinations(sorted(told)[:MOST_SIZES], 2)}
    return len(odd) == 1 == len(ends) and sizes <= products


def _listed_alone(folder: Folder, names: Iterable[str]) -> bool:
    """Whether config.json has a list of just the layers of these tensors (SAM: `global_attn_indexes`)."""
    roles = folder.layout.roles
    layers = {roles[name].layer for name in names}
    deep = {role.layer for role in roles.values()}
    lists = (
        value
        for _, part in config_dicts(folder.config)
        for key, value in part.items()
        if isinstance(value, list) and not key.endswith("token_id")
    )
    return any({each for each in value if type(each) is int} & deep == layers for value in lists)


def _per_layer(config: Config) -> bool:
    """Whether config.json has lists with an entry for each layer, so that layers may differ."""
    for _, part in config_dicts(config):
        depths = {part[key] for key in LAYER_KEYS if type(part.get(key)) is int}
        for value in part.values():
            if isinstance(value, list) and len(value) in depths:
                kinds = [each for each in value if isinstance(each, str | int | float)]
                if len(kinds) < len(value) or len(set(kinds)) > 1:
                    return True
    return False


def dtypes(folder: Folder) -> Iterator[Finding]:
    """Most bytes have the dtype of config.json, to which transformers casts all when it loads the model."""
    told = folder.config.get("dtype", folder.config.get("torch_dtype"))
    if told not in CONFIG_NAMES.values() or quantised(folder.config):
        return
    sizes: Counter[str] = Counter()
    for spec in folder.specs.values():
        if spec.dtype in FLOATS:
            sizes[spec.dtype] += spec.nbytes
    if sizes:
        (usual, nbytes) = sizes.most_common(1)[0]
        if CONFIG_NAMES.get(usual) != told:
            share = f"{nbytes / sizes.total():.0%} of the bytes are {usual}"
            yield Finding(f"the dtype is {told}; {share}", folder.config_file)
