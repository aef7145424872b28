"""The quickstart merges trained models, and the merge is better than each of them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
import yaml

import jmerge

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "configs" / "quickstart"
DOMAINS = ("prose", "code")
RECORD = json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))
CONTEXT = RECORD["context"]
Losses = dict[str, dict[str, float]]  # of each model, nats a token in each domain


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Such small models gain nothing from more, and lose much where tests run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `jmerge configs/quickstart.yml out` makes in the repository's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        out = tmp_path_factory.mktemp("quickstart") / "out"
        yield jmerge.merge("configs/quickstart.yml", out).folder


def load(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer as transformers loads them, with no tensor missing or left over."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def heldout_rows(tokenizer: Any, domain: str) -> torch.Tensor:
    """The excerpts in rows of a context and one; each begins with the last token of the one before."""
    text = (FOLDER / "heldout" / f"{domain}.txt").read_text(encoding="utf-8")
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    return tokens.unfold(0, CONTEXT + 1, CONTEXT)


def heldout_losses(folder: Path) -> dict[str, float]:
    """Nats a token over each domain's excerpts, and the mean of the two."""
    model, tokenizer = load(folder)
    losses = {}
    for domain in DOMAINS:
        total, rows = 0.0, heldout_rows(tokenizer, domain)
        for some in rows.split(16):
            with torch.inference_mode():
                logits = model(some[:, :-1]).logits
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), some[:, 1:].flatten(), reduction="sum"
            ).item()
        losses[domain] = total / rows[:, 1:].numel()
    return losses | {"mean": (losses["prose"] + losses["code"]) / 2}


@pytest.fixture(scope="module")
def losses(merged: Path) -> Losses:
    """The held-out losses of the three models and of the merged one."""
    folders = {name: FOLDER / name for name in ("base", *DOMAINS)} | {"merged": merged}
    return {name: heldout_losses(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_specialist_is_better_than_the_base_at_its_own_kind(
    losses: Losses, domain: str
) -> None:
    assert losses[domain][domain] < losses["base"][domain]


@pytest.mark.parametrize("name", ["base", *DOMAINS])
def test_the_merged_model_is_better_over_both_kinds_than_each_of_the_three(
    losses: Losses, name: str
) -> None:
    assert losses["merged"]["mean"] < losses[name]["mean"]


def test_the_losses_are_those_of_the_training_record(losses: Losses) -> None:
    recipe = yaml.safe_load((ROOT / "configs" / "quickstart.yml").read_text(encoding="utf-8"))
    weights = {model["parameters"]["weight"] for model in recipe["models"]}
    assert len(weights) == 1  # the record knows the merges with both weights equal
    noted = RECORD["heldout_loss"]
    noted["merged"] = noted[f"merged {weights.pop()}"]
    for name, each in losses.items():
        assert each == pytest.approx(noted[name], abs=0.02), name


def test_the_merged_model_writes_text(merged: Path) -> None:
    model, tokenizer = load(merged)
    begun = tokenizer("The statement", return_tensors="pt")
    tokens = model.generate(**begun, max_new_tokens=40, do_sample=False)[0]
    text = tokenizer.decode(tokens)
    assert text.startswith("The statement") and len(text) > 60
    assert tokenizer(text)["input_ids"][:2] == tokens[:2].tolist()


def test_the_merged_tokenizer_gives_any_text_back(merged: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    text = "def naïve(x):\n\treturn  x**2  # ≤ 𝛼 \r\n" + tokenizer.eos_token
    tokens = tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokens) == text
    assert tokens[-1] == tokenizer.eos_token_id == 0


def test_the_models_are_small_and_of_one_tokenizer(merged: Path) -> None:
    folders = [FOLDER / name for name in ("base", *DOMAINS)]
    for folder in folders:
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 2_000_000
    assert len({(folder / "tokenizer.json").read_bytes() for folder in (*folders, merged)}) == 1
    assert sum(file.stat().st_size for file in (FOLDER / "heldout").iterdir()) <= 200_000


def train_demo() -> ModuleType:
    """The tool, which needs what nothing else here does."""
    pytest.importorskip("flax")
    pytest.importorskip("optax")
    spec = importlib.util.spec_from_file_location("train_demo", ROOT / "tools" / "train_demo.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_trained_model_is_the_llama_of_transformers() -> None:
    model, tokenizer = load(FOLDER / "base")
    logits, first = train_demo().build(0)
    tensors = {name: jnp.asarray(value.numpy()) for name, value in model.state_dict().items()}
    del tensors["lm_head.weight"]
    assert {name: x.shape for name, x in tensors.items()} == {n: x.shape for n, x in first.items()}
    assert sum(x.size for x in first.values()) == RECORD["parameters"]
    rows = heldout_rows(tokenizer, "prose")[:4, :-1]
    with torch.inference_mode():
        theirs = model(rows).logits.numpy()
    ours = jax.jit(logits)(tensors, jnp.asarray(rows.numpy(), jnp.int32))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_training_again_gives_the_same_files(tmp_path: Path) -> None:
    train_demo()
    for name in ("one", "two"):
        out = str(tmp_path / name)
        tool = [sys.executable, "tools/train_demo.py", "--steps", "8", "--out", out]
        subprocess.run(tool, check=True, cwd=ROOT)
    files = [x.relative_to(tmp_path / "one") for x in (tmp_path / "one").rglob("*") if x.is_file()]
    assert Path("code/model.safetensors") in files
    for file in files:
        if file.name != "training.json":  # it tells how long it took
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
