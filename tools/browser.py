"""A headless Chromium that looks at pages: Debian's `chromium`, driven through its pipe by the DevTools protocol.

Nothing but the standard library is needed; https://chromedevtools.github.io/devtools-protocol has the names of what
is called. Linux and macOS only, since Chromium inherits the pipe as two open files.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60.0  # until an answer must be there, on a machine that is busy
# The numbers of keys, as Windows has them.
ARROWS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, **ARROWS}
# Chromium reads commands from file 3 and writes to 4, whichever files are these here.
START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def program() -> str | None:
    """The path of a Chromium; None when there is none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Browser:
    """A running Chromium with one page.

    Attributes:
      requests: the URLs that the page asked for since it was opened, its own included.
      complaints: what it wrote to the console, and its errors.
    """

    def __init__(self, commands: int, events: int) -> None:
        self._commands, self._events = commands, events
        self._rest, self._count, self._session = b"", 0, ""
        self._answers: dict[int, dict[str, Any]] = {}
        self._loaded = False
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a DevTools command; RuntimeError when it fails, TimeoutError when there is no answer."""
        self._count += 1
        number = self._count
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        text = json.dumps(message).encode() + b"\0"
        while text:
            text = text[os.write(self._commands, text) :]
        until = time.monotonic() + SECONDS
        while number not in self._answers:
            self._receive(until, method)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def open(
        self, page: str, *, width: int, height: int, dark: bool = False, touch: bool = False
    ) -> None:
        """Load an address in a window of this many CSS pixels, as a phone when `touch`."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=touch,
        )  # fmt: skip
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.requests, self.complaints, self._loaded = [], [], False
        self.call("Page.navigate", url=page)
        until = time.monotonic() + SECONDS
        while not self._loaded:
            self._receive(until, page)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression as plain data."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description", script))
        return found["result"].get("value")

    def middle(self, element: str) -> tuple[float, float]:
        """Where the first element of a CSS selector is in the window, scrolled to when it is not in sight."""
        x, y = self.run(
            f"(() => {{ const found = document.querySelector({json.dumps(element)});"
            " found.scrollIntoView({block: 'nearest'}); const at = found.getBoundingClientRect();"
            " return [at.left + at.width / 2, at.top + at.height / 2]; })()"
        )
        return x, y

    def point(self, element: str) -> None:
        """Move the mouse over an element."""
        x, y = self.middle(element)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, element: str) -> None:
        """Click on an element with the mouse."""
        x, y = self.middle(element)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, element: str) -> None:
        """Touch an element with a finger."""
        x, y = self.middle(element)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, by their names: Tab, ArrowDown."""
        for key in keys:
            about = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
            text = {"text": "\r"} if key == "Enter" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def write(self, text: str) -> None:
        """Type text into what has the focus."""
        self.call("Input.insertText", text=text)

    def picture(self, *, whole: bool = False) -> bytes:
        """What is in the window, or the whole page, as a PNG file."""
        found = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._area(whole)
        )
        return base64.b64decode(found["data"])

    def _area(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {**size, "x": 0, "y": 0, "scale": 1}}

    def _receive(self, until: float, waiting_for: str) -> None:
        """Take in what Chromium writes next."""
        if not select.select([self._events], [], [], max(0.0, until - time.monotonic()))[0]:
            raise TimeoutError(f"{waiting_for}: no answer in {SECONDS:.0f} s")
        read = os.read(self._events, 1 << 16)
        if not read:
            raise RuntimeError(f"{waiting_for}: Chromium ended")
        *messages, self._rest = (self._rest + read).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._take(message["method"], message["params"])

    def _take(self, event: str, about: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif event == "Runtime.consoleAPICalled":
            self.complaints.append(str([arg.get("value") for arg in about["args"]]))
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(about["exceptionDetails"]))
        elif event == "Log.entryAdded":
            self.complaints.append(about["entry"]["text"])


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium that ends with the block; RuntimeError when there is none."""
    found = program()
    if found is None:
        raise RuntimeError(f"none of {', '.join(PROGRAMS)} is installed")
    words = [
        "--headless=new",
        "--remote-debugging-pipe",
        "--disable-gpu",
        "--no-first-run",
        "--hide-scrollbars",
    ]
    words += [
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
    ]
    if os.geteuid() == 0:  # whom Chromium's own sandbox refuses
        words.append("--no-sandbox")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        read, commands = os.pipe()
        events, write = os.pipe()
        launch = [sys.executable, "-c", START, str(read), str(write), found]
        with subprocess.Popen(
            [*launch, *words, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(read, write), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as running:  # fmt: skip
            os.close(read)
            os.close(write)
            try:
                yield Browser(commands, events)
            finally:
                os.close(commands)
                os.close(events)
                running.terminate()


def address(path: Path) -> str:
    """Of a file, for `Browser.open`."""
    return path.resolve().as_uri()
