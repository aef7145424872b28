"""`jmerge diff` as a command: tables, JSON, exit codes, mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jmerge.ckpt.open import open_checkpoint
from jmerge.cli import main
from jmerge.diff.compare import compare
from jmerge.report.diff import cosine, diff_text, percent
from jmerge.report.diff_json import diff_json
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama

UP = "model.layers.1.mlp.up_proj.weight"


def two(folder: Path, layers: int = 2) -> tuple[str, str]:
    """Two models of which little differs: a tensor by much, one by little, one that is gone, a field of config.json."""
    a, b = llama_tensors(0, layers=layers), llama_tensors(0, layers=layers)
    b[UP] = b[UP].copy()
    b[UP][2, 5] += 4
    b["model.norm.weight"] = b["model.norm.weight"] * np.float32(1.001)
    del b["model.layers.0.self_attn.k_proj.weight"]
    b["lm_head.weight"] = b["lm_head.weight"][:15]
    config = llama_config(layers=layers)
    write_checkpoint(folder / "a", a, config)
    write_checkpoint(folder / "b", b, config | {"time_limit": float("inf")})
    return str(folder / "a"), str(folder / "b")


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(["diff", *two(tmp_path)], capsys)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines()[2:])) <= 80
    lines = out.splitlines()
    assert lines[0] == f"A  {tmp_path / 'a'}: 21 tensors, 5.02 kB"
    assert "19 tensors in both" in lines[2] and "17 of them identical" in lines[2]
    most = next(i for i, line in enumerate(lines) if line.startswith("most changed"))
    rows = [line for line in lines[most:] if "mlp.up_proj" in line or "model.norm" in line]
    assert "mlp.up_proj" in rows[0] and rows[0].endswith("+4 at [2,5]")
    assert "0.100 %" in rows[1] and len(rows) == 2
    for title in ("by part", "by layer of model.layers", "1 tensor only in A", "config.json"):
        assert title in out
    assert "lm_head.weight: shape [16, 8] in A, [15, 8] in B" in out
    assert "time_limit: not there -> Infinity" in out
    assert "only in B" not in out


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["diff", *two(tmp_path), "--json"], capsys)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    found = json.loads(out, parse_constant=refuse)
    assert code == 0
    assert list(found) == [
        *("a", "b", "identical_weights", "problems", "total", "parts", "layers", "tensors"),
        *("not_compared", "only_in_a", "only_in_b", "config", "files", "tokens"),
    ]
    assert found["identical_weights"] is False and found["problems"] == []
    by_name = {each["name"]: each for each in found["tensors"]}
    assert len(by_name) == 19
    assert list(by_name[UP]) == [
        *("name", "name_a", "name_b", "stack", "layer", "module", "part", "shape"),
        *("dtype_a", "dtype_b", "elements", "changed", "identical", "norm_a", "norm_b"),
        *("norm_change", "relative_change", "cosine", "sign_agreement"),
        *("nonfinite_a", "nonfinite_b", "largest_change"),
    ]
    assert by_name[UP]["changed"] == 1 and by_name[UP]["layer"] == 1
    largest = by_name[UP]["largest_change"]
    assert largest["index"] == [2, 5] and largest["change"] == pytest.approx(4, rel=1e-6)
    assert largest["b"] - largest["a"] == largest["change"]
    assert by_name["model.embed_tokens.weight"]["largest_change"] is None
    assert found["layers"]["model.layers"][1]["parts"]["mlp"]["changed"] == 1
    assert found["parts"]["mlp"]["relative_change"] == found["parts"]["mlp"]["norm_change"] / found["parts"]["mlp"]["norm_a"]  # fmt: skip
    assert [each["name"] for each in found["only_in_a"]] == ["model.layers.0.self_attn.k_proj.weight"]  # fmt: skip
    (unlike,) = found["not_compared"]
    assert unlike["a"]["shape"] == [16, 8] and unlike["b"]["shape"] == [15, 8]
    assert found["config"] == {"time_limit": {"b": "inf"}}


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    a, b = (open_checkpoint(path) for path in two(tmp_path))
    assert diff_json(compare(a, b)) == diff_json(compare(a, b))


def test_equal_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_llama(tmp_path / "a", 0))
    code, out, _ = run(["diff", path, path], capsys)
    assert code == 0 and out.endswith("every byte the same\n")
    code, out, _ = run(["diff", path, path, "--json"], capsys)
    assert code == 0 and json.loads(out)["identical_weights"] is True


def test_undefined_numbers_are_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = llama_tensors(0), llama_tensors(0)
    a["model.norm.weight"] = np.zeros_like(a["model.norm.weight"])
    a["scalar"] = b["scalar"] = np.asarray(2, np.float32)
    a["empty"] = b["empty"] = np.zeros((0, 3), np.float32)
    write_checkpoint(tmp_path / "a", {k: np.asarray(v) for k, v in a.items()}, llama_config())
    write_checkpoint(tmp_path / "b", {k: np.asarray(v) for k, v in b.items()}, llama_config())
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    code, out, _ = run(["diff", *paths, "--json"], capsys)
    by_name = {each["name"]: each for each in json.loads(out)["tensors"]}
    assert code == 0
    one = by_name["model.norm.weight"]
    assert one["cosine"] is one["relative_change"] is one["sign_agreement"] is None
    assert by_name["scalar"]["cosine"] == 1 and by_name["scalar"]["shape"] == []
    assert by_name["empty"]["cosine"] is None and by_name["empty"]["identical"] is True
    code, out, _ = run(["diff", *paths], capsys)
    assert code == 0 and "NaN" not in out and "nan" not in out
    row = next(line for line in out.splitlines() if "model.norm.weight" in line)
    assert row.split()[1:4] == ["-", "-", "-"]


def test_numbers_beyond_float64_are_null(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("a", 1.7e308), ("b", -1.7e308)):
        write_checkpoint(tmp_path / name, {"x.weight": np.full(3, value)}, {})
    code, out, _ = run(["diff", str(tmp_path / "a"), str(tmp_path / "b"), "--json"], capsys)
    (one,) = json.loads(out)["tensors"]
    assert code == 0 and one["changed"] == 3 and one["sign_agreement"] == 0
    assert one["norm_a"] is one["cosine"] is one["largest_change"]["change"] is None


def test_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_llama(tmp_path / "a", 0)
    tensors = llama_tensors(1)
    tensors["model.norm.weight"][0] = np.nan
    write_checkpoint(tmp_path / "b", tensors, llama_config())
    write_checkpoint(tmp_path / "c", {"other": np.ones(3, np.float32)}, {})
    a, b, c = (str(tmp_path / name) for name in "abc")
    code, out, _ = run(["diff", a, b], capsys)
    assert code == 1
    assert f"PROBLEM: {b}: model.norm.weight: 1 of 8 elements are NaN or infinite [JM126]\n" in out
    code, out, _ = run(["diff", b, a, "--json"], capsys)
    found = json.loads(out)
    assert code == 1 and len(found["problems"]) == 1 and found["total"]["nonfinite_a"] == 1
    code, out, _ = run(["diff", a, c], capsys)
    assert code == 1 and "PROBLEM: A and B have no tensor in common" in out
    code, out, _ = run(["diff", a, c, "--json"], capsys)
    assert code == 1 and json.loads(out)["tensors"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["diff"], "needs two models"),
        (["diff", "a"], "needs two models"),
        (["diff", "a", "b", "c"], "needs two models"),
        (["diff", "gone", "gone"], "not a folder"),
        (["diff", "a", "b", "--htm=x"], "did you mean 'html'"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(words, capsys)
    assert code == 2 and message in err and len(err.splitlines()) == 1


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["diff", "--help"], capsys)
    assert code == 0 and "--html" in out
    assert "jmerge diff A B" in run(["--help"], capsys)[1]


def test_many_lines_are_cut(tmp_path: Path) -> None:
    """Tables of large models stay short, and say how much they leave out."""
    write_llama(tmp_path / "a", 0, layers=4)
    write_llama(tmp_path / "b", 1, layers=12)
    a, b = (open_checkpoint(tmp_path / name) for name in "ab")
    text = diff_text(compare(a, b))
    assert "(of 39; --json has all)" in text
    assert "72 tensors only in B" in text and "  and 1 more" in text
    assert "model.layers.{}.mlp.up_proj.weight: F32[12, 8]  (8, layers 4-11)" in text
    wide = diff_text(compare(a, b), 140)
    assert max(map(len, wide.splitlines())) > 80


def test_two_stacks(tmp_path: Path) -> None:
    """Tables name tensors in full, and each stack has layers of its own."""
    for seed, name in enumerate("ab"):
        rng = np.random.default_rng(seed)
        tensors = {
            f"{side}.block.{i}.layer.0.SelfAttention.q.weight": rng.standard_normal((4, 4), "f4")
            for side in ("encoder", "decoder")
            for i in range(3)
        }
        config: dict[str, Any] = {"num_layers": 3, "num_decoder_layers": 3}
        write_checkpoint(tmp_path / name, tensors, config)
    found = compare(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b"))
    text = diff_text(found, 120)
    assert "by layer of encoder.block" in text and "by layer of decoder.block" in text
    assert "encoder.block.0.layer.0.SelfAttention.q.weight" in text


def test_names_that_a_terminal_would_obey(tmp_path: Path) -> None:
    name = "x[bold]\u202e.weight"
    for seed, folder in enumerate("ab"):
        write_checkpoint(tmp_path / folder, {name: np.full(2, seed + 1, np.float32)}, {})
    text = diff_text(compare(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")))
    assert "x[bold]\\u202e.weight" in text
    assert all(line.isprintable() for line in text.splitlines())


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (None, "-"), (0, "0 %"), (1, "100 %"), (0.5, "50.0 %"), (0.0999996, "10.0 %"), (0.012345, "1.23 %"),
        (0.9999999, "99.999 %"), (0.00001234, "0.0012 %"), (1e-9, "1.0e-07 %"), (23.4, "2340 %"), (1e9, "1.0e+11 %"),
    ],
)  # fmt: skip
def test_shares(share: float | None, shown: str) -> None:
    assert percent(share) == shown


def test_cosines() -> None:
    assert [cosine(each) for each in (None, 1.0, 1 - 1e-12, -0.5)] == [
        "-", "1", "0.999999", "-0.500000",
    ]  # fmt: skip


def test_comparing_loads_no_jax(tmp_path: Path) -> None:
    words = ["diff", *two(tmp_path)]
    code = f"from jmerge.cli import main; main({words!r}); import sys"
    code += "; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
