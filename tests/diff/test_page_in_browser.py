"""The page of `jmerge diff --html` in a headless Chromium: with mouse, finger and keyboard, wide and narrow, light and dark."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, address, browser, program

from jmerge.ckpt.open import open_checkpoint
from jmerge.diff.compare import compare
from jmerge.report.page import write_page
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

pytestmark = pytest.mark.xdist_group("browser")
LAYERS = 32
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844, "touch": True}
LOOKS = [WIDE, {**WIDE, "dark": True}, PHONE, {**PHONE, "dark": True}]
# Colours as the pixels of a canvas, whatever notation a style has.
COLOURS = """
const paper = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const pixel = (colour) => { paper.clearRect(0, 0, 1, 1); paper.fillStyle = colour; paper.fillRect(0, 0, 1, 1);
  return [...paper.getImageData(0, 0, 1, 1).data]; };
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all tests; on a Linux machine of CI it must be there."""
    if sys.platform == "win32":
        pytest.skip("tools/browser.py hands pipes to Chromium as Windows cannot")
    if program() is None:
        missing = "no Chromium on this machine: apt-get install chromium"
        if sys.platform == "linux" and os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything that pages can have: two stacks, experts, an outlier, what is equal, missing or broken."""
    folder = tmp_path_factory.mktemp("page")
    a = llama_tensors(0, layers=LAYERS)
    for i in range(4):
        a[f"vision.blocks.{i}.attn.qkv.weight"] = np.full((4, 4), 1.0 + i, "f4")
        a[f"vision.blocks.{i}.mlp.fc1_with_a_name_that_is_longer_than_there_is_room_for.weight"] = (
            np.ones((4, 4), "f4")
        )
    for i in range(LAYERS):
        for j in range(4):
            a[f"model.layers.{i}.mlp.experts.{j}.up_proj.weight"] = np.ones((4, 4), "f4")
    random = np.random.default_rng(3)
    b = {
        name: each if name.startswith("vision") else each * np.float32(random.uniform(0.9, 1.1))
        for name, each in a.items()
    }
    b["model.layers.5.input_layernorm.weight"] = a["model.layers.5.input_layernorm.weight"] * 50
    b["model.layers.7.input_layernorm.weight"] = np.full(8, np.nan, "f4")
    b["lm_head.weight"] = b["lm_head.weight"][:15]
    del b["model.layers.9.mlp.up_proj.weight"]
    config = llama_config(layers=LAYERS) | {"vision_config": {"depth": 4}}
    long = {"a_field_with_a_very_long_name_indeed": ["and a long value"] * 20}
    write_checkpoint(folder / "org" / "base-model", a, config)
    write_checkpoint(folder / "org" / "tuned-model", b, config | long)
    for name in ("base-model", "tuned-model"):
        (folder / "org" / name / "generation_config.json").write_text("{}")
    pair = [open_checkpoint(folder / "org" / name) for name in ("base-model", "tuned-model")]
    write_page(compare(*pair), folder / "x.html")
    return folder / "x.html"


def opened(chromium: Browser, made: Path, look: dict[str, Any]) -> None:
    """The page in a window; what it asked for and complained of is checked at once."""
    chromium.open(address(made), **look)
    assert chromium.requests == [address(made)]
    assert chromium.complaints == []


def rows(chromium: Browser) -> list[str]:
    """The names in the table of tensors that are in sight."""
    script = "all('table')[1].tBodies[0].rows"
    found: list[str] = chromium.run(
        f"[...{script}].filter((row) => row.offsetHeight).map((row) => row.cells[0].textContent)"
    )
    return found


def test_it_names_the_models(chromium: Browser, made: Path) -> None:
    opened(chromium, made, WIDE)
    title = "tuned-model compared with base-model"
    assert chromium.run("document.title") == title
    assert chromium.run("document.querySelector('h1').textContent") == title
    assert made.stat().st_size < 2_000_000


