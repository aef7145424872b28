"""A merge of two models with vocabularies of their own, trained on other languages, writes both in transformers.

The models know one sentence each. A token's embedding is a vector of its text, the head has for each token that may
follow the vectors of those before it, and the blocks add nothing; so a model goes on from a token to the next.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenkit as kit
from mergeplace import EMBED, HEAD, Place
from tokenizers import Tokenizer

torch = pytest.importorskip("torch")
HIDDEN = 256
SPECIAL = {"bos_token": kit.BOS, "eos_token": kit.EOS, "unk_token": kit.UNK}


def vector(token: str) -> np.ndarray:
    """Of length one, the same in all models."""
    drawn = np.random.default_rng(zlib.crc32(token.encode())).standard_normal(HIDDEN)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def sentence(text: str, tokenizer: Tokenizer, taken: set[str]) -> list[str]:
    """The tokens of a text up to the first that was there before."""
    found: list[str] = []
    for token in tokenizer.encode(text, add_special_tokens=False).tokens:
        if token in taken or token in found:
            break
        found.append(token)
    return found


def knows(place: Place, name: str, text: str, tokens: list[str]) -> None:
    """Write a model that goes on from each of these tokens to the next, and then ends."""
    ids = Tokenizer.from_str(text).get_vocab()
    embed, head = (np.zeros((len(ids), HIDDEN), np.float32) for _ in range(2))
    for token, i in ids.items():
        embed[i] = vector(token)
    for token, following in zip(tokens, [*tokens[1:], kit.EOS], strict=True):
        head[ids[following]] += vector(token)
    silent = {
        f"model.layers.{layer}.{part}.weight": np.zeros(shape, np.float32)
        for layer in range(2)
        for part, shape in {
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.down_proj": (HIDDEN, 12),
        }.items()
    }
    tensors = {EMBED: embed, HEAD: head, "model.norm.weight": np.ones(HIDDEN, np.float32), **silent}
    files: dict[str, Any] = {
        "tokenizer_config__json": {**SPECIAL, "tokenizer_class": "PreTrainedTokenizerFast"},
        "generation_config__json": {"eos_token_id": ids[kit.EOS], "bos_token_id": ids[kit.BOS]},
    }
    place.model(name, text, tensors=tensors, files=files, hidden=HIDDEN)


@pytest.mark.parametrize("mode", ["added", "bpe"])
def test_both_languages_are_written(mode: str, tmp_path: Path) -> None:
    """From its first token on, every sentence comes out as its model knew it, decoded by the merged tokenizer."""
    import transformers

    place = Place(tmp_path)
    texts = {"base": kit.trained("BPE"), "other": kit.trained("BPE", kit.FRENCH)}
    corpora = {"base": kit.ENGLISH[1], "other": "bonjour le chat"}
    known: dict[str, list[str]] = {}
    for name, text in texts.items():
        taken = {token for tokens in known.values() for token in tokens}
        known[name] = sentence(corpora[name], Tokenizer.from_str(text), taken)
        knows(place, name, text, known[name])
    french = known["other"]
    new = set(french) - Tokenizer.from_str(texts["base"]).get_vocab().keys()
    assert len(known["base"]) >= 4 and len(french) >= 3 and new
    tail = f"tokenizer: {{source: union, union_mode: {mode}, pad_to_multiple_of: 64}}"
    place.run(place.linear("base", "other", tail=tail))
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        place.out, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    tokenizer = transformers.AutoTokenizer.from_pretrained(place.out)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings
    assert len(tokenizer) <= model.config.vocab_size and model.config.vocab_size % 64 == 0
    for name, tokens in known.items():
        first = tokenizer.convert_tokens_to_ids(tokens[0])
        made = model.generate(torch.tensor([[first]]), max_new_tokens=20, do_sample=False)
        assert tokenizer.convert_ids_to_tokens(made[0].tolist()) == [*tokens, kit.EOS]
        wanted = Tokenizer.from_str(texts[name])
        ids = [wanted.get_vocab()[token] for token in tokens]
        assert tokenizer.decode(made[0], skip_special_tokens=True) == wanted.decode(ids)
        assert corpora[name].startswith(wanted.decode(ids))
    prompt = tokenizer("hello", return_tensors="pt")
    made = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    said = tokenizer.decode(made[0], skip_special_tokens=True)
    assert "hello".startswith(known["base"][0]) and corpora["base"].startswith(said.strip())
    for text in kit.TEXTS[:6]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert ids == Tokenizer.from_file(str(place.out / "tokenizer.json")).encode(text).ids
