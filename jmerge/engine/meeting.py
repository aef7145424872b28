"""How the processes of a merge find each other: by `jax.distributed`, which they leave again before they work.

Whoever stays in JAX's group is ended by it, without a word of ours, when the process that coordinates it dies; and a
merge needs nothing of it, since no number goes from one host to another. So the group is used to learn who is there
and where host 0 listens, and what the hosts say to each other goes over connections of their own.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed

from jmerge.engine.hosts import Hosts
from jmerge.errors import PlanError, Problem, RunError
from jmerge.process import STUCK

MEETING_SECONDS = 120.0  # for all hosts to come
JAX_SECONDS = 60  # that JAX waits longer: at its own limit it ends the process
HELLO_SECONDS = 5.0  # for a host that connected to say who it is
KEY = "jmerge/host0"


def meet(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    give_up: Callable[[str], None] | None = None,
) -> Hosts:
    """The group of processes that share a merge, once all are there; call it before anything else uses JAX.

    Args:
      coordinator: `host:port` of the process 0, where JAX's service may listen; like the others left to JAX to find
        where it can (TPU VMs, Slurm, Open MPI, Kubernetes).
      num_processes: how many there are.
      process_id: which of them this is, from 0.
      give_up: see `Hosts`.

    Raises:
      PlanError: the arguments are wrong, or some are missing and JAX cannot find them.
      RunError: the others did not come.
    """
    _check(coordinator, num_processes, process_id)
    if num_processes == 1:
        return Hosts()
    until = time.monotonic() + MEETING_SECONDS
    number, count, address, token, server = _meet(coordinator, num_processes, process_id, until)
    if count == 1:
        return Hosts()
    try:
        if server is not None:
            return Hosts(0, count, welcome(server, token, count, until), give_up)
        return Hosts(number, count, {0: join(address, token, number, until)}, give_up)
    except OSError as error:
        raise RunError(
            f"host {number} found the group but could not connect to host 0 ({error.strerror or error}); "
            "open the ports between them",
            code="JM509",
        ) from error


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    if num_processes is not None and num_processes < 1:
        raise PlanError(
            Problem(f"expected 1 or more, found {num_processes}", "--num_processes", code="JM405")
        )
    if process_id is not None and not 0 <= process_id < (num_processes or process_id + 1):
        most = "" if num_processes is None else f" to {num_processes - 1}"
        message = f"expected 0{most or ' or more'}, found {process_id}"
        raise PlanError(Problem(message, "--process_id", code="JM405"))
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdigit() and 0 < int(port) < 1 << 16):
            message = f"expected HOST:PORT of process 0, found '{coordinator}'"
            raise PlanError(Problem(message, "--coordinator", code="JM405"))


Met = tuple[int, int, tuple[str, int], str, socket.socket | None]


def _meet(
    coordinator: str | None, num_processes: int | None, process_id: int | None, until: float
) -> Met:
    """Number, count, where host 0 listens, the word by which its hosts are known, and on host 0 the listening socket.

    JAX's calls go on a thread of their own: nothing interrupts them, not even Ctrl-C.
    """
    found: list[Met] = []
    errors: list[Exception] = []

    def body() -> None:
        try:
            found.append(_through_jax(coordinator, num_processes, process_id))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=body, name=STUCK, daemon=True)
    thread.start()
    while thread.is_alive() and time.monotonic() < until:
        thread.join(0.1)
    if found:
        return found[0]
    if not errors:
        hosts = "the hosts" if num_processes is None else f"{num_processes} hosts"
        where = "" if coordinator is None else f" at {coordinator}"
        raise RunError(
            f"{hosts} did not connect{where} within {MEETING_SECONDS:.0f} seconds; start jmerge on every host, each with its "
            "own --process_id, and open that port",
            code="JM509",
        )
    (error,) = errors
    if isinstance(error, ValueError):  # something is neither given nor found
        message = "JAX finds no cluster here; give --coordinator HOST:PORT, --num_processes and --process_id"
        raise PlanError(Problem(message, "--distributed", code="JM408")) from error
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise RunError(
        f"--distributed: the hosts could not connect ({reason}); check that the coordinator's port is free on process 0",
        code="JM509",
    ) from error


def _through_jax(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Met:
    if hasattr(jax.config, "jax_enable_preemption_service"):
        # it would catch SIGTERM, for good
        jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=int(MEETING_SECONDS) + JAX_SECONDS,
    )
    state: Any = distributed.global_state  # which has no public face but for arrays on all devices
    number, count = state.process_id, state.num_processes
    host = state.coordinator_address.rpartition(":")[0].strip("[]")
    server = None
    if number == 0:
        server = listen()
        state.client.key_value_set(
            KEY, json.dumps([server.getsockname()[1], secrets.token_hex(16)])
        )
    port, token = json.loads(state.client.blocking_key_value_get(KEY, int(MEETING_SECONDS) * 1000))
    jax.distributed.shutdown()  # when all do
    state.process_id, state.num_processes = 0, 1  # so that devices are found as without a group
    return number, count, (host, port), token, server


def listen() -> socket.socket:
    """A socket at any free port, for `welcome`."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # switched off in the kernel
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def welcome(
    server: socket.socket, token: str, count: int, until: float
) -> dict[int, socket.socket]:
    """The connections of all other hosts by their number, of those that know `token`; OSError when some do not come."""
    links: dict[int, socket.socket] = {}
    with server:
        while len(links) < count - 1:
            server.settimeout(max(until - time.monotonic(), 0.01))
            connection, _ = server.accept()
            number = _hello(connection, token)
            if number in range(1, count) and number not in links:
                links[number] = connection
            else:
                connection.close()
    return links


def _hello(connection: socket.socket, token: str) -> int:
    """The number of the host that connected; 0 when it is none of ours."""
    connection.settimeout(HELLO_SECONDS)
    try:
        line = b""
        while not line.endswith(b"\n") and len(line) < 200:
            data = connection.recv(1)  # not more: what follows is for others to read
            if not data:
                return 0
            line += data
        said, number = json.loads(line)
        return int(number) if hmac.compare_digest(str(said), token) else 0
    except (OSError, ValueError, TypeError):
        return 0


def join(address: tuple[str, int], token: str, number: int, until: float) -> socket.socket:
    """A connection to host 0; OSError when there is no way."""
    connection = socket.create_connection(address, max(until - time.monotonic(), 1.0))
    connection.sendall(f"{json.dumps([token, number])}\n".encode())
    return connection
