"""A folder in which recipes over tiny models with tokenizers are carried out by the command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenkit as kit
from said import Said

from jmerge.ckpt.open import Checkpoint, open_checkpoint
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Place:
    """The folder, and what it says and holds."""

    said: Said  # of the last merge
    # tensors of models, as fixtures name them
    base: dict[str, np.ndarray]
    chat: dict[str, np.ndarray]
    padded: dict[str, np.ndarray]
    one: dict[str, np.ndarray]
    two: dict[str, np.ndarray]
    three: dict[str, np.ndarray]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0

    def model(
        self,
        name: str,
        text: str | None = None,
        *,
        rows: int | None = None,
        config: Mapping[str, Any] | None = None,
        tensors: Mapping[str, np.ndarray] | None = None,
        files: Mapping[str, Any] | None = None,
        **sizes: Any,
    ) -> dict[str, np.ndarray]:
        """Write a tiny Llama whose tables have as many rows as its tokenizer has tokens, and give its tensors.

        All its numbers are small whole ones, so that means and weighted sums of them are exact.
        """
        seed = sum(map(ord, name))
        vocab = rows or kit.size_of(text or "")
        drawn = llama_tensors(seed, vocab=vocab, **sizes)
        drawn = {key: np.round(16 * value) * 12 for key, value in drawn.items()}
        drawn |= {key: np.asarray(value) for key, value in (tensors or {}).items()}
        drawn = {key: value for key, value in drawn.items() if value.size}
        made = llama_config(vocab=vocab, **sizes) | dict(config or {})
        write_checkpoint(self.folder / name, drawn, made)
        own: dict[str, Any] = {} if text is None else {"tokenizer__json": text}
        kit.folder(self.folder / name, **own, **(files or {}))
        return drawn

    def recipe(self, text: str) -> Path:
        """A recipe file in which `{a}` stands for the folder of model a."""
        path = self.folder / "x.yml"
        for model in self.folder.iterdir():
            text = text.replace("{" + model.name + "}", str(model))
        path.write_text(text)
        return path

    def linear(self, *models: str, tail: str) -> Path:
        """A recipe for the sum of these models times 1, 2, ...; `tail` begins on line 5 + their number."""
        lines = ["merge_method: linear", f"base_model: {{{models[0]}}}"]
        lines += ["parameters: {normalize: false}", "models:"]
        for weight, model in enumerate(models, 1):
            lines.append(f"- {{model: '{{{model}}}', parameters: {{weight: {weight}}}}}")
        return self.recipe("\n".join([*lines, tail, ""]))

    def run(self, recipe: Path, *flags: str) -> Checkpoint:
        """Merge by the command and open what it made."""
        self.made += 1
        out = self.folder / f"out{self.made}"
        said = Said(str(recipe), str(out), "--verbose", *flags)
        assert said.code == 0, said.err
        self.said = said
        return open_checkpoint(out)

    @property
    def out(self) -> Path:
        """The folder that was made last."""
        return self.folder / f"out{self.made}"

    def json(self, name: str) -> Any:
        """A file of it."""
        return json.loads((self.out / name).read_text())

    def table(self) -> list[dict[str, Any]]:
        """Which rows made which token."""
        text = (self.out / "jmerge.tokens.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]
