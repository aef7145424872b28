"""The files beside the weights that a merged model takes over from its donor: an allow-list, never weights."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

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


def donor_files(folder: Path) -> list[str]:
    """The names of the files in `folder` that go with a model's weights, in name order."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [name for name in names if any(fnmatch(name, pattern) for pattern in PATTERNS)]
