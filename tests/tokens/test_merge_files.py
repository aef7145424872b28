"""What a merge with a tokenizer or a chat template leaves beside the weights, and what it says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenkit as kit
from mergeplace import EMBED, Place
from said import Said
from tokenizers import AddedToken, Tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json")
CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def two(place: Place, kind: str = "BPE", more: tuple[str, ...] = ()) -> None:
    """A base trained on English with every companion file, and a French model with a token more."""
    companions: dict[str, Any] = {
        "tokenizer_config__json": CONFIG,
        "special_tokens_map__json": {"bos_token": "<s>"},
        "vocab__json": {"spelled": 0},
        "generation_config__json": {"eos_token_id": 2, "temperature": 0.5},
        "preprocessor_config__json": {"size": 7},
    }
    place.model("base", kit.trained(kind), files=companions)
    french = kit.with_tokens(kit.trained(kind, kit.FRENCH), "<|end|>", *more, special=True)
    own = {"tokenizer_config__json": {**CONFIG, "eos_token": "<|end|>"}}
    place.model("other", french, files=own)


def ids(file: Path | str) -> list[list[int]]:
    """The ids of a fixed corpus."""
    text = file.read_text() if isinstance(file, Path) else file
    tokenizer = Tokenizer.from_str(text)
    return [tokenizer.encode(each).ids for each in kit.TEXTS]


# Tokenising a corpus


@pytest.mark.parametrize("kind", kit.KINDS)
def test_base_mode_keeps_ids_and_bytes(kind: str, place: Place) -> None:
    """Nothing of the tokenizer changes, so no byte of its files does."""
    two(place, kind)
    place.run(place.linear("base", "other", tail="tokenizer_source: base"))
    for name in FILES:
        assert (place.out / name).read_bytes() == (place.folder / "base" / name).read_bytes()
    assert ids(place.out / "tokenizer.json") == ids(kit.trained(kind))
    assert any(line.endswith("byte for byte") for line in place.said.out.splitlines())


@pytest.mark.parametrize("kind", kit.KINDS)
def test_union_mode_has_the_specified_ids(kind: str, place: Place) -> None:
    """Those of a tokenizer that the library makes of the base with the tokens it lacks, ordinary ones first, by id."""
    two(place, kind)
    place.run(place.linear("base", "other", tail="tokenizer_source: union"))
    wanted = Tokenizer.from_str(kit.trained(kind))
    other = Tokenizer.from_str((place.folder / "other" / "tokenizer.json").read_text())
    added = {each.content for each in other.get_added_tokens_decoder().values()}
    ids_of = other.get_vocab()
    lacking = sorted(ids_of.keys() - wanted.get_vocab().keys(), key=ids_of.__getitem__)
    wanted.add_tokens([AddedToken(t, normalized=True) for t in lacking if t not in added])
    wanted.add_special_tokens([AddedToken(t, normalized=False) for t in lacking if t in added])
    assert ids(place.out / "tokenizer.json") == ids(wanted.to_str())
    found = Tokenizer.from_str((place.out / "tokenizer.json").read_text())
    assert found.get_vocab() == wanted.get_vocab()
    document = json.loads((place.out / "tokenizer.json").read_text())
    before = json.loads(kit.trained(kind))
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model"):
        assert document[part] == before[part]


def test_bpe_mode_unites_merges(place: Place) -> None:
    """The base's merges, then those of the other; French words are tokens of one piece, English ones as before."""
    two(place)
    tail = "tokenizer: {source: union, union_mode: bpe}"
    place.run(place.linear("base", "other", tail=tail))
    base, french = json.loads(kit.trained("BPE")), json.loads(kit.trained("BPE", kit.FRENCH))
    vocab = dict(base["model"]["vocab"])
    ordered = sorted(french["model"]["vocab"], key=french["model"]["vocab"].__getitem__)
    for token in ordered:
        vocab.setdefault(token, len(vocab))
    merges = [list(merge) for merge in base["model"]["merges"]]
    merges += [m for m in map(list, french["model"]["merges"]) if m not in merges]
    wanted = {**base, "model": {**base["model"], "vocab": vocab, "merges": merges}}
    made = Tokenizer.from_str(json.dumps(wanted))
    made.add_special_tokens([AddedToken("<|end|>", normalized=False)])
    assert ids(place.out / "tokenizer.json") == ids(made.to_str())
    found = Tokenizer.from_str((place.out / "tokenizer.json").read_text())
    assert len(found.encode("bonjour").tokens) < len(
        Tokenizer.from_str(kit.trained("BPE")).encode("bonjour").tokens
    )
    for text in kit.TEXTS:
        assert found.decode(found.encode(text).ids).strip() == text.strip()


