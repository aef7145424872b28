"""Which devices compute: a number of them, or platforms in the order of preference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from jmerge.engine.events import Without
from jmerge.errors import PlanError, Problem, RunError
from jmerge.names import did_you_mean

PLATFORMS = ("cpu", "gpu", "tpu")


class DeviceMemoryError(RunError):
    """A piece does not fit the memory of a device."""


@contextmanager
def device_memory_errors() -> Iterator[None]:
    """Turn what JAX says when memory runs out into a `DeviceMemoryError`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DeviceMemoryError(str(error).partition("\n")[0], code="JM504") from error


def choose_devices(
    text: str | int | None, tell: Callable[[Without], None] = lambda event: None
) -> list[list[jax.Device]]:
    """The devices that share the work, by platform; the next platform is for when memory of the one before runs out.

    Args:
      text: how many devices of the platform that JAX prefers; or names of platforms with commas, whose devices of this
        process all take part; None: all devices of the platform that JAX prefers.
      tell: called when platforms that are named are not here, and another that is named is.

    Raises:
      PlanError: there is none of the platforms here, or not that many devices.
    """
    if text is None:
        return [jax.local_devices()]
    words = [word.strip() for word in str(text).split(",")]
    if len(words) == 1 and words[0].lstrip("-").isdigit():
        return [_so_many(int(words[0]))]
    for word in words:
        if word not in PLATFORMS:
            message = f"expected a number or platforms such as gpu or gpu,cpu, found '{text}'"
            raise PlanError(
                Problem(message + did_you_mean(word, PLATFORMS), where="devices", code="JM407")
            )
    found, missing = [], []
    for word in dict.fromkeys(words):
        try:
            found.append(list(jax.local_devices(backend=word)))
        except RuntimeError:
            missing.append(word)
    if not found:
        here = ", ".join(sorted({device.platform for device in jax.local_devices()} | {"cpu"}))
        message = f"JAX finds no {' and no '.join(missing)} here; it finds {here}"
        raise PlanError(Problem(message, where="devices", code="JM407"))
    if missing:
        tell(Without(tuple(missing), found[0][0].platform))
    return found


def make_cpu_devices(text: str | None) -> None:
    """Make as many CPU devices as `text` asks for, if it is a number; for a program that JAX's settings belong to."""
    if text is not None and text.strip().isdigit() and int(text) > 0:
        with contextlib.suppress(RuntimeError):  # JAX runs already, with the devices it has
            jax.config.update("jax_num_cpu_devices", int(text))


def _so_many(count: int) -> list[jax.Device]:
    if count < 1:
        raise PlanError(
            Problem(f"expected at least 1, found {count}", where="devices", code="JM407")
        )
    found = list(jax.local_devices())
    if len(found) < count:
        message = f"expected at most {len(found)}, the number of {found[0].platform} devices here, found {count}"
        if found[0].platform == "cpu":
            message += f"; JAX makes more with jax_num_cpu_devices={count}, set before it is used"
        raise PlanError(Problem(message, where="devices", code="JM407"))
    return found[:count]
