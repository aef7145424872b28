"""Structure from a checkpoint's headers: stacks of layers, embeddings, heads, buffers, what comes first and last.

A *stack* is a run of layers: names that agree up to their first number, `model.layers.0.mlp.up_proj.weight`.
A *template* is a name with that number cut out, `model.layers.{}.mlp.up_proj.weight`; layers need not have the
same templates. Everything outside a stack is *loose* and stands for itself. The rules were tried on every class of
transformers that can be built at tiny size; see BUILD.md.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jmerge.arch.families import MODULES
from jmerge.arch.key_names import OTHER_LAYER_KEY, is_of_part, names_another
from jmerge.arch.match import plain_name
from jmerge.dtypes import FLOATS, TensorSpec
from jmerge.errors import CheckpointError, Problem

Part = Literal["first", "layer", "last"]  # of the model, in the order a forward pass meets them
Config = Mapping[str, Any]
KeyPath = tuple[str, ...]  # into config.json

# a whole dotted component that is a number, as programs write it
NUMBER = re.compile(r"(?<![^.])(0|[1-9][0-9]{0,5})(?![^.])")

# Config keys that count layers. Those that hold a stack's length are all rewritten with it.
LAYER_KEYS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "decoder_layers",
    "encoder_layers",
    "depth",
)
# Lists with the kind of each layer, which count the layers where nothing else does (Nemotron-H, as transformers saves it).
LAYER_LIST = re.compile(r"(layers?_)?(layer|block)_types?")

# Config keys that count layers stored behind the others, which foretell more than one token: parts of no stack.
EXTRA_LAYER_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")

MAX_PAIRS = 50_000  # of a stack and a key that fits it, which are all compared; real models have up to a hundred

EMBEDDING_MODULES = (
    "embed_tokens",
    "wte",
    "tok_embeddings",
    "word_embeddings",
    "embed_in",
    "embeddings",
    "shared",
    "input_embedding",
)
# A table that is called an embedding is one, whatever it holds (values, n-grams), unless it is of what comes out
CALLED_EMBEDDING = re.compile(r"(?!un_?emb|out|.*_out|lm_|.*head)\w*_emb(s|ed(ding)?s?)?")
FIRST = re.compile(
    r"embed\w*|wte|wpe|(tok|word|position|token_type)_embeddings\w*|shared|patch_\w*|conv[12]|rotary\w*"
    r"|ln_pre|layernorm_pre|pre_la?ye?rnorm|layernorm_embedding|project_in|class_embedding|pos_(conv_)?embed"
    r"|relative_pe|positional_embedding\w*"
)
LAST = re.compile(
    r"lm_head|embed_out|output(_layer)?|score|classifier|pre_classifier|pooler|cls|vocab_\w*|norm|norm_f|ln_f"
    r"|final_\w*norm|layernorm_post|post_layernorm|layer_norm|embedding_norm|vision_adapter|proj_out"
)
VISION = re.compile(r"vision|visual|vit|audio|image|speech")
BUFFER = re.compile(r"(.*\.)?(inv_freq|masked_bias|position_ids|num_batches_tracked)")


@dataclass(frozen=True)
class Stack:
    """A run of layers."""

    prefix: str  # what stands before the layer number, without the dot
    indices: tuple[int, ...]  # the numbers in the names, consecutive
    keys: tuple[KeyPath, ...]  # of config.json that hold its length; empty when none does
    # of these, those that may as well count the layers of another stack, which has this prefix
    doubtful: tuple[tuple[KeyPath, str], ...] = ()
    listed: bool = False  # no key holds its length, but config.json has a list with the kind of each of its layers

    @property
    def home(self) -> KeyPath:
        """Where in config.json the map lies that says how many layers it has; the top where none does."""
        return self.keys[0][:-1] if self.keys else ()

    @property
    def counted(self) -> bool:
        """Whether config.json says how many layers it has."""
        return bool(self.keys) or self.listed

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.indices)

    @property
    def usual(self) -> bool:
        """Whether a key that models count their layers by holds its length."""
        return any(path[-1] in LAYER_KEYS for path in self.keys)


@dataclass(frozen=True)
class Role:
    """What one tensor is; tensors of different models pair up when template and layer are equal."""

    template: str
    stack: str | None = None  # prefix of its stack; None for a loose tensor
    layer: int | None = None  # 0-based place in the stack
    part: Part = "last"
    module: str = "default"
    buffer: bool = False  # computed, not trained: copied, never averaged


@dataclass(frozen=True)
class Layout:
    """The structure of one checkpoint."""

    roles: Mapping[str, Role]  # tensor name -> role, in file order
    stacks: Mapping[str, Stack]  # by prefix
    modules: tuple[str, ...]  # names that `modules:` may use
    embeddings: tuple[str, ...]  # input token embeddings
    heads: tuple[str, ...]  # output heads with a row per token
    vocab_biases: tuple[str, ...]  # vectors with an entry per token

    def main_stack(self, module: str) -> Stack | None:
        """The stack that layer ranges of `module` count; None when it has no layers."""
        inside = {
            role.stack
            for role in self.roles.values()
            if role.module == module and role.part == "layer"
        }
        stacks = [stack for prefix, stack in self.stacks.items() if prefix in inside]
        return max(
            stacks, key=lambda stack: (stack.usual, bool(stack.keys), stack.depth), default=None
        )


def infer_layout(
    specs: Mapping[str, TensorSpec], config: Config, folders: Sequence[str] = ()
) -> Layout:
    """The structure of the checkpoint with these tensors and this config.json; CheckpointError when there is far more
    of either than any model has.

    folders: tensors whose names begin with one of them come after the model that config.json describes.
    """
    if folders:
        return _with_folders(specs, config, folders)
    stacks = _find_stacks(specs, config)
    ranks = _ranks(stacks, specs)
    stacks = _with_keys(stacks, ranks, config)
    by_prefix = {stack.prefix: stack for stack in stacks}
    located = {name: _locate(name, by_prefix) for name in specs}
    loose = [name for name, (stack, _) in located.items() if stack is None]
    embeddings, heads, biases = _vocabulary(loose, specs, config)
    layered = _layered(stacks, ranks)
    layered_prefixes = {stack.prefix for stack in layered}
    branches = _branches(layered, specs, embeddings, heads, config)
    roles = {}
    for name, (stack, index) in located.items():
        buffer = is_buffer(name, specs[name])
        module = _module_of(name, branches)
        if stack is not None and stack.prefix in layered_prefixes:
            template = f"{stack.prefix}.{{}}" + name[len(f"{stack.prefix}.{index}") :]
            template = template.removeprefix(".")
            layer = index - stack.indices[0]
            roles[name] = Role(template, stack.prefix, layer, "layer", module, buffer)
        else:
            roles[name] = Role(name, None, None, _part(name, embeddings, heads), module, buffer)
    modules = tuple(dict.fromkeys(branches.values())) or ("default",)
    return Layout(roles, by_prefix, modules, embeddings, heads, biases)


def _with_folders(
    specs: Mapping[str, TensorSpec], config: Config, folders: Sequence[str]
) -> Layout:
    """The layout of what is in none of the folders; the rest is loose, a module of its own where there are several."""
    home = {name: folder for name in specs for folder in folders if name.startswith(f"{folder}/")}
    inner = infer_layout({name: spec for name, spec in specs.items() if name not in home}, config)
    single = inner.modules == ("default",)
    roles = {
        name: inner.roles[name]
        if name not in home
        else Role(
            name, module="default" if single else home[name], buffer=is_buffer(name, specs[name])
        )
        for name in specs
    }
    modules = inner.modules if single else (*inner.modules, *folders)
    return dataclasses.replace(inner, roles=roles, modules=modules)


def is_buffer(name: str, spec: TensorSpec) -> bool:
    """Whether a tensor is computed rather than trained: masks, positions, rotary tables, anything not floating."""
    return spec.dtype not in FLOATS or is_computed(name, spec)


def is_computed(name: str, spec: TensorSpec) -> bool:
    """Whether name or shape tells of a tensor, whatever its dtype, that it is a mask, a position or a rotary table."""
    if BUFFER.fullmatch(name):
        return True
    causal_mask = (
        len(spec.shape) == 4 and spec.shape[:2] == (1, 1) and spec.shape[2] == spec.shape[3]
    )
    return causal_mask and name.endswith((".attn.bias", ".attention.bias"))


def config_dicts(config: Config) -> list[tuple[KeyPath, Config]]:
    """config.json and every map nested in it that is a config too, by its key or by its `model_type`, with their paths."""
    found: list[tuple[KeyPath, Config]] = [((), config)]
    for path, part in found:  # grows while it is walked
        for key, value in part.items():
            if isinstance(value, dict) and (key.endswith("config") or "model_type" in value):
                found.append(((*path, key), value))
    return found


def class_names(config: Config) -> list[str]:
    """The classes that config.json names, the one that saved the model first; empty when it names none."""
    classes = config.get("architectures")
    return [str(each) for each in classes] if isinstance(classes, list) else []


def _find_stacks(specs: Mapping[str, TensorSpec], config: Config) -> list[Stack]:
    groups: dict[str, dict[int, set[str]]] = {}
    for name in specs:
        if found := NUMBER.search(name):
            rest = NUMBER.sub("#", plain_name(name[found.end() :]))
            groups.setdefault(name[: found.start()].removesuffix("."), {}).setdefault(
                int(found[0]), set()
            ).add(rest)
    counts: set[int] = set()
    behind: dict[int, int] = {}  # numbers of layers with those behind them -> without
    for _, part in config_dicts(config):
        own = {v for k, v in part.items() if k in LAYER_KEYS and type(v) is int and v > 1}
        extra = (part.get(key) for key in EXTRA_LAYER_KEYS)
        behind |= {v + n: v for n in extra if type(n) is int and n > 0 for v in own}
        counts |= own
    listed = _list_lengths(config)
    counts |= listed
    stacks = []
    for prefix, layers in groups.items():
        indices = sorted(layers)
        if indices[-1] - indices[0] + 1 != len(indices) or not any(
            t for s in layers.values() for t in s
        ):
            continue
        if len(indices) == 1:
            if indices == [0]:
                stacks.append(Stack(prefix, (0,), ()))
            continue
        templates = set().union(*layers.values())
        counted = Counter(template for layer in layers.values() for template in layer)
        repeated = [template for template, count in counted.items() if count >= 2]
        if len(repeated) < 0.3 * len(templates) and len(indices) not in listed:
            continue
        if len(indices) not in counts:
            counted_on = behind.get(len(indices))
            indices = indices[:counted_on] if counted_on else _trim(indices, layers)
        stacks.append(Stack(prefix, tuple(indices), ()))
    return stacks


def _list_lengths(config: Config) -> set[int]:
    """How long the lists with the kinds of layers are that config.json has."""
    return {
        len(value)
        for key, value in config.items()
        if LAYER_LIST.fullmatch(key) and isinstance(value, list) and len(value) > 1
    }


def _trim(indices: list[int], layers: dict[int, set[str]]) -> list[int]:
    """Without end numbers that are not layers: old Phi counts its embedding as layer 0 and its head as the last."""
    middle = layers[indices[len(indices) // 2]]

    def alike(index: int) -> bool:
        return len(layers[index] & middle) >= 0.3 * len(layers[index] | middle)

    while len(indices) > 1 and not alike(indices[0]):
        indices = indices[1:]
    while len(indices) > 1 and not alike(indices[-1]):
        indices = indices[:-1]
    return indices


def _ranks(stacks: list[Stack], specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    """Prefix -> place by number of tensors, then by name: which of equals is meant does not depend on how the tensors
    are shared out among files."""
    by_prefix = {stack.prefix: stack for stack in stacks}
    sizes = Counter(stack.prefix for name in specs if (stack := _locate(name, by_prefix)[0]))
    ordered = sorted(by_prefix, key=lambda prefix: (-sizes[prefix], prefix))
    return {prefix: rank for rank, prefix in enumerate(ordered)}


def _with_keys(stacks: list[Stack], ranks: Mapping[str, int], config: Config) -> list[Stack]:
    """The stacks with the config keys that hold their lengths, each key used once, best matches first.

    A second usual key of the same length in the same map (`n_layer` beside `num_hidden_layers`) goes to the stack
    it suits best, so that all of them are rewritten together.
    """
    dicts = config_dicts(config)
    two_kinds = any(VISION.search(".".join(path)) for path, _ in dicts)
    by_depth: dict[int, list[Stack]] = {}
    for stack in stacks:
        by_depth.setdefault(stack.depth, []).append(stack)
    counts = [
        (path, key, value)
        for path, part in dicts
        for key, value in part.items()
        if type(value) is int and value in by_depth
        if key in LAYER_KEYS or OTHER_LAYER_KEY.fullmatch(key)
    ]
    pairs = sum(len(by_depth[value]) for _, _, value in counts)
    if pairs > MAX_PAIRS:
        message = f"config.json has {len(counts):,} keys that may count the layers of {len(stacks):,} stacks"
        raise CheckpointError(Problem(f"{message}; no model has that many", code="JM124"))
    lists: dict[str, list[tuple[str, int]]] = {}
    for stack in stacks:
        home = stack.prefix.rpartition(".")[0]
        lists.setdefault(home, []).append((stack.prefix, stack.depth))
    candidates = []
    scores: dict[tuple[KeyPath, str], float] = {}
    for path, key, value in counts:
        usual = key in LAYER_KEYS
        for stack in by_depth[value]:
            score = _key_score(stack.prefix, (*path, key), two_kinds)
            if score is None or not (usual or is_of_part(stack.prefix, key)):
                continue
            if not names_another(stack.prefix, value, key, lists):
                rank = ranks[stack.prefix]
                scores[(*path, key), stack.prefix] = score = score - (not usual)
                candidates.append((score, -rank, (*path, key), usual, stack.prefix))
    candidates.sort(key=lambda candidate: candidate[:2], reverse=True)
    keys: dict[str, list[KeyPath]] = {}
    taken: dict[KeyPath, str] = {}
    for _, _, path, _, prefix in candidates:
        if prefix not in keys and path not in taken:
            keys[prefix] = [path]
            taken[path] = prefix
    for _, _, path, usual, prefix in candidates:
        same_map = prefix in keys and path[:-1] == keys[prefix][0][:-1]
        if usual and same_map and path not in taken and _same_side(prefix, path):
            keys[prefix].append(path)
            taken[path] = prefix
    doubtful = _doubtful(scores, keys, taken, by_depth)
    without = Counter(stack.depth for stack in stacks if stack.prefix not in keys)
    lengths = {length for length in _list_lengths(config) if without[length] == 1}
    if any(type(config.get(key)) is int for key in LAYER_KEYS):
        lengths = set()  # the list is of what that counts
    return [
        Stack(
            stack.prefix,
            stack.indices,
            tuple(keys.get(stack.prefix, ())),
            tuple(doubtful.get(stack.prefix, ())),
            listed=stack.prefix not in keys and stack.depth in lengths,
        )
        for stack in stacks
    ]


def _doubtful(
    scores: Mapping[tuple[KeyPath, str], float],
    keys: Mapping[str, list[KeyPath]],
    taken: Mapping[KeyPath, str],
    by_depth: Mapping[int, list[Stack]],
) -> dict[str, list[tuple[KeyPath, str]]]:
    """Keys that may as well count another stack of the same length, by the stack that has them: one without a key whose
    name suits as well, one that is the same but for its side (`encoder`, `decoder`), one that would as well have the key
    of the other map."""
    found: dict[str, list[tuple[KeyPath, str]]] = {}
    alike = [
        (one, other)
        for stacks in by_depth.values()
        for one in stacks
        if one.prefix in keys
        for other in stacks
        if other is not one
    ]
    for one, other in alike:
        path, prefix = keys[one.prefix][0], other.prefix
        own, others = scores[path, one.prefix], scores.get((path, prefix))
        if prefix not in keys:
            sided = not re.search("encoder|decoder", path[-1])
            twin = sided and _without_side(one.prefix) == _without_side(prefix)
            doubt = twin or (others is not None and others >= own)
        else:
            theirs = keys[prefix][0]
            swapped = scores.get((theirs, one.prefix))
            doubt = (
                theirs[:-1] != path[:-1] and others is not None and swapped is not None
            ) and others + swapped >= own + scores[theirs, prefix]
        if doubt:
            found.setdefault(one.prefix, []).append((path, prefix))
    return found


def _without_side(prefix: str) -> str:
    return re.sub("encoder|decoder", "", prefix)


def side_of(prefix: str) -> str:
    """The last word of an encoder or a decoder in a name; empty without any."""
    return next(iter(reversed(re.findall("encoder|decoder", prefix))), "")


def _key_score(prefix: str, path: KeyPath, two_kinds: bool) -> float | None:
    """How well the config key at `path` suits the stack called `prefix`; None when it cannot be its key.

    `two_kinds`: the config describes a vision or audio part too, so that either part has keys of its own.
    """
    key, stack = ".".join(path).lower(), prefix.lower()
    score = 0.0
    if two_kinds and VISION.search(stack) and not VISION.search(key):
        return None
    if two_kinds and VISION.search(key) and not VISION.search(stack):
        score = -4.0  # a tower may have any name, so this is the last resort and not refused
    sides = {side_of(path[-1].lower()), side_of(stack)}
    if sides == {"encoder", "decoder"}:
        return None
    for side, weight in (("decoder", 2.0), ("encoder", 1.0)):
        score += weight * ((side in key) == (side == side_of(stack)))
    stack = stack.replace("language_model", "language_model.text")
    words = set(re.split(r"[._]", key)) & set(re.split(r"[._]", stack))
    if len(path) > 1 and path[0] == prefix.removeprefix("model.").partition(".")[0]:
        score += 4.0  # the map is called as the part is: `decoder` in `decoder.bert.encoder.layer`
    return score + 0.2 * len(words) + 0.5 * (path[-1] == "num_hidden_layers")


def may_count(prefix: str, path: KeyPath, config: Config) -> bool:
    """Whether the key at `path` may be the one that counts the layers of the stack called `prefix`, were it right."""
    two_kinds = any(VISION.search(".".join(each)) for each, _ in config_dicts(config))
    return _key_score(prefix, path, two_kinds) is not None and _same_side(prefix, path)


def _same_side(prefix: str, path: KeyPath) -> bool:
    """Whether a key that speaks of an encoder or decoder speaks of this stack."""
    return side_of(path[-1]) in ("", side_of(prefix))


def _locate(name: str, stacks: Mapping[str, Stack]) -> tuple[Stack | None, int]:
    """The stack and number of a tensor; (None, -1) for a loose one."""
    if found := NUMBER.search(name):
        stack = stacks.get(name[: found.start()].removesuffix("."))
        if stack is not None and stack.indices[0] <= int(found[0]) <= stack.indices[-1]:
            return stack, int(found[0])
    return None, -1


def _vocabulary(
    loose: list[str], specs: Mapping[str, TensorSpec], config: Config
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Embeddings, heads and biases: the loose tensors with a row per token."""
    told = [part.get("vocab_size") for _, part in config_dicts(config)]
    sizes = {size for size in told if type(size) is int}

    def rows(name: str) -> int:
        return specs[name].shape[0] if specs[name].shape else -1

    def module(name: str) -> str:
        return name.split(".")[-2] if "." in name else ""

    def tables(sizes: set[Any]) -> list[str]:
        return [
            n
            for n in loose
            if len(specs[n].shape) == 2 and rows(n) in sizes and not _is_position_table(n)
        ]

    found = tables(sizes)
    inputs = [n for n in found if _part(n, (), ()) == "first" or module(n) in EMBEDDING_MODULES]
    others = [n for n in found if n not in inputs]
    inputs += [n for n in others if CALLED_EMBEDDING.fullmatch(module(n).lower())]
    if not inputs:  # the table may be longer than vocab_size says
        inputs = [n for n in loose if len(specs[n].shape) == 2 and module(n) in EMBEDDING_MODULES]
        found = tables({rows(n) for n in inputs})
    # a patch of a picture, or a layer of its tower, may have as many rows as there are tokens
    heads = [n for n in found if n not in inputs and not is_classifier(n) and not VISION.search(n)]
    lengths = {rows(n) for n in inputs + heads}
    biases = [
        n
        for n in loose
        if len(specs[n].shape) == 1 and rows(n) in lengths
        if n.endswith("bias") and not VISION.search(n)
    ]
    hidden = {specs[n].shape[1] for n in inputs}
    for names in (inputs, heads):  # the model's own come before those of layers behind its stack
        names.sort(key=lambda name: NUMBER.search(name) is not None)
    return tuple(inputs), tuple(heads), tuple(n for n in biases if rows(n) not in hidden)