@pytest.mark.parametrize("look", LOOKS)
def test_nothing_is_cut(chromium: Browser, made: Path, look: dict[str, Any]) -> None:
    """The page does not scroll sideways, nor does anything on it, and no label of a legend lies over another."""
    opened(chromium, made, look)
    chromium.run("all('.more').forEach((button) => button.click())")
    assert chromium.run("document.documentElement.scrollWidth") == look["width"]
    beyond = chromium.run(
        """all('main *').filter((each) => each.offsetWidth && !each.matches('.row')
        && (each.getBoundingClientRect().right > innerWidth || each.getBoundingClientRect().left < 0
            || (each.matches('.box, .map, table, td, th, .find, .card') && each.scrollWidth > each.clientWidth + 1)))
        .map((each) => each.outerHTML.slice(0, 200))"""
    )
    assert beyond == []
    chromium.run("all('.scale').forEach((scale) => { scale.hidden = false; })")
    overlapping = chromium.run(
        """all('.ticks').flatMap((ticks) => [...ticks.children].filter((tick, i, list) =>
        i && list[i - 1].getBoundingClientRect().right > tick.getBoundingClientRect().left)
        .map((tick) => tick.textContent))"""
    )
    assert overlapping == []


@pytest.mark.parametrize("look", LOOKS)
def test_texts_can_be_read(chromium: Browser, made: Path, look: dict[str, Any]) -> None:
    """Every text has a contrast of 4.5 to what is behind it, as WCAG AA asks for."""
    opened(chromium, made, look)
    pale = chromium.run(
        "(() => {"
        + COLOURS
        + """
        const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
          .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const behind = (each) => { for (; each; each = each.parentElement) {
          const colour = pixel(getComputedStyle(each).backgroundColor); if (colour[3] === 255) return colour; }
          return [255, 255, 255]; };
        const found = new Set();
        for (const each of all('body *')) {
          if (!each.offsetWidth || ![...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
          const one = light(pixel(getComputedStyle(each).color)), other = light(behind(each));
          const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
          if (contrast < 4.5) found.add(`${each.tagName}.${each.className} ${contrast.toFixed(2)}`);
        }
        return [...found]; })()"""
    )
    assert pale == []
    page = chromium.run(
        f"(() => {{ {COLOURS} return pixel(getComputedStyle(document.body).backgroundColor); }})()"
    )
    assert (max(page[:3]) < 80) is bool(look.get("dark"))


@pytest.mark.parametrize("look", LOOKS)
def test_a_cell_says_what_it_is(chromium: Browser, made: Path, look: dict[str, Any]) -> None:
    """Under the mouse or after a tap, in sight; a tap beside the maps takes it away."""
    opened(chromium, made, look)
    chromium.run(
        "all('.cell').find((c) => c.dataset.says.startsWith('layer 31, mlp.up_proj')).id = 'it'"
    )
    assert chromium.run("tip.hidden")
    (chromium.tap if look.get("touch") else chromium.point)("#it")
    says = chromium.run("[...tip.children].map((line) => line.textContent)")
    assert says[:3] == ["layer 31, mlp.up_proj", "model.layers.31.mlp.up_proj.weight", "F32[12, 8]"]
    assert [line.partition(":")[0] for line in says[3:]] == [
        "Relative change", "Cosine", "Sign agreement", "Largest change",
    ]  # fmt: skip
    at = chromium.run("tip.getBoundingClientRect().toJSON()")
    cell = chromium.run("document.querySelector('#it').getBoundingClientRect().toJSON()")
    assert at["left"] >= 0 and at["right"] <= look["width"]
    assert at["top"] >= 0 and at["bottom"] <= look["height"]
    assert at["bottom"] <= cell["top"] or at["top"] >= cell["bottom"] or at["left"] >= cell["right"]
    (chromium.tap if look.get("touch") else chromium.point)("h1")
    assert chromium.run("tip.hidden")
    assert chromium.complaints == []


@pytest.mark.parametrize(("look", "onward"), [(WIDE, "ArrowRight"), (PHONE, "ArrowDown")])
def test_keys_move_through_a_map(
    chromium: Browser, made: Path, look: dict[str, Any], onward: str
) -> None:
    """Along the layers, which lie across or down."""
    opened(chromium, made, look)
    focused = "document.activeElement.className"
    for _ in range(20):
        chromium.press("Tab")
        if chromium.run(focused) == "map":
            break
    says = "tip.firstChild.textContent"
    assert chromium.run(says) == "layer 0, whole layer"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert chromium.run(outline) == "solid"
    chromium.press(onward, onward)
    assert chromium.run(says) == "layer 2, whole layer"
    chromium.press("ArrowDown" if onward == "ArrowRight" else "ArrowRight")
    assert chromium.run(says) == "layer 2, self_attn.q_proj"
    chromium.press("Escape")
    assert chromium.run("tip.hidden")


