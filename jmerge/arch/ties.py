"""Is the output head the embedding? What class and config.json of a model say, and its bytes where it stores a head."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jmerge.arch.infer import VISION, Config, Layout, class_names, config_dicts, is_classifier
from jmerge.ckpt.copies import equal
from jmerge.ckpt.open import Checkpoint
from jmerge.recipe.refs import ModelRef

# Classes of models without a head for tokens: LMHeadModel and DoubleHeadsModel have one, those for other tasks have not.
HEADLESS = re.compile(
    r"\w*(?<!Head)(?<!Heads)Model|\w+For\w*(Classification|Answering|Choice|Sentence\w*|Reward\w*|Regression"
    r"|Detection|Segmentation|Scor(ing|e)|Retrieval|Embeddings?|(Re)?[Rr]ank\w*|XVector|Similarity)"
)


def is_headless(config: Config, layout: Layout) -> bool:
    """Whether the class of a model has no head for tokens; where none is named, whether a classifier stands there."""
    classes = class_names(config)
    if classes:
        return HEADLESS.fullmatch(classes[0]) is not None
    return not layout.heads and any(map(is_classifier, layout.roles))


def flag(config: Config) -> bool | None:
    """What config.json says of the tie, of the whole model or of its text; None when it says nothing."""
    said = [
        part["tie_word_embeddings"]
        for path, part in config_dicts(config)
        if not VISION.search(".".join(path)) and isinstance(part.get("tie_word_embeddings"), bool)
    ]
    return any(said) if said else None


def is_tied_unstored(config: Config, layout: Layout) -> bool:
    """Whether a model that stores no head has its embedding as one: its class has a head, and config.json does not
    say that it is another tensor."""
    if not layout.embeddings or layout.heads or is_headless(config, layout):
        return False
    return flag(config) is not False


def find_ties(
    checkpoints: Mapping[ModelRef, Checkpoint], layouts: Mapping[ModelRef, Layout]
) -> dict[ModelRef, bool]:
    """For each model, whether its head is its embedding: not stored, or stored with the same bytes.

    Bytes are only read when it matters, that is when some of the models store no head, or when config.json says that
    the one that is stored is tied.
    """
    mixed = len({bool(layout.heads) for layout in layouts.values()}) > 1
    ties = {}
    for ref, layout in layouts.items():
        checkpoint = checkpoints[ref]
        if not layout.heads or not layout.embeddings:
            ties[ref] = is_tied_unstored(checkpoint.config, layout)
        else:
            matters = mixed or flag(checkpoint.config)
            head, table = (checkpoint.index[n[0]] for n in (layout.heads, layout.embeddings))
            ties[ref] = bool(matters) and equal(checkpoint.source, head, table)
    return ties
