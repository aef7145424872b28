"""A merge where the system lacks what only Linux or POSIX has; the hosted CI merges on the systems themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The libraries that the system at hand has are made for it.
LIBRARIES = """
import os, sys, types, urllib.request
import huggingface_hub, jax, jinja2, ml_dtypes, numpy, pydantic, rich.console, rich.progress, tokenizers, zlib_ng.zlib_ng
jax.devices()
"""
# What Windows is without, or does otherwise.
WITHOUT_POSIX = """
import fcntl as posix
locks = types.ModuleType("msvcrt")
locks.LK_NBLCK = 2
locks.locking = lambda descriptor, mode, count: posix.lockf(descriptor, posix.LOCK_EX | posix.LOCK_NB, count)
sys.modules.update(fcntl=None, resource=None, msvcrt=locks)
for name in ("preadv", "pread", "pwrite", "posix_fallocate", "fdatasync", "major", "minor", "O_DSYNC", "O_CLOEXEC"):
    delattr(os, name)
opened, synced = os.open, os.fsync
def open_file(path, flags, mode=0o777):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return opened(path, flags, mode)
def sync_file(descriptor):
    if posix.fcntl(descriptor, posix.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(9, "Bad file descriptor")
    synced(descriptor)
os.open, os.fsync = open_file, sync_file
sys.platform = "win32"
"""
# What macOS is without.
WITHOUT_LINUX = """
for name in ("posix_fallocate", "fdatasync"):
    delattr(os, name)
sys.platform = "darwin"
"""
MERGE = "import jmerge; jmerge.merge('configs/quickstart.yml', sys.argv[1])"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems merge as they are")
@pytest.mark.parametrize("without", [WITHOUT_POSIX, WITHOUT_LINUX], ids=["Windows", "macOS"])
def test_a_merge_needs_nothing_of_linux(tmp_path: Path, without: str) -> None:
    """The same weights come out as here."""
    for name, before in {"here": "", "there": without}.items():
        subprocess.run(
            [sys.executable, "-c", LIBRARIES + before + MERGE, tmp_path / name],
            cwd=ROOT,
            check=True,
            timeout=120,
        )
    made = [tmp_path / name / "model.safetensors" for name in ("here", "there")]
    assert made[0].read_bytes() == made[1].read_bytes()
