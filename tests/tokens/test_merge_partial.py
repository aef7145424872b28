"""A tokenizer for merges of parts, of models of another structure, and of models in folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenkit as kit
from mergeplace import EMBED, HEAD, Place

from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

WORDS = [f"w{i}" for i in range(20)]
MORE = {"<|im_end|>": {"special": True}}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A base, and a chat model with a token more."""
    place = Place(tmp_path)
    place.base = place.model("base", kit.words(*WORDS))
    place.chat = place.model("chat", kit.words(*WORDS, added=MORE))
    return place


def test_a_table_that_is_not_merged(place: Place) -> None:
    """It has the rows of the base, and of the token that the base lacks that of the other model."""
    recipe = place.linear("base", "chat", tail=f"tokenizer_source: union\nexcept: [{EMBED}]")
    made = place.run(recipe)
    assert made.config["vocab_size"] == 21
    table = np.asarray(made[EMBED])
    np.testing.assert_array_equal(table[:20], place.base[EMBED])
    np.testing.assert_array_equal(table[20], place.chat[EMBED][20])
    head = np.asarray(made[HEAD])
    np.testing.assert_array_equal(head[:20], place.base[HEAD] + 2 * place.chat[HEAD][:20])


def test_tables_left_alone_keep_their_bytes(place: Place) -> None:
    """With the base's tokens nothing moves."""
    tail = "tokenizer_source: base\nonly: ['*.mlp.*']"
    made = place.run(place.linear("base", "chat", tail=tail))
    for name, array in place.base.items():
        if ".mlp." in name:
            np.testing.assert_array_equal(made[name], array + 2 * place.chat[name])
        else:
            assert np.asarray(made[name]).tobytes() == array.tobytes()


def test_a_mapped_model(place: Place) -> None:
    """A text model with tokens of its own goes into the decoder of another, whose tower stays."""
    tower = {f"model.visual.blocks.{i}.norm.weight": np.full(6, i, np.float32) for i in range(3)}
    inner = {key.replace("model.", "model.language_model.", 1): v for key, v in place.base.items()}
    config = llama_config(vocab=20)
    config |= {"architectures": ["Qwen3VLForConditionalGeneration"], "vision_config": {"depth": 3}}
    write_checkpoint(place.folder / "vlm", inner | tower, config)
    kit.folder(place.folder / "vlm", tokenizer__json=kit.words(*WORDS))
    recipe = place.linear("vlm", "chat", tail="tokenizer_source: union").read_text()
    chat = f"- {{model: '{place.folder / 'chat'}',"
    assert chat in recipe
    recipe = recipe.replace(chat, chat + " map: {model.: model.language_model.},")
    made = place.run(place.recipe(recipe))
    assert made.config["vocab_size"] == 21
    table = np.asarray(made["model.language_model.embed_tokens.weight"])
    np.testing.assert_array_equal(table[:20], place.base[EMBED] + 2 * place.chat[EMBED][:20])
    np.testing.assert_array_equal(table[20], 3 * place.chat[EMBED][20])
    for name, array in tower.items():
        assert np.asarray(made[name]).tobytes() == array.tobytes()


@pytest.mark.parametrize("homes", [("0_Transformer", ""), ("", "0_Transformer")])
def test_a_transformer_in_a_folder(tmp_path: Path, homes: tuple[str, str]) -> None:
    """Tokenizers lie beside config.json, in the inputs and in the output."""
    place, parts = Place(tmp_path), {}
    for seed, (name, home) in enumerate(zip(("base", "chat"), homes, strict=True)):
        vocab, added = 20 + seed, MORE if seed else {}
        parts[name] = llama_tensors(seed, vocab=vocab)
        inner = write_checkpoint(tmp_path / name / home, parts[name], llama_config(vocab=vocab))
        kit.folder(inner, tokenizer__json=kit.words(*WORDS, added=added))
        entries = [{"path": home, "type": "x.Transformer"}, {"path": "1", "type": "x.Normalize"}]
        (tmp_path / name / "modules.json").write_text(json.dumps(entries))
    made = place.run(place.linear("base", "chat", tail="tokenizer_source: union"))
    assert made.home == homes[0] and made.config["vocab_size"] == 21
    wanted = parts["base"][EMBED] + 2 * parts["chat"][EMBED][:20]
    np.testing.assert_allclose(np.asarray(made[EMBED])[:20], wanted, rtol=1e-6)
    files = sorted(path.relative_to(place.out).as_posix() for path in place.out.rglob("tok*"))
    assert files == [f"{homes[0]}/tokenizer.json".lstrip("/")]
    assert kit.size_of((place.out / files[0]).read_text()) == 21
