"""The check of the tokenizer and of ids in configs against the rows of the embedding."""

from __future__ import annotations

from collections.abc import Iterator

from jmerge.arch.infer import config_dicts
from jmerge.tokens.model import ADDED, CONFIG, SPECIAL_MAP, ModelTokens, content_of, special_tokens
from jmerge.verify.folder import Finding, Folder

IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "decoder_start_token_id")


def tokens(folder: Folder) -> Iterator[Finding]:
    """Every token of the tokenizer and every special id of the configs has a row in the embedding."""
    tables = folder.layout.embeddings
    if not tables:
        return
    rows = max(folder.tensors[name].spec.shape[0] for name in tables)
    if folder.tokens is not None:
        for file, last in last_ids(folder.tokens).items():
            if last >= rows:
                message = f"has token ids up to {last}; the embedding has {rows} rows"
                yield Finding(message, folder.home + file)
    configs = [part for _, part in config_dicts(folder.config) if "vocab_size" in part]
    generation = folder.home + "generation_config.json"
    for file, parts in (
        (folder.config_file, configs),
        (generation, [folder.json(generation) or {}]),
    ):
        for part in parts:
            for key in IDS:
                value = part.get(key)
                for each in value if isinstance(value, list) else [value]:
                    if type(each) is int and each >= rows:  # often never used
                        message = f"{key} is {each}; the embedding has {rows} rows"
                        yield Finding(message, file, warning=True)


def last_ids(tokens: ModelTokens) -> dict[str, int]:
    """The largest id of the tokens in the vocabulary's file, and of those that only a companion file names, by file."""
    decoder = tokens.config.get("added_tokens_decoder") or {}
    told = {content_of(each) for each in decoder.values()}
    told |= {token for token, _ in special_tokens(tokens.config)}
    found: dict[str, int] = {}
    for token, number in tokens.vocabulary.ids.items():
        file = tokens.file
        if token in tokens.joined:
            listed = token in (tokens.added_map or {})
            file = ADDED if listed else CONFIG if token in told else SPECIAL_MAP
        found[file] = max(found.get(file, -1), number)
    return found
