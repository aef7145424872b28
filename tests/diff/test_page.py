"""The page of `jmerge diff --html`: whole in itself, with the data in its charts, whatever names the tensors have."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jmerge.ckpt.open import open_checkpoint
from jmerge.cli import main
from jmerge.diff.compare import Difference, compare
from jmerge.report.page import page
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama

HOSTILE = "</script><script>alert(1)</script><img src=http://x.y onerror=alert(2)>"


class Page(HTMLParser):
    """Tags with their attributes, text outside scripts, and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside and data.strip():
            self.text.append(data.strip())

    @property
    def figures(self) -> dict[str, Any]:
        """The data of every chart by the name of its element."""
        found = {}
        for script in self.scripts:
            if start := re.search(r'Plotly\.newPlot\(\s*"([^"]+)",\s*', script):
                data, _ = json.JSONDecoder().raw_decode(script[start.end() :])
                found[start[1]] = data[0]
        return found


def compared(folder: Path, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> Difference:
    return compare(
        open_checkpoint(write_checkpoint(folder / "a", a, llama_config(layers=3))),
        open_checkpoint(write_checkpoint(folder / "b", b, llama_config(layers=3))),
    )


def check_alone(found: Page) -> None:
    """Nothing is loaded from anywhere, and no script is there but those of the page."""
    loading = {"src", "href", "srcset", "data", "poster", "action", "background"}
    for tag, attributes in found.tags:
        assert not loading & attributes.keys(), tag
        assert not any(name.startswith("on") for name in attributes), tag
    assert {tag for tag, _ in found.tags} <= {
        *("html", "head", "meta", "title", "style", "script", "body", "main", "h1", "h2", "h3", "p"),
        *("div", "span", "b", "table", "tr", "th", "td", "ul", "li", "code", "footer"),
    }  # fmt: skip


def test_page(tmp_path: Path) -> None:
    a, b = llama_tensors(0, layers=3), llama_tensors(1, layers=3)
    b["model.layers.1.mlp.up_proj.weight"] = a["model.layers.1.mlp.up_proj.weight"]
    del b["model.layers.2.self_attn.k_proj.weight"]
    difference = compared(tmp_path, a, b)
    text = page(difference)
    assert text == page(difference)
    found = Page(text)
    check_alone(found)
    assert re.search(r"@import|url\(", text.partition("<script>")[0]) is None
    figures = found.figures
    assert set(figures) == {"stack0-change", "stack0-cosine", "stack0-signs"}
    chart = figures["stack0-change"]
    assert chart["x"] == [0, 1, 2]
    assert chart["y"][0] == "whole layer" and "mlp.up_proj" in chart["y"] and len(chart["y"]) == 10
    sums = {each.pair.name: each.sums for each in difference.tensors}
    for row, name in enumerate(chart["y"][1:], 1):
        for layer in range(3):
            whole = f"model.layers.{layer}.{name}.weight"
            if whole in sums:
                assert chart["z"][row][layer] == pytest.approx(sums[whole].relative, rel=1e-12)
                assert whole in chart["customdata"][row][layer]
                assert figures["stack0-cosine"]["z"][row][layer] == sums[whole].cosine
            else:
                assert chart["z"][row][layer] is None
                assert "not there" in chart["customdata"][row][layer]
    words = " ".join(found.text)
    for each in ("How B differs from A", str(tmp_path / "a"), "relative change", "Only in A"):
        assert each in words
    assert "model.layers.2.self_attn.k_proj.weight: F32[4, 8]" in words
    assert "Faults" not in words and "Only in B" not in words


def test_equal_models_and_models_with_nothing_in_common(tmp_path: Path) -> None:
    a = llama_tensors(0, layers=3)
    found = Page(page(compared(tmp_path / "1", a, a)))
    check_alone(found)
    assert "Most changed tensors" not in found.text
    assert {value for row in found.figures["stack0-change"]["z"] for value in row} == {0}
    found = Page(page(compared(tmp_path / "2", a, {"other": np.ones(2, np.float32)})))
    check_alone(found)
    assert found.figures == {} and "Faults" in found.text


def test_experts_share_a_row(tmp_path: Path) -> None:
    tensors = llama_tensors(0, layers=3)
    for i in range(3):
        for j in range(4):
            tensors[f"model.layers.{i}.mlp.experts.{j}.up.weight"] = np.full((2, 2), 1.0 + j, "f4")
    other = {name: 2 * each if "experts" in name else each for name, each in tensors.items()}
    chart = Page(page(compared(tmp_path, tensors, other))).figures["stack0-change"]
    row = chart["y"].index("mlp.experts.*.up")
    assert chart["z"][row] == [1.0, 1.0, 1.0]
    assert "4 tensors" in chart["customdata"][row][0]


def test_one_tensor_far_from_all_others(tmp_path: Path) -> None:
    """The colours are for the others, and the scale says that there is more."""
    a = llama_tensors(0, layers=3)
    a |= {f"model.layers.{i}.x{j}.weight": np.ones(4, "f4") for i in range(3) for j in range(30)}
    b = {name: each * np.float32(1.01) for name, each in a.items()}
    b["model.layers.1.x3.weight"] = a["model.layers.1.x3.weight"] * 50
    chart = Page(page(compared(tmp_path, a, b))).figures["stack0-change"]
    assert chart["zmin"] == 0 and chart["zmax"] == pytest.approx(0.01, rel=0.2)
    assert chart["colorbar"]["ticktext"][-1].startswith("≥ ")


def test_names_made_to_break_the_page(tmp_path: Path) -> None:
    tensors = {f"m.layers.{i}.{HOSTILE}.weight": np.ones(2, np.float32) for i in range(3)}
    tensors[HOSTILE] = np.ones(2, np.float32)
    other = {name: each * (2 + i) for i, (name, each) in enumerate(tensors.items())}
    other |= {"b" + HOSTILE: np.ones(3, np.float32)}
    difference = compared(tmp_path, tensors, other)
    (tmp_path / "b" / "config.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    difference = compare(difference.a, open_checkpoint(tmp_path / "b"))
    found = Page(page(difference))
    check_alone(found)
    assert len([tag for tag, _ in found.tags if tag == "script"]) == 1 + 3
    chart = found.figures["stack0-change"]
    assert all("<img" not in text for row in chart["customdata"] for text in row)
    assert all("<" not in text for text in chart["y"])
    assert any(HOSTILE in text for text in found.text)


def test_the_command_makes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (str(write_llama(tmp_path / name, seed)) for seed, name in enumerate("ab"))
    path = tmp_path / "x.html"
    assert main(["diff", a, b, "--html", str(path)]) == 0
    assert f"{path} has charts of it" in capsys.readouterr().out
    assert Page(path.read_text(encoding="utf-8")).figures
    assert main(["diff", a, b, "--html", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["a"] == a


def test_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before anything is read."""
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "gone" / "x", "is not a folder")):
        assert main(["diff", "nothing", "here", "--html", str(path)]) == 2
        assert message in capsys.readouterr().err
    weights = write_llama(tmp_path / "a", 0) / "model.safetensors"
    data = weights.read_bytes()
    assert main(["diff", "nothing", "here", "--html", str(weights)]) == 2
    assert "is not a page" in capsys.readouterr().err
    assert weights.read_bytes() == data
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert main(["diff", "nothing", "here", "--html", str(tmp_path / "x.html")]) == 2
    err = capsys.readouterr().err
    assert err == "error: --html: needs plotly; run: pip install 'jmerge[report]' [JM410]\n"