# Files


def test_files_that_are_no_longer_true_go(place: Place) -> None:
    """`vocab.json` says what tokenizer.json said; what is not of the tokenizer comes along as it is."""
    two(place)
    place.run(place.linear("base", "other", tail="tokenizer: {source: union, union_mode: bpe}"))
    names = {path.name for path in place.out.iterdir()}
    assert names == {
        "README.md", "config.json", "generation_config.json", "jmerge.lock.json", "jmerge.tokens.jsonl",
        "mergekit_config.yml", "model.safetensors", "preprocessor_config.json", "special_tokens_map.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    for name in ("generation_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        assert (place.out / name).read_bytes() == (place.folder / "base" / name).read_bytes()
    assert "files of" in place.said.out and "left out" in place.said.out


def test_the_tokenizer_of_another_model(place: Place) -> None:
    """Its files, and its special tokens in config.json and generation_config.json; the rest is the base's."""
    two(place, more=("<|x|>",))
    made = place.run(place.linear("base", "other", tail="tokenizer: {source: '{other}'}"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (place.out / name).read_bytes() == (place.folder / "other" / name).read_bytes()
    assert not (place.out / "special_tokens_map.json").exists()
    other = kit.read(place.folder / "other").vocabulary.ids
    end = other["<|end|>"]
    assert end == made.config["eos_token_id"] and made.config["bos_token_id"] == other["<s>"]
    assert place.json("generation_config.json") == {"eos_token_id": end, "temperature": 0.5}
    assert place.json("preprocessor_config.json") == {"size": 7}
    changes = {
        (each["file"], each["key"]): each["new"]
        for each in place.json("jmerge.lock.json")["config"]
    }
    assert changes == {
        ("config.json", "vocab_size"): len(other),
        ("config.json", "eos_token_id"): end,
        ("generation_config.json", "eos_token_id"): end,
    }


def test_no_key_copies_files(place: Place) -> None:
    """As before: byte for byte, unread."""
    place.model("base", "no tokenizer at all", rows=4)
    place.model("other", rows=4)
    place.run(place.linear("base", "other", tail=""))
    assert (place.out / "tokenizer.json").read_bytes() == b"no tokenizer at all"
    assert place.json("jmerge.lock.json")["tokens"] == []
    assert not (place.out / "jmerge.tokens.jsonl").exists()


def test_a_method_that_makes_several_models(place: Place) -> None:
    """Each has the tokenizer and the template, and there is one table."""
    two(place)
    recipe = place.recipe(
        "merge_method: emr\nbase_model: {base}\nmodels: [{model: '{base}'}, {model: '{other}'}]\n"
        "tokenizer_source: union\nchat_template: chatml\n"
    )
    out = place.folder / "out"
    assert Said(str(recipe), str(out)).code == 0
    folders = [path for path in out.iterdir() if path.is_dir()]
    assert folders and (out / "jmerge.tokens.jsonl").exists()
    for folder in folders:
        assert json.loads((folder / "config.json").read_text())["vocab_size"] > 320
        assert (folder / "tokenizer.json").exists() and (folder / "chat_template.jinja").exists()


# What is said


def test_every_token_is_told(place: Place) -> None:
    """In a table, a line for each row; the ledger and the terminal have a summary, a dry run as well."""
    two(place)
    recipe = place.linear(
        "base", "other", tail="tokenizer: {source: union, pad_to_multiple_of: 64}"
    )
    made = place.run(recipe)
    lines = place.table()
    assert [line["id"] for line in lines] == list(range(made.config["vocab_size"]))
    vocabulary = Tokenizer.from_str((place.out / "tokenizer.json").read_text()).get_vocab()
    assert {line["token"]: line["id"] for line in lines if line["token"]} == vocabulary
    padding = [line for line in lines if line["token"] is None]
    assert padding and all(line["fill"] == "mean of all tokens" for line in padding)
    base, other = str(place.folder / "base"), str(place.folder / "other")
    by_token = {line["token"]: line for line in lines}
    assert by_token["<s>"]["rows"] == {base: 1, other: 1}
    assert by_token["<|end|>"]["fill"][0][0] == other and other in by_token["<|end|>"]["rows"]
    ledger = place.json("jmerge.lock.json")
    assert ledger["tokens"][0].startswith(f"{len(vocabulary)} tokens in {len(lines)} rows; ")
    assert ledger["files"]["jmerge.tokens.jsonl"] > 0
    for line in ledger["tokens"]:
        assert f" {line}\n" in place.said.out
    planned = Said("plan", str(recipe))
    assert planned.code == 0
    for line in ledger["tokens"]:
        assert f" {line}\n" in planned.out
    assert f"vocab_size: 320 -> {len(lines)}" in planned.out
    assert f"{EMBED}" in planned.out and "  A* B*  " in planned.out
    plan = json.loads(Said("plan", str(recipe), "--json").out)["plan"]
    assert plan["tokens"]["summary"] == ledger["tokens"]
    (rows,) = plan["maps"]
    assert rows["rows"] == len(lines) and rows["own"][0] == [[0, 0, 320]]


def test_ghost_tokens_are_told(place: Place) -> None:
    """Tokens beyond the table are no tokens of the output, and gone from its files."""
    text = kit.with_tokens(kit.words("a", "b"), "<ghost>")
    place.model("base", text, rows=2, files={"added_tokens__json": {"<ghost>": 2}})
    place.model("other", kit.words("b", "c"))
    place.run(place.linear("base", "other", tail="tokenizer_source: union"))
    assert any(
        "left out for higher ids: the token '<ghost>'" in line for line in place.said.warnings
    )
    assert Tokenizer.from_str((place.out / "tokenizer.json").read_text()).get_vocab() == {
        "a": 0,
        "b": 1,
        "c": 2,
    }
    assert "<ghost>" not in place.json("added_tokens.json")


def test_a_model_without_a_tokenizer_has_the_base_s(place: Place) -> None:
    two(place)
    place.model("mute", rows=320)
    place.run(place.linear("base", "mute", tail="tokenizer_source: union"))
    assert any(
        "mute' has no tokenizer; its rows are assumed" in line for line in place.said.warnings
    )
    assert ids(place.out / "tokenizer.json") == ids(kit.trained("BPE"))


# Chat templates


def test_a_built_in_template(place: Place) -> None:
    """In the file of its own and in tokenizer_config.json; all else stays, and generation_config.json comes along."""
    two(place)
    place.model("twin", kit.trained("BPE"))
    place.run(place.linear("base", "twin", tail="chat_template: chatml"))
    text = (place.out / "chat_template.jinja").read_text()
    assert "<|im_start|>" in text
    assert place.json("tokenizer_config.json") == {**CONFIG, "chat_template": text}
    for name in ("tokenizer.json", "generation_config.json", "vocab.json"):
        assert (place.out / name).read_bytes() == (place.folder / "base" / name).read_bytes()
    (line,) = [each for each in place.said.warnings if "for which" in each]
    assert (
        "x.yml:7: chat_template: writes <|im_start|>, <|im_end|>, for which the output has" in line
    )
    assert "chat template: the built-in chatml" in place.said.out
    assert place.json("jmerge.lock.json")["tokens"] == ["chat template: the built-in chatml"]
    assert not (place.out / "jmerge.tokens.jsonl").exists()


def test_a_template_in_the_recipe(place: Place) -> None:
    """However long, however short."""
    place.model("base", kit.words("a", "b"))
    long = "{% for m in messages %}{{ m.content }}{% endfor %}" + "x" * 300
    for text in (long, "{{ messages }}"):
        place.run(place.linear("base", tail=f"chat_template: '{text}'"))
        assert (place.out / "chat_template.jinja").read_text() == text
    assert any("very short for a chat template" in line for line in place.said.warnings)


def test_the_template_of_most_models(place: Place) -> None:
    """auto: that of two models against the base's; that of the base's own where none is more frequent."""
    often, base = "{{ messages[0].content }} often", "{{ messages[0].content }} base"
    for name, template in {"base": base, "one": often, "two": often, "none": None}.items():
        files = {"chat_template__jinja": template} if template else {}
        place.model(name, kit.words("a", "b"), files=files)
    place.run(place.linear("base", "one", "two", "none", tail="chat_template: auto"))
    assert (place.out / "chat_template.jinja").read_text() == often
    place.run(place.linear("base", "one", "none", tail="chat_template: auto"))
    assert (place.out / "chat_template.jinja").read_text() == base
    place.run(place.linear("none", tail="chat_template: auto"))
    assert not (place.out / "chat_template.jinja").exists()
    assert any("no model has a chat template" in line for line in place.said.warnings)


def test_template_and_tokenizer(place: Place) -> None:
    """The template goes into the files of the model whose tokens the output has."""
    two(place)
    tail = "tokenizer: {source: '{other}'}\nchat_template: llama3"
    place.run(place.linear("base", "other", tail=tail))
    text = (place.out / "chat_template.jinja").read_text()
    assert "<|eot_id|>" in text
    config = place.json("tokenizer_config.json")
    assert config["chat_template"] == text and config["eos_token"] == "<|end|>"


def test_other_templates_are_told_without_a_key(place: Place) -> None:
    """The output has one of them, which the other models were not taught."""
    words = kit.words(*"abc")
    place.model("one", words, files={"chat_template__jinja": "{{ messages[0].content }}\n"})
    place.model("two", words, files={"chat_template__jinja": "{{ messages[0].content }}"})
    place.model("three", words, files={"chat_template__jinja": "{{ messages }}, please"})
    place.model("plain", words)
    place.run(place.linear("one", "two", "plain", tail=""))
    assert not place.said.warnings
    place.run(place.linear("one", "three", tail=""))
    (line,) = place.said.warnings
    assert "x.yml:6: models[1].model: the output has the chat template of " in line
    assert "/one; another comes with " in line and "'chat_template: auto' takes" in line
    place.run(place.linear("plain", "one", "two", tail="tokenizer_source: union"))
    (line,) = place.said.warnings
    assert "x.yml:6: " in line and "/one, " in line and "/two (" in line
    assert "/plain has none; one comes with " in line
    place.run(place.linear("plain", "one", "two", tail="chat_template: auto"))
    assert not place.said.warnings


def test_special_tokens_that_others_use_are_told(place: Place) -> None:
    """A fine-tune that ends its turns otherwise: told by the token, as the id may be another in the output."""
    ends = kit.trained("BPE", kit.FRENCH)
    place.model("base", kit.trained("BPE"), config={"eos_token_id": 2, "pad_token_id": None})
    place.model("same", kit.words("</s>", "<s>"), config={"eos_token_id": 0, "bos_token_id": 1})
    own = {"eos_token_id": 319, "bos_token_id": 1, "pad_token_id": 319}
    files = {"generation_config__json": {"eos_token_id": [319, 2]}}
    place.model("chat", kit.with_tokens(ends, "<|end|>", special=True), config=own, files=files)
    (place.folder / "base" / "generation_config.json").write_text('{"eos_token_id": 2}')
    recipe = place.linear("base", "same", "chat", tail="tokenizer_source: union")
    place.run(recipe)
    lines = [each for each in place.said.warnings if "special tokens" in each]
    (line,) = (each.partition("x.yml:")[2] for each in lines)
    assert line.replace(f"{place.folder}/", "") == (
        "7: models[2].model: its special tokens differ from those of base, which the output has: "
        "eos_token_id <|end|> (output: </s>), "
        "in generation_config.json eos_token_id ['<|end|>', '</s>'] (output: </s>)"
    )
    place.run(place.linear("base", "same", "chat", tail="tokenizer_source: base"))
    assert any("eos_token_id 319 (output: </s>)" in each for each in place.said.warnings)
    place.run(place.linear("base", "chat", tail=f"tokenizer_source: {place.folder / 'chat'}"))
    assert not any("special tokens" in each for each in place.said.warnings)


def test_companions_that_hold_something_else(place: Place) -> None:
    """Values of another kind than their keys have say nothing, as to loaders."""
    words = kit.words(*"abc")
    config = {"additional_special_tokens": 3, "eos_token": 5, "chat_template": ["{{ messages }}"]}
    place.model("odd", words, files={"tokenizer_config__json": config})
    place.model("more", kit.words(*"abcd"))
    place.run(place.linear("odd", "more", tail="tokenizer_source: union\nchat_template: chatml"))
    made = place.json("tokenizer_config.json")
    assert made["additional_special_tokens"] == 3 and made["eos_token"] == 5
    assert [each["name"] for each in made["chat_template"]] == ["default"]
