"""Ctrl-C: one line and exit code 130 wherever it comes, a second one, and what is left then; never in the library."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from said import start, until

import jmerge
from jmerge import cli, options
from jmerge.testing.tiny import write_llama

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

GOES_ON = "interrupted; the same command continues from here\n"
TRIALS = int(os.environ.get("JMERGE_INTERRUPTS", "200"))
SEED = int(os.environ.get("JMERGE_INTERRUPT_SEED", "20240607"))

# Runs the program, and sends itself Ctrl-C at a point of it.
PROGRAM = """
import os, signal, sys, threading, time

point, words = sys.argv[1], sys.argv[2:]

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

def watch(event, details):
    first = os.fsdecode(details[0]) if details and isinstance(details[0], str | bytes) else ""
    if event == "import" and point == "import " + first:
        interrupt()
    if point.startswith("the last rename") and event == "os.rename" and first.endswith(".jmerge-work"):
        interrupt()

class Thing:
    pass

def swallow():
    thing = Thing()
    import weakref
    reference = weakref.ref(thing, lambda _: interrupt())
    del thing  # calls it, and what it raises is ignored

def hang():
    # a call of C that no signal ends, as this thread takes none
    import ctypes
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=interrupt, daemon=True).start()
    if point == "a call that hangs, twice":
        jmerge.interrupt._State.grace = 60.0
        threading.Timer(0.2, interrupt).start()
    ctypes.CDLL(None).sleep(60)

def convert():
    interrupt()
    time.sleep(0.1)
    raise jmerge.RunError("as of something that was stopped")

def at(self, event):
    do = {"a callback": swallow, "an error of another kind": convert}
    do.get(point, hang if "hangs" in point else lambda: None)()
    time.sleep(0.1 if point in do else 0)

sys.addaudithook(watch)
sys.argv[1:] = words
from jmerge.cli import program
if not point.startswith("import"):
    import jmerge.interrupt
    from jmerge.report.progress import Progress
    Progress.__call__ = at
    if point == "the last rename, unheard":  # as when the machine is busy
        jmerge.interrupt._wait = lambda ear: time.sleep(60)
program()
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with models `a` and `b` and a recipe `x.yml`."""
    write_llama(tmp_path / "a", 0)
    write_llama(tmp_path / "b", 1)
    (tmp_path / "x.yml").write_text(
        "merge_method: linear\nmodels:\n- model: a\n- model: b\nparameters: {weight: 1}\n"
    )
    return tmp_path


def interrupted(place: Path, point: str, *words: str) -> tuple[int, str, str]:
    """The exit code of a program that gets Ctrl-C at a point of its own, and what it says."""
    process = start(place, point, *words, code=PROGRAM)
    out, errors = process.communicate(timeout=120)
    return process.returncode, out, errors


@pytest.mark.parametrize(
    "point",
    [
        "import absl",  # of ours
        "import numpy._core._multiarray_umath",  # which turns it into another error
        "a callback",
        "an error of another kind",
        "a call that hangs",
        "a call that hangs, twice",
        "the last rename",
        "the last rename, unheard",
    ],
)
def test_one_line_wherever_it_comes(point: str, place: Path) -> None:
    assert interrupted(place, point, "x.yml", "out") == (130, "", GOES_ON)
    if "rename" in point:  # it is done, or it is not
        assert (place / "out" / "jmerge.lock.json").exists()
        assert cli.main(["verify", str(place / "out"), "--deep"]) == 0
    else:
        assert not (place / "out").exists()
    if "hangs" in point or point == "an error of another kind":  # it had begun
        assert (place / "out.jmerge-work" / "journal.jsonl").exists()


@pytest.mark.parametrize("words", [["diff", "a", "b"], ["verify", "a"]])
def test_other_commands_do_not_go_on(words: list[str], place: Path) -> None:
    assert interrupted(place, "import numpy", *words) == (130, "", "interrupted\n")


def test_the_commands_are_known_before_their_help_is_read() -> None:
    assert set(cli.COMMANDS) == options.HELP.keys()


def test_a_template_that_is_tried_ends_too(place: Path) -> None:
    """The process that renders it, which would take ten seconds."""
    with (place / "x.yml").open("a") as file:
        file.write("chat_template: '{% for a in range(10**9) %}{% endfor %}'\n")
    process = start(place, "plan", "x.yml")
    until(lambda: bool(children(process.pid)))
    child = children(process.pid)[0]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "interrupted\n")
    assert process.returncode == 130
    until(lambda: not Path(f"/proc/{child}").exists())


def test_a_template_that_is_tried_ends_with_what_is_killed(place: Path) -> None:
    with (place / "x.yml").open("a") as file:
        file.write("chat_template: '{% for a in range(10**9) %}{% endfor %}'\n")
    process = start(place, "plan", "x.yml")
    until(lambda: bool(children(process.pid)))
    child = children(process.pid)[0]
    process.kill()
    process.communicate()
    until(lambda: not Path(f"/proc/{child}").exists(), seconds=5)


def test_where_it_is_ignored_it_stays_so(place: Path) -> None:
    """As in `nohup` and in jobs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start(place, "x.yml", "out", signals="SIG_IGN")
    finally:
        signal.signal(signal.SIGINT, before)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    out, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert "merged 21 tensors" in out


