"""The processes that share a merge, and what they tell each other.

Host 0 has a connection to every other host. Lines of JSON go over it: values, signs of life, and why a host failed,
which host 0 passes on. A connection that ends or goes silent means that the host at its other end died.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from jmerge.errors import JmergeError, PlanError, RunError
from jmerge.interrupt import MOMENT, check

PULSE_SECONDS = 2.0  # between signs of life
SILENCE_SECONDS = 25.0  # without one, after which a host counts as dead
GRACE_SECONDS = 15.0  # that a host has to stop by itself once another failed
PARTING_SECONDS = 3.0  # that a host waits at its end for the others to have read its last words


class PeerError(RunError):
    """Another host failed, and so this one has to stop."""


class Hosts:
    """The group, seen from one of its processes; without `links` it is that process alone.

    Use as a context manager: when the body fails, the others are told why.
    """

    def __init__(
        self,
        number: int = 0,
        count: int = 1,
        links: Mapping[int, socket.socket] | None = None,
        give_up: Callable[[str], None] | None = None,
    ) -> None:
        """The group once all are connected.

        Args:
          number: of this process, from 0.
          count: of the processes.
          links: connections by the number of the host at their other end; host 0 has all, the others one to host 0.
          give_up: called with the reason when another host failed and this one does not come to its end within
            `GRACE_SECONDS`, since it hangs in a call that nothing can interrupt; ends the process.
        """
        self.number = number
        self.count = count
        self._give_up = give_up
        self._links = {n: _Link(each) for n, each in (links or {}).items()}
        self._news = threading.Condition()
        self._failure = ""
        self._alarms: list[threading.Event] = []
        self._over = threading.Event()
        self._wrote = 0  # bytes, by this host
        self._wrote_elsewhere: dict[int, int] = {}
        self._readers = [
            threading.Thread(target=self._read, args=(n,), name=f"jmerge-host-{n}", daemon=True)
            for n in self._links
        ]
        for thread in self._readers:
            thread.start()
        if self._links:
            threading.Thread(target=self._pulse, name="jmerge-pulse", daemon=True).start()

    @property
    def moment(self) -> float:
        """Seconds in which this host may stop by itself after an interrupt."""
        return MOMENT + (PARTING_SECONDS if self._links else 0)

    @property
    def first(self) -> bool:
        """Whether this is host 0, which makes the output folder and publishes it."""
        return self.number == 0

    # Values

    def gather(self, value: Any, meanwhile: Callable[[], None] = lambda: None) -> list[Any]:
        """Hand `value` (of JSON) to host 0.

        meanwhile: called now and then while host 0 waits for the others.

        Returns:
          On host 0, when all have done so, every host's value by its number; elsewhere an empty list at once.

        Raises:
          PeerError: another host failed.
        """
        if not self.first:
            self._links[0].send({"value": value})
            return []
        return [value, *(self._take(n, meanwhile) for n in range(1, self.count))]

    def hear(self, value: Any = None) -> Any:
        """What host 0 hands in as `value` (of JSON), on every host; the others wait for it. PeerError when another
        host failed."""
        if not self.first:
            return self._take(0)
        for link in self._links.values():
            link.send({"value": value})
        return value

    def _take(self, number: int, meanwhile: Callable[[], None] = lambda: None) -> Any:
        link = self._links[number]
        while True:
            check()
            with self._news:
                if not link.inbox:
                    self.check()
                    if link.over:
                        raise PeerError(
                            f"host {number} (of 0-{self.count - 1}) stopped too early", code="JM510"
                        )
                    self._news.wait(0.2)
                if link.inbox:
                    return link.inbox.popleft()
            meanwhile()

    # Progress

    def note_written(self, nbytes: int) -> None:
        """Count bytes that this host wrote; the others learn it with the next sign of life."""
        self._wrote += nbytes

    def written_elsewhere(self) -> int:
        """The bytes that the other hosts wrote, as far as host 0 knows."""
        return sum(self._wrote_elsewhere.copy().values())

    # Failures

    def check(self) -> None:
        """Raise PeerError when another host failed."""
        if self._failure:
            raise PeerError(self._failure, code="JM510")

    def alarm(self) -> threading.Event:
        """An event that is set when another host fails."""
        event = threading.Event()
        with self._news:
            self._alarms.append(event)
            if self._failure:
                event.set()
        return event

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """When the body fails, tell the others why and wait a moment until they have stopped."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, PeerError):
                self._tell(self.number, _reason(error))
            self.close()
            raise

    def part(self) -> None:
        """Part from the others in the middle, as this process was interrupted, which they are told."""
        if not self._over.is_set():
            self._tell(self.number, _reason(KeyboardInterrupt()))
        self.close()

    def _tell(self, number: int, why: str) -> None:
        for link in self._links.values():
            link.send({"failed": [number, why]})

    def _fail(self, number: int, why: str) -> None:
        """Take in that another host failed; the first that does is the one to report."""
        with self._news:
            if self._failure or self._over.is_set():
                return
            if self.first:
                self._tell(number, why)  # before this host can take note and part from the others
            self._failure = f"host {number} (of 0-{self.count - 1}) {why}"
            for event in self._alarms:
                event.set()
            self._news.notify_all()
        if self._give_up is not None:
            threading.Thread(target=self._watch, args=(self._give_up,), daemon=True).start()

    def _watch(self, give_up: Callable[[str], None]) -> None:
        if not self._over.wait(GRACE_SECONDS):
            give_up(self._failure)

    # Connections

    def _pulse(self) -> None:
        while not self._over.wait(PULSE_SECONDS):
            for link in self._links.values():
                link.send({"wrote": self._wrote})

    def _read(self, number: int) -> None:
        link = self._links[number]
        again = "; run the same command on all hosts again to continue"
        why = f"died or lost its connection{again}"
        try:
            with link.stream as lines:
                for line in lines:
                    self._receive(number, json.loads(line))
        except TimeoutError:
            why = f"sent no heartbeat for {SILENCE_SECONDS:.0f} seconds{again}"
        except (OSError, ValueError):  # ended in the middle of a line
            pass
        if not link.parted:
            self._fail(number, why)
        with self._news:
            link.over = True
            self._news.notify_all()

    def _receive(self, number: int, message: dict[str, Any]) -> None:
        link = self._links[number]
        if "wrote" in message:
            self._wrote_elsewhere[number] = message["wrote"]
        elif "value" in message:
            with self._news:
                link.inbox.append(message["value"])
                self._news.notify_all()
        elif "failed" in message:
            link.parted = link.parted or message["failed"][0] == number
            self._fail(*message["failed"])
        else:
            link.parted = True

    def close(self) -> None:
        """Part from the others, who get to read what was said last."""
        if self._over.is_set():
            return
        self._over.set()
        for link in self._links.values():
            link.send({"parted": self.number})
            link.end()
        deadline = time.monotonic() + PARTING_SECONDS
        for thread in self._readers:
            thread.join(max(deadline - time.monotonic(), 0))
        for link in self._links.values():
            link.close()

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not self._over.is_set() and not isinstance(error, PeerError):
            self._tell(self.number, _reason(error))
        self.close()


