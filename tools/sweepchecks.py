"""What the sweep does with the tiny models of one type: merges, and whether a result is what numpy makes of the files.

Names, values and dtypes are those of the files as transformers saved them; how jmerge plans takes no part, but for the
names of its modules, which a recipe of slices has to say.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
import yaml
from tinymodels import NotBuildableError, build, filled, said
from transformers import PreTrainedModel

from jmerge.api.merge import merge
from jmerge.ckpt.source import LocalSource
from jmerge.errors import JmergeError, RunError
from jmerge.verify.checks import verify
from jmerge.verify.folder import Folder

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "families"))
familyreference: Any = importlib.import_module("familyreference")
METHODS, read_model = familyreference.METHODS, familyreference.read_model
Tensors = dict[str, np.ndarray]
Legal = list[Any]  # of familyreference.Merged: what a tensor may be

MODELS = {"a": 1, "b": 2, "c": 3}
BUILD, SOUND, STACK = "build", "sound", "stack"
KINDS = (BUILD, SOUND, "linear", "slerp", "ties", STACK)
RIGHT, WRONG, REFUSED, CRASHED, NONE = "right", "wrong", "refused", "crashed", "none"
ALARM = "alarm"
NO_LAYERS = "no layers that slices could name"
# what of a layer follows from its place or from the number of layers, whatever kind it is of
OWN = re.compile(
    r".*(idx|index|layer_num|layer_id|drop|training|prob|seed|cache_key|num_hidden_layers).*"
    r"|lambda_init|scaling_factor|residual_scale|depth|.*_path|_is_hf_initialized"
    r"|store_\w*kv"  # what it keeps for others: the last of its kind does, wherever it is
)
MOST_MODULES = 6  # whose layers are stacked


class Result(NamedTuple):
    """How one kind of try ended."""

    status: str
    cause: str = ""  # the same for all of one cause
    detail: str = ""
    verified: str = ""  # what `jmerge verify` says of what was written
    either: int = 0  # elements whose value rests on how float32 rounds


class WrongError(Exception):
    """What of an output is not as it should be: a cause, and what was found."""

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(cause, detail)
        self.cause, self.detail = cause, detail


# Inputs


def make(model_type: str, home: Path) -> Result:
    """Save three tiny models of a type in a folder; what they are."""
    with quiet():
        try:
            kind, config = build(model_type)
        except NotBuildableError as error:
            return Result(NONE, cause_of(str(error)), str(error))
        for name, seed in MODELS.items():
            folder = home / name
            shutil.rmtree(folder, ignore_errors=True)
            try:
                filled(kind, config, seed).save_pretrained(folder)
            except Exception as error:
                return Result(NONE, "it cannot be saved", said(error))
    tensors = read_model(home / "a")
    size = sum(x.size for x in tensors.values())
    (home / "class").write_text(f"{kind.__module__} {kind.__name__}")
    return Result(RIGHT, "", f"{kind.__name__}: {len(tensors)} tensors, {size:,} numbers")


def class_of(home: Path) -> type[PreTrainedModel]:
    """The class of the models in a folder."""
    module, name = (home / "class").read_text().split()
    __import__(module)
    kind: type[PreTrainedModel] = getattr(sys.modules[module], name)
    return kind


def sound(home: Path) -> Result:
    """Whether transformers loads what it saved, and `jmerge verify` raises no alarm about it."""
    found = alarms(home / "a")
    detail = "; ".join(found)
    try:
        problems = load(class_of(home), home / "a")[1]
        detail += f"; transformers itself: {problems}" if problems else ""
    except Exception as error:
        detail += f"; transformers itself cannot load it: {said(error)}"
    return Result(ALARM if found else RIGHT, cause_of(found[0]) if found else "", detail[:600])


def alarms(folder: Path) -> list[str]:
    """The problems that `jmerge verify --deep` finds in a folder, with which it ends with exit code 1."""
    return [
        f"problem: {finding.message}"
        for each in verify(LocalSource(folder), deep=True)
        for check in each.checks
        for finding in check.problems
    ]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing of transformers on the way."""
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield


