"""What hosts say to each other, over connections inside this process: values, failures, silence, parting."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from enginekit import within
from said import uncoded

from jmerge.engine import hosts as module
from jmerge.engine.hosts import Hosts, PeerError, agree
from jmerge.engine.meeting import join, listen, meet, welcome
from jmerge.errors import NonFiniteError, PlanError, Problem, RunError


class Group:
    """Connected hosts."""

    def __init__(self, count: int, give_up: Callable[[str], None] | None = None) -> None:
        self.ends = [_connected() for _ in range(count - 1)]
        near = {number: pair[0] for number, pair in enumerate(self.ends, 1)}
        self.hosts = [Hosts(0, count, near, give_up)]
        for number, pair in enumerate(self.ends, 1):
            self.hosts.append(Hosts(number, count, {0: pair[1]}, give_up))

    def kill(self, number: int) -> None:
        """End all connections of a host as its death does; it lives on in this process, but says nothing more."""
        self.hosts[number]._tell = lambda *_: None  # type: ignore[method-assign]
        for far, pair in enumerate(self.ends, 1):
            if number in (0, far):
                pair[0 if number == 0 else 1].shutdown(socket.SHUT_RDWR)


def _connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        return server.accept()[0], far


@pytest.fixture
def groups() -> Iterator[Callable[..., Group]]:
    made: list[Group] = []

    def make(count: int, give_up: Callable[[str], None] | None = None) -> Group:
        made.append(Group(count, give_up))
        return made[-1]

    yield make
    with ThreadPoolExecutor() as pool:
        list(pool.map(Hosts.close, [host for group in made for host in group.hosts]))


def together(group: Group, action: Callable[[Hosts], Any]) -> list[Any]:
    """What every host returns or raises."""

    def one(host: Hosts) -> Any:
        try:
            return action(host)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(group.hosts)) as pool:
        return within(lambda: list(pool.map(one, group.hosts)))


def test_one_process_is_a_group() -> None:
    with Hosts() as alone:
        assert alone.first and alone.gather("x") == ["x"] and alone.hear(3) == 3
        assert not alone.alarm().is_set() and alone.written_elsewhere() == 0


def test_values_arrive_in_order(groups: Any) -> None:
    def talk(host: Hosts) -> Any:
        first = host.gather([host.number, "a\nb"])
        heard = host.hear({"x": 1.5} if host.first else None)
        second = host.gather(host.number * 10)
        return first, heard, second, host.hear()

    found = together(groups(3), talk)
    everyone = [[0, "a\nb"], [1, "a\nb"], [2, "a\nb"]]
    assert found[0] == (everyone, {"x": 1.5}, [0, 10, 20], None)
    assert found[1] == found[2] == ([], {"x": 1.5}, [], None)


def test_host_0_waits_for_the_last(groups: Any) -> None:
    group, late = groups(3), 0.6

    def talk(host: Hosts) -> float:
        if host.number == 2:
            time.sleep(late)
        host.gather(None)
        host.hear()
        return time.monotonic()

    began = time.monotonic()
    assert all(end - began >= late for end in together(group, talk))


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_dead_host_stops_all_others(dead: int, groups: Any) -> None:
    group = groups(3)
    alarms = [host.alarm() for host in group.hosts]
    threading.Timer(0.2, group.kill, [dead]).start()

    def wait(host: Hosts) -> None:
        if host.number != dead:
            host.hear() if host.number else host.gather(None)

    began = time.monotonic()
    for number, error in enumerate(together(group, wait)):
        if number != dead:
            assert isinstance(error, PeerError) and isinstance(error, RunError)
            assert f"host {dead} (of 0-2) died or lost its connection; run the same" in str(error)
            assert alarms[number].is_set() and group.hosts[number].alarm().is_set()
    assert time.monotonic() - began < 5


def test_a_failure_is_passed_on_before_host_0_parts(
    groups: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the thread is that passes it on, and however quick host 0 to stop."""
    tell = Hosts._tell

    def slowly(host: Hosts, *args: Any) -> None:
        time.sleep(0.5)
        tell(host, *args)

    monkeypatch.setattr(Hosts, "_tell", slowly)
    group = groups(3)
    group.kill(2)

    def work(host: Hosts) -> None:
        if host.number != 2:
            with host:
                host.hear() if host.number else host.gather(None)

    for error in together(group, work)[:2]:
        assert "host 2 (of 0-2) died or lost its connection" in str(error)


def test_who_parts_too_early_is_not_waited_for(groups: Any) -> None:
    def work(host: Hosts) -> None:
        with host:
            if host.number:
                host.hear()

    errors = together(groups(3), work)
    assert errors[0] is None
    assert {uncoded(str(error)) for error in errors[1:]} == {"host 0 (of 0-2) stopped too early"}


