"""The files beside the weights that a merged model takes over from its donor: an allow-list, never weights."""

from __future__ import annotations

from fnmatch import fnmatch

from jmerge.ckpt.source import Source

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
    "*.py",
)


def donor_files(source: Source) -> list[str]:
    """The names of the files of a model that go with its weights, in name order."""
    return [name for name in source.names() if any(fnmatch(name, each) for each in PATTERNS)]


def is_tokenizer_file(name: str) -> bool:
    """Whether a file says what the tokens are, so that it comes from the model whose tokens the output has."""
    return any(fnmatch(name, each) for each in TOKENIZER_PATTERNS)
