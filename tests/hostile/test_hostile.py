"""Files made to break a reader: each is refused at once, in one line that names it, and takes no memory it claims."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostilekit import (
    INDEX,
    header_file,
    plan_refused,
    refused,
    split_file,
    tokenizer,
    two_models,
    union_recipe,
)

from jmerge.api.merge import merge
from jmerge.ckpt.jsontext import MAX_DEPTH, MAX_NAME
from jmerge.ckpt.open import open_checkpoint
from jmerge.ckpt.safetensors import MAX_AXES
from jmerge.ckpt.source import MAX_WHOLE_BYTES
from jmerge.ckpt.weights import MAX_FILES, MAX_JSON_BYTES
from jmerge.ckpt.writer import LEDGER
from jmerge.recipe.parse import MAX_BYTES
from jmerge.report.inspect import inspect_checkpoint, inspect_text
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama

WEIGHTS = "model.safetensors"


def change_header(name: str, **changes: object) -> Callable[[Path], None]:
    """A damage: the header entry of a tensor with other values."""

    def damage(folder: Path) -> None:
        header, data = split_file(folder / WEIGHTS)
        header[name] = header.get(name, {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
        header[name] |= changes
        header_file(folder / WEIGHTS, header, data)

    return damage


def replace_header(old: str, new: str) -> Callable[[Path], None]:
    """A damage: other text in the header."""

    def damage(folder: Path) -> None:
        header, data = split_file(folder / WEIGHTS)
        text = json.dumps(header)
        assert old in text
        header_file(folder / WEIGHTS, text.replace(old, new).encode("utf-8", "surrogatepass"), data)

    return damage


def put(name: str, text: str | bytes) -> Callable[[Path], None]:
    """A damage: a file with this content."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return damage


