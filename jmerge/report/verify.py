"""What was found of a folder, for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TextIO

from jmerge.errors import Problem
from jmerge.report.show import several, size, tensors
from jmerge.report.terminal import Colour, paint
from jmerge.verify.checks import Verified

STATES: dict[str, Colour] = {"PROBLEM": "red", "note": "yellow", "skipped": "yellow"}
SHOWN = 5  # findings of one check; the rest are counted


def verify_text(found: Sequence[Verified], stream: TextIO | None = None) -> str:
    """One block for each model: what it is, the checks that found something with their findings, those that were skipped
    and why, and those that passed; then the number of each. With the colours that `stream` can show.
    """
    blocks = ["\n".join(_lines(each, stream)) for each in found]
    checks = [check for each in found for check in each.checks]
    passed = sum(check.passed for check in checks)
    counts = [f"{several(passed, 'check')} passed"]
    for number, words in (
        (sum(bool(check.problems) for check in checks), "failed"),
        (sum(bool(check.findings) and not check.problems for check in checks), "with notes"),
        (sum(bool(check.skipped) for check in checks), "skipped"),
    ):
        if number:
            counts.append(f"{number} {words}")
    return "\n\n".join([*blocks, ", ".join(counts)])


def verify_json(found: Sequence[Verified]) -> str:
    """The same, every finding, as one JSON object."""
    content = {
        "fine": all(each.fine for each in found),
        "models": [
            {
                "path": each.label,
                "fine": each.fine,
                "files": len(each.folder.files),
                "tensors": len(each.folder.tensors),
                "bytes": sum(entry.spec.nbytes for entry in each.folder.tensors.values()),
                "checks": [
                    {
                        "check": check.name,
                        "fine": not check.problems,
                        "skipped": check.skipped or None,
                        "findings": [
                            {"level": "warning" if finding.warning else "problem"}
                            | {
                                key: getattr(finding, key)
                                for key in ("file", "tensor", "message", "code")
                            }
                            for finding in check.findings
                        ],
                    }
                    for check in each.checks
                ],
            }
            for each in found
        ],
    }
    return json.dumps(content, indent=1)


def _lines(found: Verified, stream: TextIO | None) -> Iterator[str]:
    folder = found.folder
    total = sum(entry.spec.nbytes for entry in folder.tensors.values())
    files = several(len(folder.files), "file")
    yield f"{Problem(found.label)}: {tensors(len(folder.tensors))}, {size(total)} in {files}"
    width = max(len(check.name) for check in found.checks)
    for check in found.checks:
        name = f"  {check.name:<{width}}  "
        if check.findings:
            state = "PROBLEM" if check.problems else "note"
            yield name + paint(state, STATES[state], stream)
        findings = sorted(check.findings, key=lambda each: each.warning)
        for finding in findings[:SHOWN]:
            yield f"    {Problem(finding.message, finding.tensor, finding.file, code=finding.code)}"
        if len(findings) > SHOWN:
            yield f"    and {len(findings) - SHOWN} more; --json lists them"
    for why in dict.fromkeys(check.skipped for check in found.checks if check.skipped):
        names = ", ".join(check.name for check in found.checks if check.skipped == why)
        skipped = paint("skipped", STATES["skipped"], stream)
        yield f"  {skipped}{'':<{width - 5}}{names}: {why}"
    if passed := [check.name for check in found.checks if check.passed]:
        yield f"  {'passed':<{width}}  {', '.join(passed)}"