def test_measures_take_turns(chromium: Browser, made: Path) -> None:
    """One legend at a time, and its colours in all maps."""
    opened(chromium, made, WIDE)
    colours = "all('.cell').map((cell) => getComputedStyle(cell).backgroundColor).join()"
    scales = "all('.scale').filter((each) => each.offsetHeight).map((each) => each.id)"
    seen = []
    for key in ("change", "cosine", "signs"):
        chromium.click(f"input[value={key}]")
        assert chromium.run(scales) == [f"scale-{key}"]
        seen.append(chromium.run(colours))
    assert len(set(seen)) == 3
    chromium.click("input[value=change]")
    assert chromium.run(colours) == seen[0]


@pytest.mark.parametrize("dark", [False, True])
def test_an_outlier_leaves_the_others_their_colours(
    chromium: Browser, made: Path, dark: bool
) -> None:
    """And what did not change looks unlike what changed little."""
    opened(chromium, made, {**WIDE, "dark": dark})
    colours = chromium.run(
        f"(() => {{ {COLOURS} return all('.map .cell').map((cell) => [cell.dataset.says.split('\\n')[0],"
        " pixel(getComputedStyle(cell).backgroundColor).join()]); })()"
    )
    changed = {colour for name, colour in colours if "layer" in name and "q_proj" in name}
    assert len(changed) > LAYERS // 2
    same = {colour for name, colour in colours if "attn.qkv" in name}
    assert len(same) == 1 and not same & changed


def test_tables_are_sorted(chromium: Browser, made: Path) -> None:
    """By a click on the head of a column, and the other way round by another."""
    opened(chromium, made, WIDE)
    assert (
        rows(chromium)[0] == "model.layers.5.input_layernorm.weight" and len(rows(chromium)) == 50
    )
    chromium.run("all('table')[1].id = 'tensors'")
    head = "#tensors th:nth-child({}) button"
    state = "all('#tensors th').map((head) => head.ariaSort)"
    chromium.click(head.format(1))
    assert chromium.run(state) == ["ascending", "none", "none", "none", "none"]
    names = rows(chromium)
    assert [name for name in names if "input_layernorm" in name][:3] == [
        f"model.layers.{i}.input_layernorm.weight" for i in range(3)
    ]
    numbers = "all('#tensors tbody tr').map((row) => parseFloat(row.cells[{}].dataset.v))"
    for column in (2, 3, 4, 5):
        for order in ("descending", "ascending"):
            chromium.click(head.format(column))
            assert chromium.run(state)[column - 1] == order
            found = np.array(chromium.run(f"{numbers.format(column - 1)}"), float)
            known = found[~np.isnan(found)]
            assert (
                (np.diff(known) >= 0).all() if order == "ascending" else (np.diff(known) <= 0).all()
            )
            assert np.isnan(found[len(known) :]).all()
    chromium.press("Enter")  # the button has the focus
    assert chromium.run(state)[4] == "descending"


@pytest.mark.parametrize("look", [WIDE, PHONE])
def test_tables_are_searched(chromium: Browser, made: Path, look: dict[str, Any]) -> None:
    """For words, each of them anywhere in a name."""
    opened(chromium, made, look)
    count = chromium.run("document.querySelector('output').textContent")
    whole = int(count.split(" of ")[1])
    (chromium.tap if look.get("touch") else chromium.click)("input[type=search]")
    chromium.write("LAYERS.12. proj")
    found = rows(chromium)
    assert len(found) == 7 + 4 and all(".12." in name and "proj" in name for name in found)
    assert chromium.run("document.querySelector('output').textContent") == f"11 of {whole}"
    chromium.run("(() => { const field = document.querySelector('input[type=search]'); field.value = '';"
                 " field.dispatchEvent(new Event('input')); })()")  # fmt: skip
    assert len(rows(chromium)) == 50
    (chromium.tap if look.get("touch") else chromium.click)(".more")
    assert len(rows(chromium)) == whole


def test_everything_that_takes_the_focus_has_a_name(chromium: Browser, made: Path) -> None:
    """For those who hear the page."""
    opened(chromium, made, WIDE)
    nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
    focusable = [
        node
        for node in nodes
        if any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", []))
        and node["role"]["value"] != "RootWebArea"
    ]
    assert len(focusable) > 15
    assert [node["role"] for node in focusable if not node["name"]["value"].strip()] == []
    names = " ".join(node["name"]["value"] for node in focusable)
    for name in ("Map of model.layers", "Map of vision.blocks", "outside of layers", "Search"):
        assert name in names
