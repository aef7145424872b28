"""The API reference as Markdown, from the docstrings of the public names."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable
from typing import Any, ForwardRef

import jmerge
import jmerge.advanced

SECTIONS = ("Args", "Attributes", "Returns", "Raises")
ALIASES = {  # types that are no classes
    "Event": "Without | Started | Resumed | Wrote | WroteElsewhere | Finished | Nonfinite",
    "Listener": "Callable[[Event], None]",
}
WIDTH = 88
ITEM = re.compile(r"(\*{0,2}[\w, ]+?): (.*)", re.DOTALL)


def api_markdown() -> str:
    """All public names, in groups."""
    groups: dict[str, list[str]] = {
        "Models, recipes and plans": [],
        "Merging pytrees": [],
        "Errors": [],
    }
    for name in jmerge.__all__:
        value = getattr(jmerge, name)
        if name.startswith("__") or inspect.ismodule(value):
            continue
        if inspect.isclass(value) and issubclass(value, Exception):
            group = "Errors"
        else:
            own = str(getattr(value, "__module__", "")).startswith("jmerge.trees")
            group = "Merging pytrees" if own else "Models, recipes and plans"
        groups[group].append(name)
    parts = ["\n"]
    for title, names in groups.items():
        parts.append(f"## {title}\n\n")
        parts += [entry(f"jmerge.{name}", getattr(jmerge, name)) for name in names]
    parts.append(f"## jmerge.advanced\n\n{body(inspect.getdoc(jmerge.advanced) or '')}\n")
    for name in jmerge.advanced.__all__:
        parts.append(entry(f"jmerge.advanced.{name}", getattr(jmerge.advanced, name)))
    return "".join(parts).rstrip() + "\n\n"


def entry(name: str, value: Any) -> str:
    """One name: how it is called or what it holds, its docstring, and the methods of a class."""
    short = name.rpartition(".")[2]
    if not (inspect.isclass(value) or inspect.isroutine(value)):  # a type with a name
        return f"### {name}\n\n```py\n{short} = {ALIASES[short]}\n```\n\n"
    lines = [f"### {name}\n\n"]
    if code := definition(short, value):
        lines.append(f"```py\n{code}\n```\n\n")
    lines.append(f"{body(inspect.getdoc(value) or '')}\n")
    for key, member in vars(value).items() if inspect.isclass(value) else ():
        function = getattr(member, "__func__", member)
        if key.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        code = signature(key, getattr(value, key))
        lines.append(f"#### {short}.{key}\n\n```py\n{code}\n```\n\n")
        lines.append(f"{body(inspect.getdoc(function) or '')}\n")
    return "".join(lines)


def definition(name: str, value: Any) -> str:
    """A function's signature, a record's fields, or how an object is made; empty where the docstring says it all."""
    if not inspect.isclass(value):
        return signature(name, value)
    abstract = issubclass(value, BaseException) or getattr(value, "_is_protocol", False)
    if abstract or "Attributes:" in (value.__doc__ or ""):
        return ""
    fields = (
        [each.name for each in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    )
    fields = list(getattr(value, "_fields", fields))
    if not fields:
        return signature(name, value)
    types = {key: kind(value.__annotations__[key]) for key in fields}
    return f"class {name}:\n" + "\n".join(f"    {key}: {each}" for key, each in types.items())


def signature(name: str, value: Any) -> str:
    """A call with its parameters, one to a line where they do not fit into one."""
    found = inspect.signature(value)
    parameters = [p for p in found.parameters.values() if p.name != "self"]
    words: list[str] = []
    starred = False
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        stars = "**" if each.kind is each.VAR_KEYWORD else "*" * (each.kind is each.VAR_POSITIONAL)
        starred |= stars == "*"
        text = f"{stars}{each.name}"
        typed = each.annotation is not each.empty
        text += f": {kind(each.annotation)}" if typed else ""
        if each.default is not each.empty:
            text += f" = {default(each.default)}" if typed else f"={default(each.default)}"
        words.append(text)
    shown = found.return_annotation
    made = inspect.isclass(value) or shown is found.empty
    result = "" if made else f" -> {kind(shown)}"
    line = f"{name}({', '.join(words)}){result}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){result}"


def kind(annotation: Any) -> str:
    """A type as it is written."""
    if isinstance(annotation, ForwardRef):
        return annotation.__forward_arg__
    if isinstance(annotation, str):
        return annotation
    return getattr(annotation, "__name__", str(annotation))


def default(value: Any) -> str:
    """A default value; that of a factory is left open."""
    text = repr(value)
    return "..." if text.startswith("<") else text


def body(doc: str) -> str:
    """A docstring as Markdown: its sections as lists, its examples as blocks."""
    out: list[str] = []
    for block in _blocks(doc):
        head, _, rest = block.partition("\n")
        if head.rstrip(":") in SECTIONS and head.endswith(":"):
            out.append(f"**{head[:-1]}**\n\n{_listed(textwrap.dedent(rest))}")
        elif block.startswith(">>>"):
            out.append(f"```pycon\n{block}\n```")
        elif block.startswith("    "):
            out.append(f"```py\n{textwrap.dedent(block)}\n```")
        else:
            out.append("\n".join(line.strip() for line in block.splitlines()))
    return "\n\n".join(out) + "\n"


def _blocks(doc: str) -> Iterable[str]:
    """Paragraphs; a section's heading takes all that is indented below it along."""
    lines = doc.splitlines()
    block: list[str] = []
    for line in lines:
        indented = bool(block) and block[0].rstrip(":") in SECTIONS and line.startswith("  ")
        heading = line.endswith(":") and line[:-1] in SECTIONS
        if block and not indented and (not line.strip() or heading):
            yield "\n".join(block)
            block = []
        if line.strip():
            block.append(line)
    if block:
        yield "\n".join(block)


def _listed(text: str) -> str:
    """`name: what it is` as list items; running text as it is."""
    items: list[str] = []
    for line in text.splitlines():
        if line.startswith("  ") and items:
            items[-1] += " " + line.strip()
        else:
            items.append(line.strip())
    shown = []
    for item in items:
        found = ITEM.fullmatch(item)
        if found:
            names = ", ".join(f"`{name}`" for name in found[1].split(", "))
            shown.append(f"- {names}: {found[2]}")
        elif shown:
            shown[-1] += " " + item
        else:
            shown.append(item)
    return "\n".join(shown)
