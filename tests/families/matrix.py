"""All rows, in the order of the docs' table."""

from __future__ import annotations

import encoders
import experts
import newer
import text
import vision

FAMILIES = (
    *text.FAMILIES,
    *experts.FAMILIES,
    *newer.FAMILIES,
    *encoders.FAMILIES,
    *vision.FAMILIES,
)
