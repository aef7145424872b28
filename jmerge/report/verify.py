"""What was found of a folder, for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from jmerge.errors import Fault
from jmerge.report.show import size
from jmerge.verify.checks import Verified

SHOWN = 5  # findings of one check; the rest are counted


def verify_text(found: Sequence[Verified]) -> str:
    """One block for each model: what it is, a line for every check, and a line for every finding below its check."""
    blocks = ["\n".join(_lines(each)) for each in found]
    faults = sum(len(check.faults) for each in found for check in each.checks)
    last = f"{faults} fault{'s' if faults > 1 else ''} found" if faults else "no fault found"
    return "\n\n".join([*blocks, last])


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
                        "fine": not check.faults,
                        "findings": [
                            {"level": "warning" if finding.warning else "fault"}
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


def _lines(found: Verified) -> Iterator[str]:
    folder = found.folder
    total = sum(entry.spec.nbytes for entry in folder.tensors.values())
    files = f"{len(folder.files)} file{'s' if len(folder.files) != 1 else ''}"
    yield f"{Fault(found.label)}: {len(folder.tensors)} tensors, {size(total)} in {files}"
    width = max(len(check.name) for check in found.checks)
    for check in found.checks:
        state = "FAULT" if check.faults else "note" if check.findings else "ok"
        doc = "" if check.findings else " ".join(check.doc.split())
        yield f"  {check.name:<{width}}  {state:<5}  {doc}".rstrip()
        findings = sorted(check.findings, key=lambda each: each.warning)
        for finding in findings[:SHOWN]:
            yield f"    {Fault(finding.message, finding.tensor, finding.file, code=finding.code)}"
        if len(findings) > SHOWN:
            yield f"    and {len(findings) - SHOWN} more"