def _is_position_table(name: str) -> bool:
    return bool(re.search(r"pos(ition)?(al)?_?emb|token_type|wpe|embed_positions|patch_", name))


def is_classifier(name: str) -> bool:
    """Whether a tensor is of a head that classifies, by its name."""
    return bool(re.search(r"(^|\.)(score|classifier|qa_outputs|pre_classifier)\.", name))


def _part(name: str, embeddings: tuple[str, ...], heads: tuple[str, ...]) -> Part:
    """Whether a loose tensor comes before or after the layers: the first telling word of its name decides."""
    if name in embeddings or name in heads:
        return "first" if name in embeddings else "last"
    words = name.split(".")
    for i, word in enumerate(words):
        if i < len(words) - 1 and LAST.fullmatch(word.lower()):
            return "last"
        if FIRST.fullmatch(word.lower()):
            return "first"
    return "last"


def _layered(stacks: list[Stack], ranks: Mapping[str, int]) -> list[Stack]:
    """The stacks whose layers can be ranged over: those with a key, else the largest one."""
    keyed = [stack for stack in stacks if stack.counted]
    if keyed or not stacks:
        return keyed
    return [max(stacks, key=lambda stack: (stack.depth > 1, -ranks[stack.prefix]))]


def _branches(
    stacks: list[Stack],
    names: Iterable[str],
    embeddings: tuple[str, ...],
    heads: tuple[str, ...],
    config: Config,
) -> dict[str, str]:
    """Prefix of tensor names -> module; empty when the whole model is one module, else each of `names` has a prefix."""
    if len(stacks) < 2:
        return {}
    paths = [stack.prefix.split(".") for stack in stacks]
    named = next((MODULES.get(name) for name in class_names(config)), None)
    common = ""
    if named:
        branches = {prefix: module for module, prefixes in named.items() for prefix in prefixes}
    else:
        shared = 0
        while all(len(p) > shared + 1 and p[shared] == paths[0][shared] for p in paths):
            shared += 1
        common = "".join(f"{word}." for word in paths[0][:shared])
        branches = {f"{common}{path[shared]}.": path[shared] for path in paths if path[shared]}
    home = _module_of(embeddings[0], branches) if embeddings else "default"
    for name in names:
        if _branch_of(name, branches) is None:
            word = name.removeprefix(common).split(".")[0]
            prefix = f"{common}{word}." if name.startswith(common) else f"{name.split('.')[0]}."
            module = "default" if word.isdigit() else word  # layers without any name before them
            branches[prefix] = home if name in heads and home != "default" else module
    return branches


def _module_of(name: str, branches: Mapping[str, str]) -> str:
    """The module with the longest prefix of `name`; `default` when there is none."""
    branch = _branch_of(name, branches)
    return "default" if branch is None else branches[branch]


def _branch_of(name: str, branches: Mapping[str, str]) -> str | None:
    """The longest prefix of `name` in `branches`, all of which end with a dot, as if one stood after the name too: a
    tensor without a module of its own may be a branch."""
    name += "."
    end = len(name)
    while branches and (end := name.rfind(".", 0, end)) >= 0:
        if name[: end + 1] in branches:
            return name[: end + 1]
    return None