def load(kind: type[PreTrainedModel], folder: Path) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """The model transformers loads, and what it complains of."""
    with quiet():
        loaded: Any = kind.from_pretrained(folder, output_loading_info=True)
    model, info = loaded
    asked = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    return model, {key: sorted(map(str, info[key]))[:5] for key in asked if info.get(key)}


# Merges


def tried(kind: str, home: Path, work: Path) -> Result:
    """One kind of try with the models in a folder; what it writes goes into `work` and is removed."""
    if kind == SOUND:
        return sound(home)
    return stacked(home, work) if kind == STACK else merged(kind, home, work)


def run(recipe: dict[str, Any], home: Path, work: Path, check: Callable[[Path], int]) -> Result:
    """Carry out a recipe, whose models are named by their folders inside `home`, and check what it wrote.

    check: of the folder that was written, gives the number of elements that may be one number or another.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    text = re.sub(r"\b(model|base_model): ([abc])\b", rf"\1: {home}/\2", yaml.safe_dump(recipe))
    (work / "x.yml").write_text(text)
    out = work / "out"
    try:
        merge(work / "x.yml", out, listeners=())
    except (JmergeError, RunError) as error:
        message = re.sub(rf"{re.escape(str(work))}/x\.yml(:\d+)?: ", "", str(error))
        message = message.replace(f"{home}/", "")
        return Result(REFUSED, cause_of(message), message[:600])
    except Exception as error:
        return Result(CRASHED, cause_of(said(error)), said(error))
    found = "; ".join(alarms(out))[:300]
    try:
        either = check(out)
    except WrongError as error:
        return Result(WRONG, error.cause, error.detail[:600], found)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Result(RIGHT, verified=found, either=either)


def merged(kind: str, home: Path, work: Path) -> Result:
    """A merge of whole models by a method."""
    method = METHODS[kind]
    models = {name: read_model(home / name) for name in MODELS}
    base = models[method.recipe.get("base_model", "a")]
    buffers = buffer_names(home)

    def check(out: Path) -> int:
        def wanted(name: str) -> Legal | None:
            inputs = [models[m][name] for m in "abc"]
            return method.merge(*inputs) if base[name].dtype.kind == "f" else None

        either = check_tensors(read_model(out), wanted, base, buffers, models)
        check_loads(home, out)
        return either

    return run(method.recipe, home, work, check)


def check_tensors(
    found: Tensors,
    wanted: Callable[[str], Legal | None],
    base: Tensors,
    buffers: set[str],
    models: Mapping[str, Tensors],
) -> int:
    """That an output has the names, dtypes and values of the numpy merge; WrongError tells what not.

    wanted: what the tensor of a name may be, None where it has to be the base's. Of the elements, gives the number of
    those that may be one number or another.
    """
    if missing := sorted(base.keys() - found.keys()):
        raise WrongError("tensors are missing", f"{len(missing)}: {missing[:5]}")
    if more := sorted(found.keys() - base.keys()):
        raise WrongError("tensors are there that no input has", f"{len(more)}: {more[:5]}")
    copied: list[str] = []
    other: list[str] = []
    either = 0
    for name, x in base.items():
        if found[name].dtype != x.dtype or found[name].shape != x.shape:
            raise WrongError(
                "another dtype or shape", f"{name}: {found[name].dtype} {found[name].shape}"
            )
        if (legal := wanted(name)) is None:
            wrong = np.count_nonzero(found[name] != x)
        else:
            wrong = min(np.count_nonzero(~way.right(found[name])) for way in legal)
            # all of a tensor where a decision about the whole rests on rounding
            either += x.size if len(legal) > 1 else legal[0].either()
        if not wrong:
            continue
        if name in buffers and np.array_equal(found[name], x):
            continue  # computed, not trained
        is_copy = any(np.array_equal(found[name], each[name]) for each in models.values())
        (copied if is_copy else other).append(f"{name} ({wrong} of {x.size} elements)")
    if other:
        raise WrongError("values are wrong", f"{len(other)} of {len(base)}: {other[:5]}")
    if copied:
        raise WrongError(
            "tensors are copied, not merged", f"{len(copied)} of {len(base)}: {copied[:5]}"
        )
    return either


def buffer_names(home: Path) -> set[str]:
    """Names of saved tensors that are no parameters and no statistics, so that they may be copied."""
    kind: Any = class_of(home)
    with quiet(), torch.device("meta"):
        try:
            model = kind(kind.config_class.from_pretrained(home / "a"))
        except Exception:
            return set()
    return {name for name, _ in model.named_buffers() if "running_" not in name}


def check_loads(home: Path, out: Path) -> PreTrainedModel | None:
    """The output as transformers loads it, with no complaint that the input does not give; WrongError tells of another.
    None where it loads neither."""
    kind = class_of(home)
    allowed: dict[str, list[str]] = {}
    unloadable = ""
    try:
        allowed = load(kind, home / "a")[1]
    except Exception as error:
        unloadable = cause_of(said(error))
    try:
        model, problems = load(kind, out)
    except Exception as error:
        if cause_of(said(error)) == unloadable:
            return None  # nor does it load what it saved
        raise WrongError(
            "transformers cannot load it: " + cause_of(said(error)), said(error)
        ) from error
    for key, names in problems.items():
        if new := [name for name in names if name not in allowed.get(key, [])]:
            raise WrongError(f"transformers finds {key.replace('_', ' ')}", f"{new}")
    return model


# Stacks


def stacked(home: Path, work: Path) -> Result:
    """Layers of a under layers of b, in each module that has any, one at a time; the worst of the results."""
    layout = Folder(LocalSource(home / "a")).layout
    stacks = {module: layout.main_stack(module) for module in layout.modules}
    depths = {module: stack.depth for module, stack in stacks.items() if stack and stack.depth > 1}
    if not depths:  # whoever reads the names sees layers all the same
        lists = lists_of(read_model(home / "a")).values()
        longest = max((len(each) for each in lists if len(each) == max(each) + 1), default=1)
        depths = {layout.modules[0]: longest} if longest > 1 else {}
    results = []
    for module, depth in list(depths.items())[:MOST_MODULES]:
        lower, upper = (0, max(depth - 1, 2)), (max(depth - 2, 1), depth)
        slices = [
            {"sources": [{"model": model, "layer_range": list(layers)}]}
            for model, layers in (("a", lower), ("b", upper))
        ]
        recipe: dict[str, Any] = {"merge_method": "passthrough"}
        if len(layout.modules) == 1:
            recipe["slices"] = slices
        else:
            recipe |= {"base_model": "a", "modules": {module: {"slices": slices}}}
        origins = [(m, i) for m, layers in (("a", lower), ("b", upper)) for i in range(*layers)]

        def check(out: Path, origins: list[tuple[str, int]] = origins) -> int:
            check_stack(home, out, origins)
            return 0

        result = run(recipe, home, work, check)
        detail = f"{module}: {result.detail}" if result.detail else ""
        results.append(result._replace(detail=detail))
    if not results:
        return Result(NONE, NO_LAYERS, NO_LAYERS)
    order = (WRONG, CRASHED, REFUSED, RIGHT)
    return min(results, key=lambda result: order.index(result.status))


def check_stack(home: Path, out: Path, origins: list[tuple[str, int]]) -> None:
    """That an output has the layers of `origins` in one list, or in several of one module, and loads; WrongError tells."""
    models = {name: read_model(home / name) for name in "ab"}
    found = read_model(out)
    old, new = lists_of(models["a"]), lists_of(found)
    grown = [prefix for prefix in new if len(new[prefix]) != len(old.get(prefix, ()))]
    if not grown:
        raise WrongError("no list of layers grew", f"{ {p: len(n) for p, n in new.items()} }")
    wanted: Tensors = {}
    count = len(origins)
    for prefix in grown:
        if len(new[prefix]) != count or prefix not in old:
            raise WrongError("a list of layers has another length", f"{prefix}: {len(new[prefix])}")
        for k, (model, i) in enumerate(origins):
            before, after = f"{prefix}{i}.", f"{prefix}{k}."
            wanted |= {
                after + name.removeprefix(before): x
                for name, x in models[model].items()
                if name.startswith(before)
            }
    for name, x in wanted.items():
        if name not in found:
            raise WrongError("tensors of layers are missing", name)
        if not np.array_equal(found[name], x):
            raise WrongError("values of layers are wrong", name)
    for name, x in found.items():
        inside = name.startswith(tuple(grown))
        if not inside and not any(np.array_equal(x, m[name]) for m in models.values() if name in m):
            raise WrongError("tensors outside the layers are no input's", name)
        if inside and name not in wanted:
            raise WrongError("tensors of layers that no input has", name)
    if lost := sorted(
        name for name in models["a"] if not name.startswith(tuple(grown)) and name not in found
    ):
        raise WrongError("tensors outside the layers are missing", f"{lost[:5]}")
    if (loaded := check_loads(home, out)) is not None:
        check_layers(home, loaded, origins)


def lists_of(tensors: Tensors) -> dict[str, set[int]]:
    """The first numbered list of each name: what stands before the number -> the numbers."""
    lists: dict[str, set[int]] = {}
    for name in tensors:
        if (match := re.match(r"((?:.*?\.)?)(\d+)\.", name)) is not None:
            lists.setdefault(match[1], set()).add(int(match[2]))
    return lists


def check_layers(home: Path, model: PreTrainedModel, origins: list[tuple[str, int]]) -> None:
    """That every layer of a loaded stack is of the kind of that which it comes from; WrongError tells of one that is not."""
    single = load(class_of(home), home / "a")[0]
    lists = dict(named_lists(single))
    for path, layers in named_lists(model):
        if path not in lists or len(layers) == len(lists[path]) or len(layers) != len(origins):
            continue
        for k, (_, i) in enumerate(origins):
            is_, was = traits(layers[k]), traits(lists[path][i])
            if is_ != was:
                other = {key: (was.get(key), is_.get(key)) for key in is_.keys() | was.keys()}
                differ = {key: pair for key, pair in other.items() if pair[0] != pair[1]}
                key = min(differ)
                word = key.rpartition(".")[2]
                raise WrongError(
                    f"a layer computes something else: its {word}",
                    f"{path}.{k} from {i}: {key} was {differ[key][0]!r}, is {differ[key][1]!r}",
                )


def named_lists(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Lists of modules by path."""
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
            yield path, module


