"""A program that renders a chat template once, in a process of its own that can be ended: a template may never end.

Reads {"template", "dialogues", "most", "parent"} as JSON from standard input, writes {"text"} or {"error", "compiled"}.
It must import nothing of jmerge, since it is run by its path.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime
from typing import Any

MEMORY = 1 << 30  # bytes of address space that a template may take, where the system can limit it


def environment() -> Any:
    """The sandbox in which chat templates are rendered everywhere."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %} ... {% endgeneration %}`, which marks what a model says."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            """The statements between the marks."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def render(template: str, dialogues: list[dict[str, Any]], most: int) -> dict[str, Any]:
    """The first dialogue's text that the template makes, or what is wrong with it."""
    from jinja2 import TemplateSyntaxError

    try:
        compiled = environment().from_string(template)
    except TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}", "compiled": False}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "compiled": False}
    problem = ""
    for values in dialogues:
        text = ""
        try:
            for part in compiled.generate(**values):
                text += part
                if len(text) > most:
                    return {"error": f"writes more than {most:,} characters", "compiled": True}
        except Exception as error:  # whatever a template can do wrong
            problem = problem or str(error) or type(error).__name__
        else:
            return {"text": text}
    return {"error": problem, "compiled": True}


def end_with(parent: int) -> None:
    """End this process soon after the one that started it, which may have been killed or interrupted."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def main() -> None:
    """Render what standard input asks for."""
    task = json.load(sys.stdin)
    # on Windows, the python of a virtual environment starts another one, which ends with it
    if sys.platform != "win32":
        threading.Thread(target=end_with, args=(task["parent"],), daemon=True).start()
    import jinja2.sandbox  # noqa: F401  # before memory is limited

    if sys.platform != "win32":
        import resource

        with suppress(ValueError, OSError):  # a lower limit is set already, or the system has none
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        answer = render(task["template"], task["dialogues"], task["most"])
    except MemoryError:
        answer = {"error": "needs too much memory", "compiled": True}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
