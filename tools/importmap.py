"""Draw the imports of the package: a box for each part, on the lowest floor that what it imports allows.

    python tools/importmap.py OUT.svg

An arrow is drawn unless a longer way says the same. Printed are the numbers of parts and of arrows between them, of
modules and of imports between those, and the lines of each part.
"""

from __future__ import annotations

import argparse
import ast
from collections import defaultdict
from html import escape
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "jmerge"
LEFT_OUT = {"__init__", "__main__"}  # names its lazy attributes as text; the way in
BOX, GAP, FLOOR = (130, 38), 18, 92  # pixels: a box, between boxes, from floor to floor

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """The modules of the package by their dotted names below it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return {name: path for name, path in found.items() if name not in LEFT_OUT}


def imports(paths: dict[str, Path]) -> Graph:
    """For each module the modules of the package that it imports, anywhere in it."""
    graph: Graph = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jmerge":
                module = (node.module or "").partition(".")[2]
                inner = [f"{module}.{alias.name}".strip(".") for alias in node.names]
                graph[name] |= {each if each in paths else module for each in inner} & paths.keys()
    return {name: targets - {name} for name, targets in graph.items()}


def by_part(graph: Graph) -> Graph:
    """The same between parts: folders of the package, and files beside them."""
    parts: Graph = defaultdict(set)
    for name, targets in graph.items():
        own = name.split(".")[0]
        parts[own] |= {target.split(".")[0] for target in targets} - {own}
    return dict(parts)


def reach(graph: Graph, start: str) -> set[str]:
    """All that a part imports, through others too."""
    seen: set[str] = set()
    todo = [*graph[start]]
    while todo:
        if (name := todo.pop()) not in seen:
            seen.add(name)
            todo += graph[name]
    return seen


def floors(graph: Graph) -> list[list[str]]:
    """The parts, those that import none first; ValueError where two import each other."""
    level: dict[str, int] = {}
    while len(level) < len(graph):
        ready = [name for name in graph if name not in level and graph[name] <= level.keys()]
        if not ready:
            raise ValueError(f"circular: {', '.join(sorted(graph.keys() - level.keys()))}")
        level |= {
            name: 1 + max((level[each] for each in graph[name]), default=-1) for name in ready
        }
    return [
        sorted(n for n in graph if level[n] == floor) for floor in range(max(level.values()) + 1)
    ]


def direct(graph: Graph) -> list[tuple[str, str]]:
    """The arrows that no longer way replaces."""
    return [
        (name, target)
        for name, targets in sorted(graph.items())
        for target in sorted(targets)
        if not any(target in reach(graph, other) for other in targets - {target})
    ]


def draw(graph: Graph, lines: dict[str, int]) -> str:
    """The picture, as SVG."""
    rows = floors(graph)
    width = max(len(row) for row in rows) * (BOX[0] + GAP) + GAP
    height = len(rows) * FLOOR
    place = {}
    for floor, row in enumerate(rows):
        left = (width - len(row) * (BOX[0] + GAP) + GAP) / 2
        for i, name in enumerate(row):
            place[name] = left + i * (BOX[0] + GAP), height - (floor + 1) * FLOOR + FLOOR / 4
    shapes = []
    for name, target in direct(graph):
        (x, y), (to_x, to_y) = place[name], place[target]
        x, y, to_x = x + BOX[0] / 2, y + BOX[1], to_x + BOX[0] / 2
        shapes.append(
            f'<path d="M{x:g},{y:g} C{x:g},{y + 40:g} {to_x:g},{to_y - 40:g} {to_x:g},{to_y:g}" '
            'fill="none" stroke="#8a8f98" marker-end="url(#tip)"/>'
        )
    for name, (x, y) in place.items():
        middle = x + BOX[0] / 2
        shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{BOX[0]}" height="{BOX[1]}" rx="6" fill="#eef3fb" stroke="#41639c"/>'
            f'<text x="{middle:g}" y="{y + 16:g}" font-weight="600">{escape(name)}</text>'
            f'<text x="{middle:g}" y="{y + 31:g}" fill="#555">{lines[name]:,} lines</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12" text-anchor="middle">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#8a8f98"/></marker></defs>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(shapes)}</svg>\n'
    )


def main() -> None:
    """Draw, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the picture to write")
    out = parser.parse_args().out
    paths = modules()
    graph = imports(paths)
    parts = by_part(graph)
    lines: dict[str, int] = defaultdict(int)
    for name, path in paths.items():
        lines[name.split(".")[0]] += len(path.read_text(encoding="utf-8").splitlines())
    out.write_text(draw(parts, lines), encoding="utf-8")
    print(f"{len(parts)} parts, {sum(map(len, parts.values()))} arrows; ", end="")
    print(f"{len(graph)} modules, {sum(map(len, graph.values()))} imports")
    for name in sorted(lines, key=lambda each: -lines[each]):
        print(f"{name:<12} {lines[name]:>6} lines")


if __name__ == "__main__":
    main()