def indexed(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    """A damage of the index of a model whose weights have the name of a shard, so that the index is read."""

    def both(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
        damage(folder)

    return both


def put_config(**changes: object) -> Callable[[Path], None]:
    """A damage: config.json with these values."""
    return put(
        "config.json", json.dumps(llama_config(layers=1, hidden=4, inner=4, vocab=8) | changes)
    )


def sparse(name: str, size: int) -> Callable[[Path], None]:
    """A damage: a file of that size, all holes."""

    def damage(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(size)

    return damage


def link(name: str, target: str) -> Callable[[Path], None]:
    """A damage: a link in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return damage


def pipe(name: str) -> Callable[[Path], None]:
    """A damage: a link to a pipe that nobody writes to."""

    def damage(folder: Path) -> None:
        os.mkfifo(folder / "pipe")
        link(name, "pipe")(folder)

    return damage


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


NORM = "model.norm.weight"
DIGITS = "1" + "0" * 4250
LONG = "x" * 300  # letters; no file system has names of so many
# damage, file that the line names, part of what it says
HOSTILE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a million axes": (change_header(NORM, shape=[2**62] * 200_000), WEIGHTS, f"more than {MAX_AXES}"),
    "an empty tensor of huge axes": (change_header("e", shape=[2**62, 2**62, 0]), WEIGHTS, "array"),
    "offsets of thousands of digits": (
        replace_header("[0, 128]", f"[-{DIGITS}, {DIGITS}]"), WEIGHTS, "not a range of bytes"),
    "offsets beyond the file": (change_header("z", shape=[2**40], data_offsets=[0, 2**42]), WEIGHTS, "overlap"),
    "NaN in a header": (replace_header('"pt"', '"pt", "x": NaN'), WEIGHTS, "NaN"),
    "infinity in a header": (replace_header('"pt"', '"pt", "x": -Infinity'), WEIGHTS, "Infinity"),
    "metadata is a number": (replace_header('{"format": "pt"}', "3"), WEIGHTS, "__metadata__"),
    "metadata of numbers": (replace_header('"pt"', "3"), WEIGHTS, "__metadata__"),
    "a name of control characters": (replace_header(NORM, "\\u001b[2Ja\\nb"), WEIGHTS, "printable"),
    "an empty name": (replace_header(NORM, ""), WEIGHTS, "empty"),
    "a name of a book": (replace_header(NORM, "x" * (MAX_NAME + 1)), WEIGHTS, f"1 to {MAX_NAME}"),
    "a tensor twice, the first time at the end": (
        replace_header('"__metadata__"', ",".join(f'"{i}":0' for i in range(50_000)) + f',"{NORM}":0,"__metadata__"'),
        WEIGHTS, "twice"),
    "an index too large": (indexed(sparse(INDEX, MAX_JSON_BYTES + 1)), INDEX, "larger"),
    "an index of far too many files": (
        indexed(put(INDEX, json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(MAX_FILES + 1)}}))),
        INDEX, f"more than {MAX_FILES:,}"),
    "an index with a tensor twice": (
        indexed(put(INDEX, '{"weight_map": {"a": "model.safetensors", "a": "b.safetensors"}}')), INDEX, "twice"),
    "an index with a file name of control characters": (
        indexed(put(INDEX, '{"weight_map": {"a": "b\\u0000.safetensors"}}')), INDEX, "outside"),
    "an index with half a letter": (indexed(put(INDEX, '{"weight_map": {"a": "\\ud800"}}')), INDEX, "outside"),
    "an index with a file name longer than any": (
        indexed(put(INDEX, json.dumps({"weight_map": {"a": LONG}}))), LONG, "too long"),
    "an index that is deep": (indexed(put(INDEX, '{"weight_map": ' + deep(100_000) + "}")), INDEX, "nested"),
    "a config too large": (sparse("config.json", MAX_JSON_BYTES + 1), "config.json", "larger"),
    "a config that is deep": (put_config(x=json.loads(deep(MAX_DEPTH))), "config.json", "nested"),
    "a config that is very deep": (put("config.json", '{"x": ' + deep(100_000) + "}"), "config.json", "nested"),
    "NaN in an index": (indexed(put(INDEX, '{"weight_map": {}, "x": NaN}')), INDEX, "NaN"),
    "half a letter in a config": (put_config(x=["\ud800"]), "config.json", "Unicode"),
    "a config that says two things": (
        put("config.json", '{"vocab_size": 8, "vocab_size": 9}'), "config.json", "twice"),
    "a config with a number without end": (put("config.json", '{"x": ' + "9" * 10_000 + "}"), "config.json", "JSON"),
    "a config that links to itself": (link("config.json", "config.json"), "config.json", "link"),
    "a config that was deleted behind its link": (link("config.json", "../blobs/gone"), "config.json", "../blobs/gone"),
    "weights that link to themselves": (link(WEIGHTS, WEIGHTS), WEIGHTS, "link"),
    "weights behind a link to a pipe": (pipe(WEIGHTS), WEIGHTS, "link"),
    "an index behind a link to a pipe": (pipe(INDEX), INDEX, "link"),
    "an index that links to itself": (link(INDEX, INDEX), INDEX, "link"),
    "weights behind a link to zeros": (link(WEIGHTS, "/dev/zero"), WEIGHTS, "link"),
    "a tokenizer that is deep": (put("tokenizer.json", '{"x": ' + deep(100_000) + "}"), "tokenizer.json", "nested"),
    "NaN in a tokenizer": (put("tokenizer.json", '{"x": NaN}'), "tokenizer.json", "NaN"),
    "a tokenizer that says two things": (put("tokenizer.json", '{"x": 1, "x": 2}'), "tokenizer.json", "twice"),
    "half a letter in a tokenizer": (put("tokenizer.json", '{"x": "\\ud800"}'), "tokenizer.json", "Unicode"),
    "a tokenizer that is a list": (put("tokenizer.json", "[]"), "tokenizer.json", "not a tokenizer"),
    "a tokenizer's config that is deep": (
        put("tokenizer_config.json", '{"x": ' + deep(100_000) + "}"), "tokenizer_config.json", "nested"),
    "an id of thousands of digits": (
        put("tokenizer_config.json", '{"added_tokens_decoder": {"' + "9" * 4096 + '": {"content": "x"}}}'),
        "tokenizer_config.json", "not a map from ids"),
    "special tokens that say two things": (
        put("special_tokens_map.json", '{"x": 1, "x": 2}'), "special_tokens_map.json", "twice"),
    "added tokens with a list for an id": (put("added_tokens.json", '{"x": []}'), "added_tokens.json", "an id"),
    "modules that are deep": (put("modules.json", deep(100_000)), "modules.json", "nested"),
    "modules without end": (
        put("modules.json", json.dumps([{"path": f"{i}_X", "type": "x.Normalize"} for i in range(101)])),
        "modules.json", "more than 100"),
    "a module outside": (put("modules.json", '[{"path": "../good", "type": "x.Dense"}]'), "modules.json", "not in"),
    "a module of control characters": (
        put("modules.json", '[{"path": "a\\u0000", "type": "x.Dense"}]'), "modules.json", "not in"),
    "a module with a name longer than any": (
        put("modules.json", json.dumps([{"path": LONG, "type": "x.Dense"}])), LONG, "too long"),
    "a module twice": (
        put("modules.json", json.dumps([{"path": "", "type": "x.Transformer"}] * 2)), "modules.json", "two modules"),
    "a processor that is deep": (
        put("processor_config.json", '{"x": ' + deep(100_000) + "}"), "processor_config.json", "nested"),
    "a tokenizer too large": (sparse("tokenizer.json", MAX_WHOLE_BYTES + 1), "tokenizer.json", "larger"),
    "a tokenizer that links to itself": (link("tokenizer.json", "tokenizer.json"), "tokenizer.json", "link"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused(case: str, tmp_path: Path) -> None:
    damage, file, message = HOSTILE[case]
    recipe = two_models(tmp_path)
    if "token" in file:
        recipe = union_recipe(tmp_path)
        put("tokenizer.json", tokenizer("a", "b"))(tmp_path / "bad")
    damage(tmp_path / "bad")
    lines = plan_refused(recipe)
    assert lines is not None and len(lines) == 1
    assert str(tmp_path / "bad" / file) in lines[0] and message in lines[0], lines
    assert str(recipe) in lines[0]


# What looks strange and is not: planned all the same.
STRANGE: dict[str, Callable[[Path], None]] = {
    "infinity in a config": put_config(time_step_limit=[0.0, float("inf")]),
    "a config that says one thing twice": put("config.json", '{"vocab_size": 8, "vocab_size": 8}'),
    "a list for a size": put_config(vocab_size=[8], num_hidden_layers={}, architectures={"x": []}),
    "numbers for words": put_config(architectures=3, model_type=4, torch_dtype=5, tie_word_embeddings="x"),
    "nothing for anything": put_config(**dict.fromkeys(llama_config())),
    "lists for everything": put_config(**dict.fromkeys(llama_config(), [[], {}])),
}  # fmt: skip


@pytest.mark.parametrize("case", STRANGE)
def test_values_of_any_type_in_a_config_break_nothing(case: str, tmp_path: Path) -> None:
    recipe = two_models(tmp_path)
    STRANGE[case](tmp_path / "bad")
    lines = plan_refused(recipe)
    assert lines is None or all("allow_conflicts" in line for line in lines)
    STRANGE[case](tmp_path / "good")
    assert plan_refused(recipe) is None


@pytest.mark.parametrize(
    "names",
    [
        ["model.layers.0.w", "model.layers.999999.w"],
        ["model.layers.0.w", "model.layers.999999999999.w"],
        ["layers." + "9" * 1000 + ".w"],
        ["layers.00.w", "layers.01.w", "layers.٣.w"],
        ["{}.0.{}", "a.{}.w", "a.0.w"],
        ["0", "1", "2", "0.0", "..", "."],
        [f"a{i}.0.w" for i in range(2000)],
        [f"layers.{i}.w" for i in range(2000)],
        [f"x{i}.w" for i in range(2000)] + [f"{s}.{i}.w" for s in "ab" for i in range(2)],
    ],
    ids=["gap", "wide gap", "long", "odd digits", "braces", "bare", "stacks", "layers", "modules"],
)
def test_numbers_in_names_are_not_counted_up_to(names: list[str], tmp_path: Path) -> None:
    recipe = two_models(tmp_path)
    entries = {
        name: {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}
        for i, name in enumerate(names)
    }
    for folder in ("bad", "good"):
        header_file(tmp_path / folder / WEIGHTS, entries, bytes(len(names)))
        put_config(num_hidden_layers=2)(tmp_path / folder)
    assert plan_refused(recipe) is None


def many_names(count: int) -> dict[str, tuple[list[str], list[str], dict[str, int]]]:
    """Names of two models and their config, in which everything might be compared with everything."""
    return {
        "layers of alternating kinds": (
            [f"layers.{i}.{'vw'[i % 2]}" for i in range(count)],
            [f"layers.{i}.{'wv'[i % 2]}" for i in range(count)],
            {"num_hidden_layers": count},
        ),
        "layers of as many kinds": (
            [f"layers.{i}.{i}w" for i in range(count)],
            [f"layers.{i}.{i}w" for i in range(count)],
            {"num_hidden_layers": count},
        ),
        "keys of as many stacks": (
            [f"a{i}.0.w" for i in range(count)],
            [f"a{i}.0.w" for i in range(count)],
            {f"num_{i}_layers": 1 for i in range(count)},
        ),
    }


@pytest.mark.parametrize("case", many_names(1))
def test_names_are_not_compared_with_all_others(case: str, tmp_path: Path) -> None:
    *models, config = many_names(3000)[case]
    recipe = two_models(tmp_path)
    for folder, names in zip(("bad", "good"), models, strict=True):
        entries = {
            name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
            for i, name in enumerate(names)
        }
        header_file(tmp_path / folder / WEIGHTS, entries, bytes(4 * len(names)))
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
    lines = plan_refused(recipe)
    if case.startswith("keys"):
        assert lines is not None and len(lines) == 1 and "no model has that many" in lines[0]
        assert str(tmp_path / "bad") in lines[0]


def test_links_out_of_the_folder_are_followed(tmp_path: Path) -> None:
    """So every file of the Hub's cache lies."""
    recipe = two_models(tmp_path)
    (tmp_path / "blobs").mkdir()
    for path in (tmp_path / "bad").iterdir():
        path.rename(tmp_path / "blobs" / path.name)
        path.symlink_to(Path("..", "blobs", path.name))
    assert plan_refused(recipe) is None


def test_one_file_under_two_names_holds_equal_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"a": np.ones(2, np.float32)})
    (tmp_path / WEIGHTS).rename(tmp_path / "model-00001-of-00002.safetensors")
    link("model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors")(tmp_path)
    (note,) = open_checkpoint(tmp_path).notes
    assert "they are equal" in note


def test_a_folder_that_links_to_itself(tmp_path: Path) -> None:
    recipe = two_models(tmp_path)
    for path in (tmp_path / "bad").iterdir():
        path.unlink()
    (tmp_path / "bad").rmdir()
    (tmp_path / "bad").symlink_to("bad")
    lines = plan_refused(recipe)
    assert lines is not None and len(lines) == 1 and "not a folder" in lines[0]


def test_a_recipe_without_end_is_not_read_to_it(tmp_path: Path) -> None:
    lines = plan_refused(Path("/dev/zero"))
    assert lines is not None and "too large for a recipe" in lines[0]
    sparse("recipe.yml", 1000 * MAX_BYTES)(tmp_path)
    lines = plan_refused(tmp_path / "recipe.yml")
    assert lines is not None and "too large for a recipe" in lines[0]


def test_merge_keys_of_a_recipe_do_not_multiply(tmp_path: Path) -> None:
    keys = ", ".join(f"k{i}: 1" for i in range(2000))
    aliases = ", ".join(["*a"] * 2000)
    (tmp_path / "recipe.yml").write_text(f"a: &a {{{keys}}}\nb: {{<<: [{aliases}]}}\n")
    lines = plan_refused(tmp_path / "recipe.yml")
    assert lines is not None and "expand" in lines[0]


def test_a_line_shows_what_a_terminal_would_obey(tmp_path: Path) -> None:
    write_llama(tmp_path / "m\n\x1b[2J", 0)
    (tmp_path / "m\n\x1b[2J" / "config.json").write_text("{")
    lines = refused(lambda: open_checkpoint(tmp_path / "m\n\x1b[2J"))
    assert lines is not None and "m\\n\\x1b[2J" in lines[0]


def test_inspect_shows_what_a_terminal_would_obey(tmp_path: Path) -> None:
    tensors = llama_tensors(0, layers=1) | {"a\u202eb.weight": np.ones(2, np.float32)}
    write_checkpoint(tmp_path, tensors, llama_config(layers=1) | {"architectures": ["X\x1b[2J"]})
    lines = inspect_text(inspect_checkpoint(open_checkpoint(tmp_path))).splitlines()
    assert all(line.isprintable() for line in lines)


def test_a_deep_ledger_in_the_place_of_the_output(tmp_path: Path) -> None:
    recipe = two_models(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LEDGER).write_text(deep(100_000))
    lines = refused(lambda: merge(recipe, tmp_path / "out"))
    assert lines is not None and "not written by jmerge" in lines[0]