def test_the_library_leaves_signals_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There Ctrl-C is the exception that Python makes of it, and no thread of ours outlives it."""

    def hooks() -> list[object]:
        return [signal.getsignal(signal.SIGINT), sys.excepthook, sys.unraisablehook]

    seen, before = [], hooks()

    def listener(event: object) -> None:
        seen.append(hooks())
        raise KeyboardInterrupt

    monkeypatch.chdir(place)
    with pytest.raises(KeyboardInterrupt):
        jmerge.merge(place / "x.yml", place / "out", listeners=(listener,))
    assert cli.main(["--version"]) == 0
    assert seen == [before] and hooks() == before
    assert signal.set_wakeup_fd(-1) == -1
    assert not [
        each for each in threading.enumerate() if each.name in ("jmerge-read", "jmerge-write")
    ]


def children(process: int) -> list[int]:
    """The processes that a process has started; Linux only."""
    found = Path(f"/proc/{process}/task/{process}/children")
    if not found.exists():
        pytest.skip("the system does not say which processes a process started")
    return [int(word) for word in found.read_text().split()]


def listens(process: subprocess.Popen[str]) -> bool:
    """Whether the program has begun: the thread that hears of Ctrl-C is there."""
    return len(os.listdir(f"/proc/{process.pid}/task")) > 1


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux")
def test_random_moments(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the program's first moment to after its end; now and then with kernels still to be compiled, and twice."""
    rng = random.Random(SEED)
    monkeypatch.chdir(place)

    def began(number: int) -> subprocess.Popen[str]:
        compiled = "compiled" if number % 4 else f"compiled-{number}"
        cache = str(tmp_path / compiled)
        return start(place, "x.yml", f"out-{number}", XDG_CACHE_HOME=cache)

    process = began(1)
    until(lambda: listens(process))
    since = time.monotonic()
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    longest = time.monotonic() - since
    before = {path.name: path.read_bytes() for path in (place / "out-1").iterdir()}
    counts = {130: 0, 0: 0}
    slowest = 0.0
    for number in range(2, TRIALS + 2):
        process = began(number)
        until(partial(listens, process))
        time.sleep(rng.uniform(0, longest))
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        if number % 5 == 0:
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=120)
        code = process.returncode
        counts[code] = counts.get(code, 0) + 1
        made = place / f"out-{number}"
        if code == 0:  # it came when all was done
            assert errors == "" and "merged 21 tensors" in out
            longest *= (
                0.97  # the first run took long: kernels were not compiled, or others were busy
            )
        else:
            assert (code, errors) == (130, GOES_ON), (number, out)
            slowest = max(slowest, time.monotonic() - sent)
        assert made.exists() or code == 130
        if number % 10 == 0 and code == 130:
            jmerge.merge(place / "x.yml", made)
        if made.exists():
            weights = (made / "model.safetensors").read_bytes()
            assert weights == before["model.safetensors"]
    print(f"{counts} after {TRIALS} interrupts; the slowest end took {slowest:.2f} s")
    assert set(counts) == {0, 130} and counts[130] > TRIALS // 2
