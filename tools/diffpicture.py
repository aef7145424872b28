"""Draw jmerge/docs/images/diff.png: the page of `jmerge diff --html` for the quickstart's merge and its base, in Chromium."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from browser import address, browser

from jmerge.cli import main as jmerge

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "jmerge" / "docs" / "images" / "diff.png"
SIZE = (1100, 1040)  # pixels
CELL = "layer 3, self_attn.o_proj"  # which the mouse is on


def main() -> None:
    """The command."""
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        merged, page = Path(folder, "merged"), Path(folder, "page.html")
        jmerge(["configs/quickstart.yml", str(merged)])
        jmerge(["diff", "configs/quickstart/base", str(merged), "--html", str(page)])
        with browser() as chromium:
            chromium.open(address(page), width=SIZE[0], height=SIZE[1])
            # what follows the name of a folder that is gone would mean nothing to those who see the picture
            chromium.run("all('.path').forEach((path) => path.remove())")
            chromium.run(f"all('.cell').find((c) => c.dataset.says.startsWith('{CELL}')).id = 'it'")
            chromium.point("#it")
            PICTURE.write_bytes(chromium.picture())


if __name__ == "__main__":
    main()
