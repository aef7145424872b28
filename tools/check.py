"""The whole gate, the same here and in CI: format, lint, types, then the tests.

python tools/check.py            everything but the slow tests
python tools/check.py --slow     the slow tests too
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run the steps until one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slow", action="store_true", help="run the slow tests too")
    options = parser.parse_args()
    steps = [
        ["-m", "ruff", "format", "--check", "."],
        ["-m", "ruff", "check", "."],
        ["-m", "mypy"],
        ["-m", "pytest", "-n", "2"],
    ]
    if options.slow:
        steps.append(["-m", "pytest", "-m", "slow", "-n", "2"])
    for step in steps:
        print("+", "python", *step, flush=True)
        code = subprocess.run([sys.executable, *step], cwd=ROOT).returncode
        if code:
            sys.exit(code)


if __name__ == "__main__":
    main()
