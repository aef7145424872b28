"""The files beside the weights that a merged model takes over from its donor: an allow-list, never weights."""

from __future__ import annotations

from fnmatch import fnmatch

from jmerge.ckpt.source import Source

PATTERNS = (
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
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "*.py",
)


def donor_files(source: Source) -> list[str]:
    """The names of the files of a model that go with its weights, in name order."""
    return [name for name in source.names() if any(fnmatch(name, each) for each in PATTERNS)]


def check_donor_files(source: Source) -> None:
    """CheckpointError when one of them cannot be taken over, so that this is known before anything is merged."""
    for name in donor_files(source):
        source.check_whole(name)
