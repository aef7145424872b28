"""The page of `jmerge diff --html`: whole in itself, with all numbers in its cells, whatever names the tensors have."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from jmerge.ckpt.open import open_checkpoint
from jmerge.cli import main
from jmerge.diff.compare import Difference, compare
from jmerge.report.diff import percent
from jmerge.report.measures import MEASURES, make_scale, near_one, ticks
from jmerge.report.page import page, short_names
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama

HOSTILE = "</script><script>alert(1)</script><img src=http://x.y onerror=alert(2)>"


class Cell(NamedTuple):
    """A cell of a map."""

    places: list[str]  # on the scales of change, cosine and signs
    says: list[str]


class Page(HTMLParser):
    """Tags with their attributes, text outside scripts, scripts, and the cells of all maps by their first line."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.cells: dict[str, Cell] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self._inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")
        if found.get("class") == "cell":
            says = (found["data-says"] or "").split("\n")
            assert says[0] not in self.cells
            self.cells[says[0]] = Cell((found["data-places"] or "").split(), says[1:])

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside and data.strip():
            self.text.append(data.strip())


def compared(folder: Path, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> Difference:
    return compare(
        open_checkpoint(write_checkpoint(folder / "a", a, llama_config(layers=3))),
        open_checkpoint(write_checkpoint(folder / "b", b, llama_config(layers=3))),
    )


def check_alone(found: Page) -> None:
    """Nothing is loaded from anywhere, and no script is there but that of the page."""
    loading = {"src", "href", "srcset", "data", "poster", "action", "background"}
    for tag, attributes in found.tags:
        if tag == "link":  # browsers ask for an icon of pages that say none
            assert attributes == {"rel": "icon", "href": "data:,"}
            continue
        assert not loading & attributes.keys(), tag
        assert not any(name.startswith("on") for name in attributes), tag
    assert {tag for tag, _ in found.tags} <= {
        *("html", "head", "meta", "link", "title", "style", "script", "body", "main", "h1", "h2", "h3", "p"),
        *("div", "span", "b", "i", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "code", "footer"),
        *("fieldset", "legend", "label", "input", "button", "output"),
    }  # fmt: skip
    assert len(found.scripts) == 1


def test_page(tmp_path: Path) -> None:
    a, b = llama_tensors(0, layers=3), llama_tensors(1, layers=3)
    b["model.layers.1.mlp.up_proj.weight"] = a["model.layers.1.mlp.up_proj.weight"]
    del b["model.layers.2.self_attn.k_proj.weight"]
    difference = compared(tmp_path, a, b)
    text = page(difference)
    assert text == page(difference)
    found = Page(text)
    check_alone(found)
    assert re.search(r"@import|url\(|https?:", text) is None
    for each in difference.tensors:
        name, layer = each.pair.name, each.pair.place.layer
        if layer is None:
            says = found.cells[name].says
        else:
            title = f"layer {layer}, {each.pair.place.row}"
            inner, *says = found.cells[title].says
            assert inner == name
        assert says[0] == str(each.pair.a.spec)
        assert says[1] == f"Relative change: {percent(each.sums.relative)}"
        assert says[2].startswith("Cosine: ") and says[3].startswith("Sign agreement: ")
    assert found.cells["layer 1, mlp.up_proj"].places == ["=", "=", "="]
    assert found.cells["layer 1, mlp.up_proj"].says[-1] == "every byte the same"
    assert "layer 2, self_attn.k_proj" not in found.cells
    outside = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert outside <= found.cells.keys() and len(found.cells) == 3 + 3 * 10 - 1
    words = " ".join(found.text)
    for each_word in ("b compared with a", str(tmp_path / "a"), "relative change", "Only in a (A)"):
        assert each_word in words
    assert "model.layers.2.self_attn.k_proj.weight: F32[4, 8]" in words
    assert "Problems" not in words and "Only in b" not in words


def test_equal_models_and_models_with_nothing_in_common(tmp_path: Path) -> None:
    a = llama_tensors(0, layers=3)
    found = Page(page(compared(tmp_path / "1", a, a)))
    check_alone(found)
    assert {place for cell in found.cells.values() for place in cell.places} == {"="}
    found = Page(page(compared(tmp_path / "2", a, {"other": np.ones(2, np.float32)})))
    check_alone(found)
    assert found.cells == {} and "Problems" in found.text and "Maps" not in found.text


def test_experts_share_a_cell(tmp_path: Path) -> None:
    """Which says which of them changed most."""
    tensors = llama_tensors(0, layers=3)
    for i in range(3):
        for j in range(4):
            tensors[f"model.layers.{i}.mlp.experts.{j}.up.weight"] = np.full((2, 2), 1.0 + j, "f4")
    other = {name: 2 * each if "experts" in name else each for name, each in tensors.items()}
    most = "model.layers.1.mlp.experts.2.up.weight"
    other[most] = tensors[most] * 3
    cells = Page(page(compared(tmp_path, tensors, other))).cells
    assert cells["layer 0, mlp.experts.*.up"].says[:2] == [
        "4 tensors, 16 parameters",
        "Relative change: 100 %",
    ]
    assert cells["layer 1, mlp.experts.*.up"].says[-1] == f"Most changed: {most}, 200 %"


def test_one_tensor_far_from_all_others(tmp_path: Path) -> None:
    """The colours are for the others, and the legend says that there is more."""
    a = {f"model.layers.{i}.x{j}.weight": np.ones(4, "f4") for i in range(3) for j in range(30)}
    b = {name: each * np.float32(1.01 + 0.001 * i) for i, (name, each) in enumerate(a.items())}
    b["model.layers.1.x3.weight"] = a["model.layers.1.x3.weight"] * 50
    found = Page(page(compared(tmp_path, a, b)))
    places = {int(cell.places[0]) for cell in found.cells.values()}
    assert max(places) == 100 and len(places) > 50
    assert "≥ 10 %" in found.text


def test_a_tensor_that_was_zero(tmp_path: Path) -> None:
    """Its change has no end: it has the last colour, and comes first."""
    a, b = llama_tensors(0, layers=3), llama_tensors(1, layers=3)
    a["model.norm.weight"] = np.zeros_like(a["model.norm.weight"])
    text = page(compared(tmp_path, a, b))
    cell = Page(text).cells["model.norm.weight"]
    assert cell.places == ["100", "-", "-"]
    assert "Relative change: from zero" in cell.says and "Cosine: -" in cell.says
    assert text.index('<td class="wide name">model.norm.weight') < text.index(
        '<td class="wide name">model.layers'
    )


def test_what_has_no_number(tmp_path: Path) -> None:
    """A tensor of NaN has no colour, nor has one of zeros that was none; what is the same has that of no change."""
    a, b = llama_tensors(0, layers=3), llama_tensors(1, layers=3)
    b["model.norm.weight"] = np.full_like(a["model.norm.weight"], np.nan)
    b["lm_head.weight"] = np.zeros_like(a["lm_head.weight"])
    a["model.embed_tokens.weight"] = b["model.embed_tokens.weight"] = np.zeros((16, 8), "f4")
    cells = Page(page(compared(tmp_path, a, b))).cells
    norm = cells["model.norm.weight"]
    assert norm.places == ["-", "-", "-"] and "Relative change: -" in norm.says
    assert "NaN or infinite: 0 in A, 8 in B" in norm.says
    assert cells["lm_head.weight"].places[1:] == ["-", "-"]
    assert cells["model.embed_tokens.weight"].places == ["=", "=", "="]


def test_pages_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a model of 126 layers; of more tensors than a table has, it says how many."""
    a, b = llama_tensors(0, layers=126), llama_tensors(1, layers=126)
    difference = compared(tmp_path, a, b)
    assert len(page(difference).encode()) < 1_000_000
    monkeypatch.setattr("jmerge.report.page.TENSORS", 100)
    text = page(difference)
    assert "The 100 most changed of 1137" in text and len(text.encode()) < 700_000


@pytest.mark.parametrize(
    ("a", "b", "names"),
    [
        ("/models/base", "/runs/tuned", ("base", "tuned")),
        ("/runs/1/final", "/runs/2/final", ("1/final", "2/final")),
        ("https://x.y/o/a@12", "/o/a", ("a@12", "a")),
        ("/x/a", "/x/a", ("a", "a")),
        ("/", "/a", ("/", "a")),
    ],
)
def test_names_that_tell_models_apart(a: str, b: str, names: tuple[str, str]) -> None:
    assert short_names(a, b) == names


def test_numbers_near_one() -> None:
    values = (None, 1.0, 0.0, -0.25, 0.51234, 0.98765, 0.99953, 1 - 1e-12)
    assert [near_one(each) for each in values] == [
        "-", "1", "0", "-0.250", "0.512", "0.987", "0.99953", "0.999999999",
    ]  # fmt: skip


def test_numbers_are_short(tmp_path: Path) -> None:
    """Three or four digits, besides leading zeros and nines; counts of tensors and places in them are whole."""
    found = Page(page(compared(tmp_path, llama_tensors(0, layers=3), llama_tensors(1, layers=3))))
    texts = [*found.text, *(line for cell in found.cells.values() for line in cell.says)]
    numbers = {n for text in texts for n in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", text)}
    assert len(numbers) > 50
    for number in numbers:
        assert len(number.replace(".", "").lstrip("0").lstrip("9")) <= 4, number


def test_scales() -> None:
    """Round ends around all but a twentieth on either side, never so near each other that noise looks like change."""
    scale = make_scale(
        [0.0, None, 1e-9, *[0.012 + 0.001 * i for i in range(80)], 5.0, float("inf")]
    )
    assert (float(scale.low), float(scale.high)) == (0.01, 0.1)
    assert scale.below and scale.above
    places = (None, 0.0, 1e-9, 0.01, 0.0316228, 0.1, 7.0, float("inf"))
    assert [scale.place(each) for each in places] == ["-", "=", "0", "0", "50", "100", "100", "100"]
    assert [(tick.place, tick.text) for tick in ticks(MEASURES[0], scale)] == [
        ("0", "≤ 1 %"),
        ("70", "5 %"),
        ("100", "≥ 10 %"),
    ]
    narrow = make_scale([0.1, 0.10001, 0.1])
    assert narrow.high / narrow.low >= 4 and not narrow.below and not narrow.above
    texts = [tick.text for tick in ticks(MEASURES[1], make_scale([1e-4, 1e-2]))]
    assert texts == ["0.9999", "0.9995", "0.998", "0.99"]
    assert make_scale([]).low > 0


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
    assert "alert" not in found.scripts[0]
    assert HOSTILE in found.cells and f"layer 0, {HOSTILE}" in found.cells
    assert any(HOSTILE in text for text in found.text)


def test_the_command_makes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (str(write_llama(tmp_path / name, seed)) for seed, name in enumerate("ab"))
    path = tmp_path / "x.html"
    assert main(["diff", a, b, "--html", str(path)]) == 0
    assert f"{path} has charts of it" in capsys.readouterr().out
    assert Page(path.read_text(encoding="utf-8")).cells
    assert main(["diff", a, b, "--html", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["a"] == a


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told before anything is read."""
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "gone" / "x", "is not a folder")):
        assert main(["diff", "nothing", "here", "--html", str(path)]) == 2
        assert message in capsys.readouterr().err
    weights = write_llama(tmp_path / "a", 0) / "model.safetensors"
    data = weights.read_bytes()
    assert main(["diff", "nothing", "here", "--html", str(weights)]) == 2
    assert "is not a page" in capsys.readouterr().err
    assert weights.read_bytes() == data
