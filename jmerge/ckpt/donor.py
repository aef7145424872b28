"""The files beside the weights that a merged model takes over from its donor: an allow-list, never weights."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

from jmerge.ckpt.sentence import Module, main_module
from jmerge.ckpt.source import LocalSource, Source
from jmerge.ckpt.weights import INDEX_SUFFIX, read_json_file
from jmerge.errors import CheckpointError, Fault, raise_all

TOKENIZER_PATTERNS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "tekken.json",
    "normalizer.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenization*.py",
)
PATTERNS = (
    *TOKENIZER_PATTERNS,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "sentence_*_config.json",
    "*.py",
)
# Chat templates that are asked for by name, beside the one that is used else.
MORE_TEMPLATES = "additional_chat_templates"
# In the folders of modules of Sentence Transformers, besides: what they are told.
MODULE_PATTERNS = ("*.json", "*.txt", "*.model")
# Those that are read before anything is merged, to see that they are JSON; others are read for what they say.
CHECKED = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "config_sentence_transformers.json",
)


def donor_files(source: Source, modules: Sequence[Module] = ()) -> list[str]:
    """The files of a model that go with its weights, by their paths in its folder, in name order of each folder.

    modules: of a Sentence Transformers model, whose folders have files of their own.
    """
    main = main_module(tuple(modules))
    names = [name for name in source.names() if _fits(name, PATTERNS)]
    if "chat_template.jinja" in names:
        names += [f"{MORE_TEMPLATES}/{name}" for name in source.names(MORE_TEMPLATES)]
    for module in modules:
        if module.folder:
            found = source.names(module.folder)
            wanted = [name for name in found if _fits(name, (*PATTERNS, *MODULE_PATTERNS))]
            names += [module.prefix + name for name in wanted if not name.endswith(INDEX_SUFFIX)]
    config = None if main is None else f"{main.prefix}config.json"  # which is written anew
    return [name for name in names if name != config]


def check_donor_files(source: Source, modules: Sequence[Module] = ()) -> None:
    """CheckpointError for each file that goes with a model's weights and cannot be taken over, or is not the JSON that
    it should be, so that this is known before anything is merged."""
    main = main_module(tuple(modules))
    prefixes = dict.fromkeys(("", main.prefix if main else ""))
    names = [prefix + name for prefix in prefixes for name in CHECKED]
    sizes = source.map(source.size, names)
    faults: list[Fault] = []
    if isinstance(source, LocalSource):  # of a remote one every file costs a request
        for name in donor_files(source, modules):
            try:
                source.check_whole(name)
            except CheckpointError as error:
                faults += error.faults
    for name in [name for name, size in zip(names, sizes, strict=True) if size is not None]:
        try:
            read_json_file(source, name)
        except CheckpointError as error:
            faults += error.faults
    raise_all(CheckpointError, faults)


def is_tokenizer_file(name: str) -> bool:
    """Whether a file says what the tokens are, so that it comes from the model whose tokens the output has."""
    folder, _, file = name.rpartition("/")
    return folder.endswith(MORE_TEMPLATES) or _fits(file, TOKENIZER_PATTERNS)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, each) for each in patterns)
