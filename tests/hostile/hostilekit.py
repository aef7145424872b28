"""Valid tiny models to damage, the planner to show them to, and what it may do then."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import jmerge
from jmerge.errors import JmergeError
from jmerge.testing.tiny import write_llama

INDEX = "model.safetensors.index.json"
MAX_SECONDS = 20.0  # a plan of such models takes a hundredth of a second, here beside other tests
MAX_BYTES = 100_000_000  # what a plan of them may allocate; most of it is the reader's own


def header_file(path: Path, header: Any, data: bytes = b"") -> None:
    """A safetensors file with this header, JSON or any bytes, and this data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def split_file(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def two_models(folder: Path) -> Path:
    """Two tiny models, `good` and `bad`, and a recipe that averages them, whose path comes back."""
    for seed, name in enumerate(("good", "bad")):
        write_llama(folder / name, seed, layers=1, hidden=4, inner=4, vocab=8)
    recipe = folder / "recipe.yml"
    models = "".join(f"  - model: {folder / name}\n" for name in ("bad", "good"))
    recipe.write_text(
        f"merge_method: linear\nmodels:\n{models}parameters:\n  weight: 0.5\ndtype: float32\n"
    )
    return recipe


def tokenizer(*words: str) -> str:
    """The tokenizer.json of these words, the first of which stands for all others, and a token `<s>` after them."""
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    made.add_special_tokens(["<s>"])
    return str(made.to_str())


def union_recipe(folder: Path) -> Path:
    """Of `two_models`: a recipe that unites their tokens, once they have a tokenizer; its path comes back."""
    (folder / "good" / "tokenizer.json").write_text(tokenizer("a", "b", "c"))
    recipe = folder / "union.yml"
    text = (folder / "recipe.yml").read_text()
    recipe.write_text(f"base_model: {folder / 'bad'}\ntokenizer_source: union\n{text}")
    return recipe


def refused(act: Callable[[], Any]) -> list[str] | None:
    """The lines with which `act` refuses, or None when it does not.

    Fails when it takes long, takes much memory, raises anything that is no JmergeError, or has a line that is not one.
    """
    began = time.perf_counter()
    tracemalloc.start()
    try:
        act()
        lines = None
    except JmergeError as error:
        lines = [str(problem) for problem in error.problems]
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.perf_counter() - began < MAX_SECONDS
    assert peak < MAX_BYTES
    if lines is not None:
        assert lines, "an error without a problem"
        for line in lines:
            assert line.isprintable(), line
            assert len(line) < 10_000
    return lines


def plan_refused(recipe: Path) -> list[str] | None:
    """`refused` of planning a recipe and showing the plan."""
    return refused(lambda: jmerge.plan(recipe).to_json())
