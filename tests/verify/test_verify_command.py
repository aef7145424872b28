"""`jmerge verify` as a command, what a merge does with it, and folders made to break it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import jmerge
from jmerge.api import publish
from jmerge.ckpt.writer import LEDGER, OutputFolder
from jmerge.cli import main
from jmerge.errors import RunError
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama

NORM = "model.norm.weight"


def recipe(folder: Path) -> Path:
    """A recipe of two models in `folder`."""
    models = "".join(f"- model: {write_llama(folder / n, s)}\n" for s, n in enumerate("ab"))
    path = folder / "x.yml"
    path.write_text(f"merge_method: linear\nmodels:\n{models}parameters: {{weight: 1}}\n")
    return path


def test_a_sound_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_llama(tmp_path, 0)
    assert main(["verify", str(tmp_path), "--deep"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path}: 21 tensors, ") and out.endswith("\n14 checks passed\n")
    assert "nonfinite" in out and "PROBLEM" not in out and "skipped" not in out


def test_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {name: np.full_like(each, np.inf) for name, each in llama_tensors(0).items()}
    write_checkpoint(tmp_path, tensors, llama_config() | {"torch_dtype": "float16"})
    assert main(["verify", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "config.json: the dtype is float16; 100% of the bytes are F32\n" in out
    assert out.endswith("\n12 checks passed, 1 failed\n")
    assert main(["verify", str(tmp_path), "--deep"]) == 1
    out = capsys.readouterr().out
    assert "and 16 more" in out and out.endswith("\n12 checks passed, 2 failed\n")
    assert "model.embed_tokens.weight: 128 of 128 elements are NaN or infinite" in out


def test_what_could_not_be_looked_at_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_llama(tmp_path, 0)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert main(["verify", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("  skipped")]
    assert line.endswith(": no tensor could be read")
    assert all(name in line for name in ("layers", "shapes", "dtypes", "ties", "config"))
    (passed,) = [line for line in out.splitlines() if line.startswith("  passed")]
    assert "layers" not in passed
    assert re.search(r"\n\d checks passed, 1 failed, 8 skipped\n$", out)
    assert main(["verify", str(tmp_path), "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["models"][0]["checks"]
    assert {each["check"] for each in checks if each["skipped"]} > {"layers", "ties"}


def test_a_shard_that_is_gone_skips_what_needs_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path, llama_tensors(0), llama_config(), shard_bytes=2000)
    first = min(tmp_path.glob("model-*.safetensors"))
    first.write_bytes(first.read_bytes()[:100])
    assert main(["verify", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "not every weight file could be read" in out and "no tensor" not in out


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_llama(tmp_path, 0)
    (tmp_path / "adapter.safetensors").write_bytes(b"")
    assert main(["verify", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fine"] is True
    (model,) = found["models"]
    assert (model["tensors"], model["files"], model["fine"]) == (21, 1, True)
    (stale,) = [check for check in model["checks"] if check["findings"]]
    assert stale["check"] == "stale" and stale["findings"][0]["level"] == "warning"
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert main(["verify", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["fine"] is False is found["models"][0]["fine"]
    (finding,) = found["models"][0]["checks"][0]["findings"]
    assert finding["file"] == "model.safetensors" and finding["level"] == "problem"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify"], "needs one folder"),
        (["verify", "a", "b"], "needs one folder"),
        (["verify", "gone"], "not a folder"),
        (["verify", "a", "--deeep"], "did you mean 'deep'"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--help"]) == 0
    assert "--deep" in capsys.readouterr().out


def test_a_merge_of_sound_models_is_found_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(recipe(tmp_path)), str(tmp_path / "out")]) == 0
    assert "warning" not in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "out"), "--deep"]) == 0
    assert "checksums" in capsys.readouterr().out


def test_a_merge_says_what_is_wrong_in_its_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path)
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "x": 16}, unk_token="<unk>"))
    tokenizer.save(str(tmp_path / "a" / "tokenizer.json"))
    assert main([str(path), str(tmp_path / "out")]) == 0
    err = capsys.readouterr().err
    line = f"warning: {tmp_path / 'out' / 'tokenizer.json'}: has token ids up to 16; "
    assert line + "the embedding has 16 rows [JM607]\n" in err


@pytest.mark.parametrize("damage", ["header", "index", "more", "less"])
def test_a_merge_that_was_written_wrong_is_not_published(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same command makes it anew."""
    path = recipe(tmp_path)
    write = publish._write_companions

    def spoil(folder: OutputFolder, *rest: object) -> None:
        write(folder, *rest)  # type: ignore[arg-type]
        first = min(folder.work.glob("*.safetensors"))
        if damage == "header":
            first.write_bytes(first.read_bytes().replace(b"F32", b"F3x"))
        elif damage == "index":
            index = folder.work / "model.safetensors.index.json"
            index.write_text(index.read_text().replace(NORM, "model.norm.other"))
        elif damage == "more":
            (folder.work / "model.safetensors").write_bytes(first.read_bytes())
        else:
            (folder.work / "README.md").unlink()

    monkeypatch.setattr(publish, "_write_companions", spoil)
    with pytest.raises(RunError, match="read-back does not match") as caught:
        jmerge.merge(path, tmp_path / "out", shard_size=2000)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    monkeypatch.setattr(publish, "_write_companions", write)
    merged = jmerge.merge(path, tmp_path / "out", shard_size=2000)
    assert merged.resumed_bytes is not None
    assert main(["verify", str(tmp_path / "out"), "--deep"]) == 0


LEDGERS = [
    "[]", "{}", "null", '{"files": []}', '{"files": {}, "tensors": []}', '{"files": {"a\\nb": 1}, "tensors": {}}',
    '{"files": {"\\u0000": {}}, "tensors": {"x": 3}}', '{"files": {}, "tensors": {"x": {"file": "../../x/y"}}}',
    '{"files": {}, "tensors": {"a/x": {"file": "a/model.safetensors", "crc32": 5}}}',
    '{"files": {}, "tensors": {"x": {"file": "f", "dtype": "F32", "shape": [true, -1, 1e999], "crc32": "00000000"}}}',
]  # fmt: skip


@pytest.mark.parametrize("text", LEDGERS)
def test_ledgers_made_to_break_it(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_llama(tmp_path, 0)
    (tmp_path / LEDGER).write_text(text)
    assert main(["verify", str(tmp_path), "--deep"]) == 1
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


def test_verifying_loads_no_jax(tmp_path: Path) -> None:
    """A check of headers is quick."""
    write_llama(tmp_path, 0)
    code = f"from jmerge.cli import main; main(['verify', {str(tmp_path)!r}, '--deep'])"
    code += "; import sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
