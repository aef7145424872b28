"""All rows, in the order of the README's table."""

from __future__ import annotations

import encoders
import experts
import text
import vision

FAMILIES = (*text.FAMILIES, *experts.FAMILIES, *encoders.FAMILIES, *vision.FAMILIES)
