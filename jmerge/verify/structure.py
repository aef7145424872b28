"""Checks of tensors against config.json: layers, shapes, dtypes, ties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

from jmerge.arch.infer import LAYER_KEYS, NUMBER, Config, class_names, config_dicts
from jmerge.ckpt.dtypes import CONFIG_NAMES, FLOATS
from jmerge.ckpt.open import Checkpoint
from jmerge.plan.holes import holes_of_its_own
from jmerge.plan.views import build_views
from jmerge.recipe.refs import ModelRef
from jmerge.verify.folder import Finding, Folder

HEADED = ("ForCausalLM", "LMHeadModel")  # how classes end that give a score to every token
HEAD = "lm_head"
PLAIN = (".weight", ".bias")
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
# config keys of models whose embedding has another width than their layers
OTHER_WIDTHS = (
    "embedding_size",
    "input_embedding_size",
    "word_embed_proj_dim",
    "embed_dim",
    "d_embed",
    "emb_dim",
)


def layers(folder: Folder) -> Iterator[Finding]:
    """There are as many layers as config.json says, each with what its kind has."""
    if not folder.whole:
        return
    told = [
        (".".join((*path, key)), part[key])
        for path, part in config_dicts(folder.config)
        for key in LAYER_KEYS
        if type(part.get(key)) is int and part[key] > 1
    ]
    gaps = list(_gaps(folder, max((count for _, count in told), default=0)))
    yield from gaps
    stacks = folder.layout.stacks
    sizes = Counter(role.stack for role in folder.layout.roles.values() if role.stack is not None)
    prefix = max(sizes, key=lambda each: (stacks[each].depth > 1, sizes[each]), default=None)
    # two layers that have little in common are no stack, and there all the same
    if told and prefix is None and not any(NUMBER.search(name) for name in folder.tensors):
        key, count = told[0]
        yield Finding(f"{key} is {count}; the weights have no layers", folder.config_file)
    if prefix is not None and not gaps and stacks[prefix].depth > 1 and not stacks[prefix].keys:
        depth = stacks[prefix].depth
        depths = {stack.depth for stack in stacks.values()}
        unmatched = [(key, count) for key, count in told if count not in depths]
        if unmatched and len(unmatched) == len(told):
            key, count = unmatched[0]
            yield Finding(f"{key} is {count}; '{prefix}' has {depth} layers", folder.config_file)
    yield from _holes(folder)


def _gaps(folder: Folder, most: int) -> Iterator[Finding]:
    """Layers of which there is nothing, between others or at the beginning."""
    found: dict[str, set[int]] = {}
    for name in folder.tensors:
        if number := NUMBER.search(name):
            found.setdefault(name[: number.start()], set()).add(int(number[0]))
    for prefix, numbers in found.items():
        missing = next((n for n in range(min(numbers), max(numbers)) if n not in numbers), None)
        # a few numbers with gaps are modules of a sequence, some of which have no weights
        enough = max(3, most / 2)
        if missing is not None and max(numbers) < most and len(numbers) >= enough:
            message = f"there is nothing of '{prefix}{missing}', between layers that are there"
            yield Finding(message)


def _holes(folder: Folder) -> Iterator[Finding]:
    """Tensors that most layers of their kind have."""
    ref = ModelRef(folder.source.label)
    stored = SimpleNamespace(config=folder.config, index=folder.tensors)
    checkpoint = cast(Checkpoint, stored)  # as much of one as holes are found in
    views, _ = build_views({ref: checkpoint}, {ref: folder.layout}, {ref: False}, {ref: {}})
    for prefix in folder.layout.stacks:
        for hole in holes_of_its_own(views[ref], prefix, whole_blocks=True):
            if _quantised(folder.config) and not hole.name.endswith(PLAIN):
                continue  # a scale, of weights that this layer has unpacked
            message = f"is missing; {hole.having} other layers have it"
            yield Finding(message, tensor=hole.name)


def shapes(folder: Folder) -> Iterator[Finding]:
    """Token tables have the rows and columns that config.json says, and a tensor has one shape in all layers."""
    parts = [part for _, part in config_dicts(folder.config)]
    rows = {part["vocab_size"] for part in parts if type(part.get("vocab_size")) is int}
    widths = {part[key] for part in parts for key in WIDTHS if type(part.get(key)) is int}
    if any(key in part for part in parts for key in OTHER_WIDTHS):
        widths = set()
    heads = dict.fromkeys((*folder.layout.heads, *_called_heads(folder)))
    for name in dict.fromkeys((*folder.layout.embeddings, *heads)):
        found = folder.tensors[name].spec.shape
        if rows and found[0] not in rows:
            # some models read more tokens than they write, and count the latter (mllama: pictures)
            written = {folder.tensors[head].spec.shape[0] for head in heads}
            more = found[0] > max(rows) and bool(written) and written <= rows
            message = f"has {found[0]} rows; vocab_size is {_listed(rows)}"
            yield Finding(message, tensor=name, warning=more)
        if widths and not any(size in widths for size in found[1:]):
            yield Finding(
                f"has {found[1]} columns; config.json says {_listed(widths)}", tensor=name
            )
    named = next(iter(class_names(folder.config)), "")
    matrices = {n for n, s in folder.specs.items() if len(s.shape) == 2 and s.shape[0] in rows}
    bare = not folder.layout.embeddings and matrices <= set(heads)
    if folder.whole and rows and bare and named.endswith(HEADED):
        message = f"vocab_size is {_listed(rows)}; the weights have no embedding for {named}"
        yield Finding(message, folder.config_file)
    if not _per_layer(folder.config) and not _quantised(folder.config):
        yield from _one_shape(folder)


def _called_heads(folder: Folder) -> list[str]:
    """Matrices that are called heads, whatever their shapes."""
    specs = folder.specs.items()
    return [n for n, s in specs if f".{n}".endswith(f".{HEAD}.weight") and len(s.shape) == 2]


def _one_shape(folder: Folder) -> Iterator[Finding]:
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, role in folder.layout.roles.items():
        if role.stack is not None and not role.buffer:
            groups.setdefault(role.template, {})[name] = folder.tensors[name].spec.shape
    for group in groups.values():
        ((usual, count), *others) = Counter(group.values()).most_common()
        # a few that differ from the rest; where many do, the model is made so
        if others and len(group) >= 3 and count >= 0.75 * len(group) - 0.25:
            odd = {name: shape for name, shape in group.items() if shape != usual}
            if not _listed_alone(folder, odd):
                for name, shape in odd.items():
                    message = f"has shape {list(shape)}, in {count} other layers {list(usual)}"
                    yield Finding(message, tensor=name)


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


def _quantised(config: Config) -> bool:
    """Whether weights are stored packed, perhaps not those of all layers."""
    return any(
        isinstance(part.get("quantization_config"), dict) for _, part in config_dicts(config)
    )


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
    if told not in CONFIG_NAMES.values() or _quantised(folder.config):
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


def ties(folder: Folder) -> Iterator[Finding]:
    """There is a head where config.json does not tie it to the embedding."""
    told = _ties_told(folder.config)
    layout = folder.layout
    named = next(iter(class_names(folder.config)), "")
    headless = not layout.heads and not _called_heads(folder)
    if told == {False} and layout.embeddings and headless and named.endswith(HEADED):
        message = f"tie_word_embeddings is false; the weights have no head for {named}"
        if folder.whole:
            yield Finding(message, folder.config_file)
    pair = _one_table(folder)
    if pair is not None:
        head, table = (folder.tensors[name].spec for name in pair)
        if head.shape != table.shape:
            message = f"tie_word_embeddings is true; the head is {head}, the embedding {table}"
            yield Finding(message, folder.config_file, pair[0])


def tied_tables(folder: Folder) -> tuple[str, str] | None:
    """Head and embedding that config.json says are one, where both are stored in one shape and dtype."""
    pair = _one_table(folder)
    if pair is None or folder.tensors[pair[0]].spec != folder.tensors[pair[1]].spec:
        return None
    return pair


def _one_table(folder: Folder) -> tuple[str, str] | None:
    """The stored head and embedding that config.json says are one."""
    layout = folder.layout
    if _ties_told(folder.config) != {True} or not layout.heads or not layout.embeddings:
        return None
    head, table = layout.heads[0], layout.embeddings[0]
    return (head, table) if layout.roles[head].module == layout.roles[table].module else None


def _ties_told(config: Config) -> set[bool]:
    told = [part.get("tie_word_embeddings") for _, part in config_dicts(config)]
    return {each for each in told if isinstance(each, bool)}


def _number(part: Mapping[str, Any], key: str) -> int:
    value = part.get(key)
    return value if type(value) is int else 0


def _listed(numbers: set[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))