class _Link:
    """A connection to another host."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SILENCE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = connection.makefile("rb")
        self.inbox: deque[Any] = deque()
        self.parted = False  # its end was announced
        self.over = False  # nothing more will come
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a line; that the connection is lost is for its reader to say."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(f"{json.dumps(message)}\n".encode())

    def end(self) -> None:
        """Send nothing more."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RD)
        self._connection.close()


def _reason(error: BaseException) -> str:
    """Why a host failed, worded to follow its number."""
    if isinstance(error, KeyboardInterrupt):
        return "was interrupted"
    if isinstance(error, JmergeError):
        return f"failed: {error.problems[0].text}" if error.problems else "failed"
    return f"failed: {str(error) or type(error).__name__}"


def agree(hosts: Hosts, facts: Mapping[str, Any]) -> None:
    """See that all hosts are about to do the same.

    facts: what has to be equal, by what it is called in front of a person.

    Raises:
      PlanError: on every host, with the first that differs; all of them stop.
    """
    difference = ""
    for number, found in enumerate(hosts.gather(dict(facts))):
        for what, value in facts.items():
            if not difference and found.get(what) != value:
                difference = _difference(what, value, number, found.get(what))
    difference = hosts.hear(difference)
    if difference:
        raise PlanError(difference, code="JM511")


def _difference(what: str, expected: Any, number: int, found: Any) -> str:
    if isinstance(expected, dict):
        known = found if isinstance(found, dict) else {}
        names = [name for name in {**expected, **known} if expected.get(name) != known.get(name)]
        return f"{names[0]} is not the same file on hosts 0 and {number}; all hosts need the same inputs"
    shown = (
        f"{what} {found}, host 0 has {expected}"
        if len(str(expected)) < 40
        else f"a different {what} from host 0"
    )
    return f"host {number} has {shown}; start all hosts with the same versions, recipe and flags"
