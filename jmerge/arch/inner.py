"""Lists of layers inside of each layer, which may have their length from the key that counts the layers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from jmerge.arch.infer import Config, KeyPath, Stack, config_dicts

LAYERED = re.compile(r"layers?|blocks?|h")
PLAIN = frozenset(("layer", "block", "num", "n", "model", "module"))  # words of any path or key

Tree = dict[str, dict[str, set[str]]]  # module -> what is in it -> the rests of names in there


def counted_inside(
    names: Collection[tuple[str, int | None]], stack: Stack, prefix: str, config: Config
) -> tuple[str, int] | None:
    """A module in each layer of a stack with as many layers of its own as the stack has, which no other key of config.json
    counts, and how many; None where there is none.

    SAM 2's decoder gives `num_hidden_layers` to the MLP in each of its layers too: with other layers, what loads the
    model would look for other MLPs.

    names: template and layer of every tensor; the stack's templates start with `prefix`.
    """
    head = f"{prefix}.{{}}."
    layers = Counter(template for template, layer in names if layer is not None)
    rests = [
        template.removeprefix(head)
        for template, count in layers.items()
        if template.startswith(head) and count == stack.depth
    ]
    loose = _tree(name for name, layer in names if layer is None)
    inside = _tree(rests)
    for module, count in _counts(inside, loose):
        if count == stack.depth > 1 and not _has_key(config, module, count, stack.keys):
            return f"{head}{module}".removesuffix(".").replace("{}", str(stack.indices[0])), count
    return None


def _tree(names: Iterable[str]) -> Tree:
    tree: Tree = {}
    for name in names:
        parts = name.split(".")
        for i, child in enumerate(parts):
            module = tree.setdefault(".".join(parts[:i]), {})
            module.setdefault(child, set()).add(".".join(parts[i + 1 :]))
    return tree


def _counts(inside: Tree, loose: Tree) -> Iterator[tuple[str, int]]:
    """Modules inside of a layer, with how many layers each has: those of its list, with what is alike before and behind
    them. A list may be empty: a module elsewhere in the model has the same parts and one."""
    for module, children in inside.items():
        lists = {name: entries for name in children if (entries := _entries(inside, module, name))}
        for name, (count, kind) in lists.items():
            if LAYERED.fullmatch(name):
                yield module, count
            if ends := sum(rests == kind for other, rests in children.items() if other != name):
                yield module, count + ends
        kinds = {frozenset(rests) for rests in children.values()}
        if len(children) > 1 and not lists and len(kinds) == 1:
            for other, theirs in loose.items():
                if len(extra := theirs.keys() - children) == 1 and theirs.keys() > children.keys():
                    found = _entries(loose, other, *extra)
                    if found is not None and {frozenset(found[1])} == kinds:
                        yield module, len(children)


def _entries(tree: Tree, module: str, name: str) -> tuple[int, set[str]] | None:
    """How many entries a list in a module has, and what is in each; None when it is no list of equals."""
    entries = tree.get(f"{module}.{name}" if module else name, {})
    kinds = list(entries.values())
    if set(entries) != set(map(str, range(len(entries)))) or any(
        kind != kinds[0] for kind in kinds
    ):
        return None
    return (len(entries), kinds[0]) if entries else None


def _has_key(config: Config, module: str, count: int, taken: Iterable[KeyPath]) -> bool:
    """Whether config.json has a count of its own, or a list of counts, for a module inside of each layer."""
    words = _words(module)
    for path, part in config_dicts(config):
        for key, value in _items(part):
            if (*path, key) not in taken and words & _words(key):
                if value == count or (isinstance(value, list) and count in value):
                    return True
    return False


def _items(part: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The fields of a map and those of plain maps in it, these by their last key."""
    for key, value in part.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from ((str(inner), each) for inner, each in value.items())


def _words(name: str) -> set[str]:
    return {word.removesuffix("s") for word in re.split(r"[._]", name.lower())} - PLAIN - {""}
