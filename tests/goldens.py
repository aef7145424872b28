"""Where the golden data of the reference lies."""

from __future__ import annotations

import os
from pathlib import Path

CONFORMANCE = Path(
    os.environ.get("JMERGE_CONFORMANCE", Path(__file__).parent / "data" / "conformance")
)