def traits(layer: torch.nn.Module) -> dict[str, Any]:
    """The classes of a layer's modules and the numbers and words that they keep."""
    found: dict[str, Any] = {}
    for path, module in layer.named_modules():
        found[f"{path}.class"] = type(module).__name__
        for key, value in vars(module).items():
            if isinstance(value, bool | int | float | str | None) and not OWN.fullmatch(key):
                found[f"{path}.{key}"] = value
    return found


def cause_of(message: str) -> str:
    """A message without names, paths and numbers, so that those of one cause are equal."""
    text = message.splitlines()[0] if message else ""
    text = re.sub(r"\[[^\]]*\]|\{[^}]*\}", "...", text)
    text = re.sub(r"'[^']*'|`[^`]*`|\"[^\"]*\"", "...", text)
    text = re.sub(r"\b[\w-]*(?:[._/{}][\w{}*-]+)+", "NAME", text)
    text = re.sub(r"\b[A-Z][a-z0-9]+(?:[A-Z]\w*)+: ", "", text)
    return re.sub(r"\d[\d,.]*", "N", text)[:160]


def as_json(result: Result) -> dict[str, Any]:
    """A result without its empty parts."""
    return {key: value for key, value in result._asdict().items() if value}


def dumps(line: Mapping[str, Any]) -> str:
    """A line of the file of results."""
    return json.dumps(line, ensure_ascii=False)
