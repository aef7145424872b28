"""Tiny models of any class of transformers, built from the defaults of its config: every size is made small, no two alike.

Nothing of jmerge is used here. `build` tries all small sizes at once; where the class refuses them, it goes back to the
defaults and keeps as many of the small ones as the class bears.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tinysizes import LAYERS, Tree, small, tree_of, with_needed
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

MOST_WEIGHTS = 10_000_000  # of a model that counts as tiny

# The heads of a model, the best first; those that transformers finds by AutoModelFor... alike.
HEADS = (
    "CausalLM",
    "LMHeadModel",
    "ConditionalGeneration",
    "ImageTextToText",
    "Seq2SeqLM",
    "SpeechSeq2Seq",
    "CTC",
    "PreTraining",
    "MaskedLM",
    "MaskedImageModeling",
    "ObjectDetection",
    "UniversalSegmentation",
    "InstanceSegmentation",
    "SemanticSegmentation",
    "DepthEstimation",
    "Prediction",
    "Model",
    "SequenceClassification",
    "ImageClassification",
    "VideoClassification",
    "AudioClassification",
)
# Of types that refuse their own defaults.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
}


class NotBuildableError(Exception):
    """Why a type has no tiny model."""


def model_classes(config: type[PretrainedConfig]) -> list[type[PreTrainedModel]]:
    """The classes of models with this config, the best head first; empty when there is none."""
    package = config.__module__.rpartition(".")[0]
    found: dict[str, type[PreTrainedModel]] = {}
    where = Path(importlib.import_module(package).__file__ or "").parent
    for module in pkgutil.iter_modules([str(where)]):
        if module.name.startswith("modeling_"):
            members = vars(importlib.import_module(f"{package}.{module.name}"))
            for name, member in members.items():
                if (
                    isinstance(member, type)
                    and issubclass(member, PreTrainedModel)
                    and getattr(member, "config_class", None) is config
                    and not name.endswith("PreTrainedModel")
                ):
                    found[name] = member
    listed = {
        str(name)
        for mapping, names in vars(modeling_auto).items()
        if mapping.endswith("_MAPPING_NAMES") and config.model_type in names
        for name in _listed(names[config.model_type])
    }

    def rank(name: str) -> tuple[int, bool, int, str]:
        head = next((i for i, h in enumerate(HEADS) if name.endswith(h)), len(HEADS))
        return head, name not in listed, len(name), name

    return [found[name] for name in sorted(found, key=rank)]


def _listed(names: Any) -> list[Any]:
    return list(names) if isinstance(names, list | tuple) else [names]


def without_downloads(tree: Tree) -> None:
    """Backbones of transformers itself, not of timm or the Hub."""
    for part in tree.parts():
        if part.get("use_timm_backbone"):
            part["use_timm_backbone"] = False
        if part.get("use_pretrained_backbone"):
            part["use_pretrained_backbone"] = False
        for key, value in part.items():
            if isinstance(value, Tree) and value.kind.model_type == "timm_backbone":
                resnet: type[PretrainedConfig] = CONFIG_MAPPING["resnet"]
                part[key] = tree_of(resnet())
                part[key]["out_indices"] = value.get("out_indices")


# Models


def build(model_type: str) -> tuple[type[PreTrainedModel], PretrainedConfig]:
    """Class and tiny config of a type; NotBuildableError tells why there is none."""
    try:
        kind: type[PretrainedConfig] = CONFIG_MAPPING[model_type]
    except Exception as error:
        raise NotBuildableError(f"no config class: {said(error)}") from error
    if kind.model_type != model_type and kind.model_type in CONFIG_MAPPING:
        raise NotBuildableError(f"another name of {kind.model_type}")
    try:
        classes = model_classes(kind)
    except ImportError as error:
        raise NotBuildableError(f"its module cannot be imported: {said(error)}") from error
    if not classes:
        raise NotBuildableError("no class of models has this config: it is a part of another")
    try:
        tree = tree_of(default_config(kind))
    except Exception as error:
        raise NotBuildableError(f"its config has no defaults: {said(error)}") from error
    without_downloads(tree)
    reasons = []
    for model in classes[:3]:
        try:
            return model, tiny_config(model, tree)
        except NotBuildableError as error:
            reasons.append(f"{model.__name__}: {error}")
    raise NotBuildableError(reasons[0])


def default_config(kind: type[PretrainedConfig]) -> PretrainedConfig:
    """The config with its defaults."""
    return kind(**DEFAULTS.get(kind.model_type, {}))


def tiny_config(model: type[PreTrainedModel], tree: Tree) -> PretrainedConfig:
    """The config with small sizes that a class of models takes; NotBuildableError when it takes none."""
    reasons = []
    candidates = []
    wide = with_needed(tree_of(default_config(tree.kind), lists=True))
    without_downloads(wide)
    needed = with_needed(tree)
    ways = ((8, False), (8, True), (32, False))
    for given, (unit, scaled) in product((tree, needed, wide), ways):
        changed = small(given, unit, scaled)
        candidates.append(changed)
        try:
            return tried(model, changed)
        except Exception as error:
            reasons.append(said(error))
    for changed, given in ((candidates[3], needed), (candidates[4], needed), (candidates[6], wide)):
        config = kept_where_borne(model, given, changed)
        if config is not None:
            return config
    raise NotBuildableError(reasons[0])


def kept_where_borne(
    model: type[PreTrainedModel], tree: Tree, candidate: Tree
) -> PretrainedConfig | None:
    """The config with the defaults where the class does not bear the small sizes; None when that is no tiny model."""
    held = tree.copy()
    default, new = dict(tree.leaves()), dict(candidate.leaves())
    changes = [path for path in new if path not in default or new[path] != default[path]]
    # the number of layers first, so that what follows is quick
    changes.sort(key=lambda path: not LAYERS.fullmatch(path[-1].lower()))
    groups = [changes]
    tries = 0
    while groups and tries < 150:
        group = groups.pop(0)
        attempt = held.copy()
        for path in group:
            attempt.put(path, new[path])
        tries += 1
        try:
            tried(model, attempt, most=None)
            held = attempt
        except Exception:
            if len(group) > 1:
                half = len(group) // 2
                groups[:0] = [group[:half], group[half:]]
    try:
        return tried(model, held)
    except Exception:
        return None


def tried(
    model: type[PreTrainedModel], tree: Tree, most: int | None = MOST_WEIGHTS
) -> PretrainedConfig:
    """The config of a tree, with which the class makes a model of at most so many weights; any error of theirs when it
    does not."""
    config = tree.config()
    with torch.device("meta"):
        try:
            made = model(copy.deepcopy(config))  # it may change what it is given
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
            made = None
    if made is None:
        made = model(copy.deepcopy(config))
    count = sum(each.numel() for each in made.parameters())
    if most is not None and count > most:
        raise NotBuildableError(f"{count:,} weights at the least")
    return config


def said(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    return f"{type(error).__name__}: {text}"[:300]


def filled(model: type[PreTrainedModel], config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A model whose parameters and buffers of floats, each once, are seeded noise without a zero."""
    made: Any
    try:
        made = model(copy.deepcopy(config))
    except Exception:  # in the first values of weights, which do not stay
        with no_init_weights():
            made = model(copy.deepcopy(config))
    made = made.eval().float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        seen: set[int] = set()
        for name, tensor in made.state_dict(keep_vars=True).items():
            if tensor.data_ptr() in seen or not tensor.numel():
                continue
            seen.add(tensor.data_ptr())
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                noise = torch.where(noise.abs() < 1e-3, torch.full_like(noise, 0.5), noise)
                tensor.copy_(noise.abs() + 0.1 if name.endswith("running_var") else noise)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(10 + seed)
    kept: PreTrainedModel = made
    return kept