def test_silence_is_death(groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(module, "PULSE_SECONDS", 60)
    errors = together(groups(2), lambda host: host.hear() if host.number else host.gather(0))
    assert all("sent no heartbeat for" in str(error) for error in errors)


def test_signs_of_life_are_enough(groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.6)
    monkeypatch.setattr(module, "PULSE_SECONDS", 0.1)
    group = groups(2)
    group.hosts[1].note_written(70)
    time.sleep(1.5)
    assert together(group, lambda host: host.check()) == [None, None]
    assert [host.written_elsewhere() for host in group.hosts] == [70, 0]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (NonFiniteError(Problem("3 elements", where="x")), "failed: x: 3 elements"),
        (RunError("the disk is full"), "failed: the disk is full"),
        (KeyboardInterrupt(), "was interrupted"),
        (ZeroDivisionError(), "failed: ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("number", [0, 2])
def test_a_failure_is_told(number: int, error: BaseException, why: str, groups: Any) -> None:
    group, said = groups(3), []

    def work(host: Hosts) -> None:
        try:
            with host, host.telling():
                if host.number == number:
                    raise error
                host.hear() if host.number else host.gather(None)
        except BaseException as caught:
            said.append((host.number, caught))

    began = time.monotonic()
    together(group, work)
    found = dict(said)
    assert found.pop(number) is error
    assert {type(each) for each in found.values()} == {PeerError}
    assert {uncoded(str(each)) for each in found.values()} == {f"host {number} (of 0-2) {why}"}
    assert time.monotonic() - began < 2.5, "they part as soon as all have read it"


def test_the_last_words_are_read(groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Host 0 goes at once, while a host is slow to read and has sent what nobody reads."""
    monkeypatch.setattr(module, "PULSE_SECONDS", 0.001)
    group = groups(3)

    def part(host: Hosts) -> str:
        with host:
            host.gather(None)
            time.sleep(0.3 * host.number)
            return host.hear("published" if host.first else None)

    assert together(group, part) == ["published"] * 3


def test_a_host_that_hangs_is_ended(groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.3)
    ended: list[str] = []
    group = groups(2, ended.append)
    group.kill(1)
    time.sleep(1)
    assert any("host 1 (of 0-1) died" in each for each in ended)


def test_a_host_that_stops_is_not(groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.5)
    ended: list[str] = []
    group = groups(2, ended.append)
    group.kill(1)
    together(group, Hosts.close)
    time.sleep(1)
    assert ended == []


FACTS = {"jax": "1", "--seed": 0, "recipe": "ab" * 32, "inputs": {"m/x": [1, "h"], "m/y": [2, "h"]}}


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({}, ""),
        ({"--seed": 4}, "host 2 has --seed 4, host 0 has 0; start all"),
        ({"jax": "2", "--seed": 4}, "host 2 has jax 2, host 0 has 1"),
        ({"recipe": "cd" * 32}, "host 2 has a different recipe from host 0"),
        (
            {"inputs": {"m/x": [1, "h"], "m/y": [3, "h"]}},
            "m/y is not the same file on hosts 0 and 2",
        ),
        ({"inputs": {"m/x": [1, "h"]}}, "m/y is not the same file"),
    ],
)
def test_hosts_agree_or_all_stop(other: dict[str, Any], line: str, groups: Any) -> None:
    found = together(
        groups(3), lambda host: agree(host, FACTS | other if host.number == 2 else FACTS)
    )
    if not line:
        assert found == [None] * 3
    for error in found if line else ():
        assert isinstance(error, PlanError) and line in str(error)


# Connecting


def test_only_those_who_know_the_word_are_connected() -> None:
    server = listen()
    address = ("127.0.0.1", server.getsockname()[1])
    until = time.monotonic() + 20
    strangers = []
    for said in (
        b'["wrong", 1]\n',
        b"GET / HTTP/1.1\r\n\r\n",
        b'["word", 7]\n',
        b'["word", 0]\n',
        b"\xff\n",
    ):
        strangers.append(socket.create_connection(address))
        strangers[-1].sendall(said)
    gone = socket.create_connection(address)
    gone.close()
    with ThreadPoolExecutor() as pool:
        links = pool.submit(welcome, server, "word", 3, until)
        far = {n: pool.submit(join, address, "word", n, until).result() for n in (2, 1)}
        near = links.result(timeout=20)
    assert near.keys() == {1, 2}
    for number in (1, 2):
        far[number].sendall(json.dumps({"from": number}).encode())
        assert json.loads(near[number].recv(100)) == {"from": number}
    for each in (*strangers, *far.values(), *near.values()):
        each.close()


def test_who_does_not_come_is_not_waited_for() -> None:
    with pytest.raises(OSError):
        within(lambda: welcome(listen(), "word", 2, time.monotonic() + 0.3), 5)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("h", 2, 0), "--coordinator: expected HOST:PORT of process 0, found 'h'"),
        (("h:0", 2, 0), "--coordinator: expected HOST:PORT"),
        (("h:1", 0, 0), "--num_processes: expected 1 or more, found 0"),
        (("h:1", 2, 2), "--process_id: expected 0 to 1, found 2"),
        (("h:1", 2, -1), "--process_id: expected 0 to 1, found -1"),
        ((None, None, -1), "--process_id: expected 0 or more, found -1"),
    ],
)
def test_arguments_that_cannot_be(arguments: Any, line: str) -> None:
    with pytest.raises(PlanError, match=line):
        meet(*arguments)


def test_one_process_needs_no_meeting() -> None:
    assert meet("h:1", 1, 0).count == 1
