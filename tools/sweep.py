"""Merge a tiny model of every type that the installed transformers has, and tell what is right, by cause.

python tools/sweep.py OUT                        all types by all methods; goes on where it stopped
python tools/sweep.py OUT --only 'qwen3.*'       types whose whole name fits
python tools/sweep.py OUT --methods linear,stack
python tools/sweep.py OUT --table                only write OUT/table.md again

Each type has a process of its own, forked from one that has imported everything, with limits on the time and memory of each try. OUT
gets `results.jsonl`, a line for each type and kind of try, and `table.md`. The models are kept in OUT/models (`--models`
names another folder, so that a sweep of a later jmerge builds nothing): they are built from defaults of their configs, every
size small and no two alike, and filled with noise without zeros. A type ends as right, refused (with its reason) or not
buildable (with its reason); anything else is a problem of jmerge, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

TRY_TIME, TRY_MEMORY = 120, 4  # seconds of the clock and GB of one try
STOPPED = "stopped"
Line = dict[str, Any]


def main() -> None:
    """Merge every type, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of results")
    parser.add_argument("--only", default=".*", help="pattern of whole names of types")
    parser.add_argument("--methods", default="linear,slerp,ties,stack", help="some of these")
    parser.add_argument("--models", type=Path, help="folder of the tiny models; OUT/models")
    parser.add_argument("--jobs", type=int, default=1, help="types at a time")
    parser.add_argument("--again", action="store_true", help="repeat what there is a result of")
    parser.add_argument("--seconds", type=int, default=TRY_TIME, help="limit for a try")
    parser.add_argument("--gigabytes", type=float, default=TRY_MEMORY, help="limit for a try")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        sweep(options)
    lines = results(options.out)
    (options.out / "table.md").write_text(table(lines), encoding="utf-8")
    print(f"{options.out / 'table.md'}\n{figures(lines)}")
    bad = [each for each in lines if each["status"] in ("wrong", "crashed", STOPPED)]
    sys.exit(1 if bad else 0)


# Results


def results(out: Path) -> list[Line]:
    """The last result of each type and kind of try."""
    file = out / "results.jsonl"
    found: dict[tuple[str, str], Line] = {}
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        line = json.loads(text)
        found[line["type"], line["kind"]] = line
    return list(found.values())


def by_kind(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Results by the kind of try."""
    kinds: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        kinds[line["kind"]].append(line)
    return kinds


def figures(lines: list[Line]) -> str:
    """How many ended how, a line for each kind of try."""
    rows = []
    for kind, of_kind in by_kind(lines).items():
        counts = Counter(line["status"] for line in of_kind)
        told = ", ".join(f"{status} {count}" for status, count in counts.most_common())
        rows.append(f"{kind}: {len(of_kind)} types: {told}\n")
    return "".join(rows)


def table(lines: list[Line]) -> str:
    """The results by cause, in Markdown."""
    text = (
        "# Sweep over the types of transformers\n\n| try | types | how it ended |\n|---|---|---|\n"
    )
    for row in figures(lines).splitlines():
        kind, count, rest = row.split(": ", 2)
        text += f"| {kind} | {count} | {rest} |\n"
    for kind, of_kind in by_kind(lines).items():
        causes: dict[tuple[str, str], list[Line]] = defaultdict(list)
        for line in of_kind:
            if line["status"] != "right":
                causes[line["status"], line.get("cause", "")].append(line)
        decided = {x["type"]: x["either"] for x in of_kind if x.get("either")}
        if not causes and not decided:
            continue
        text += f"\n## {kind}\n"
        if causes:
            text += "\n| ended as | cause | types | which, and the first one's detail |\n|---|---|---|---|\n"
        for (status, cause), group in sorted(causes.items(), key=lambda x: (x[0][0], -len(x[1]))):
            names = ", ".join(f"`{line['type']}`" for line in group)
            detail = group[0].get("detail", "").replace("|", "\\|").replace("\n", " / ")
            cause = cause.replace("|", "\\|")
            text += f"| {status} | {cause} | {len(group)} | {names}: {detail} |\n"
        if decided:
            told = ", ".join(f"`{name}` {count:,}" for name, count in decided.items())
            text += f"\nNumbers that may be one or another, as float32 rounds: {told}\n"
        silent = [x["type"] for x in of_kind if x["status"] == "wrong" and not x.get("verified")]
        if silent:
            text += f"\nWrong, and `jmerge verify` finds nothing: {', '.join(silent)}\n"
        loud = [x for x in of_kind if x["status"] == "right" and x.get("verified")]
        if loud:
            told = "".join(f"- `{x['type']}`: {x['verified']}\n" for x in loud)
            text += f"\nRight, and `jmerge verify` finds something:\n\n{told}"
    return text


# Processes


def sweep(options: argparse.Namespace) -> None:
    """Try every type that has no result yet, and write down how each ended."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((options.out / "kernels").resolve()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    warnings.filterwarnings("ignore")
    import sweepchecks
    import torch
    from transformers.models.auto import configuration_auto

    torch.set_num_threads(1)
    kinds = (sweepchecks.BUILD, sweepchecks.SOUND, *options.methods.split(","))
    if unknown := set(kinds) - set(sweepchecks.KINDS):
        sys.exit(f"--methods: {', '.join(unknown)} is none of {', '.join(sweepchecks.KINDS[2:])}")
    models = (options.models or options.out / "models").resolve()
    done = {} if options.again else {(x["type"], x["kind"]): x for x in results(options.out)}
    waiting = []
    names: dict[str, str] = vars(configuration_auto)["CONFIG_MAPPING_NAMES"]
    for name in names:
        if not re.fullmatch(options.only, name):
            continue
        unbuilt = done.get((name, kinds[0]), {}).get("status") in ("none", STOPPED)
        missing = [kind for kind in kinds if (name, kind) not in done]
        if missing and not unbuilt:
            waiting.append((name, missing))
    running: dict[int, Child] = {}
    total = len(waiting)
    waiting.reverse()
    with open(options.out / "results.jsonl", "a", encoding="utf-8") as file:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                name, missing = waiting.pop()
                child = Child(name, missing, options.out.resolve(), models)
                running[child.pid] = child
            time.sleep(0.02)
            for pid, child in list(running.items()):
                reason = child.over(options.seconds, options.gigabytes)
                if reason is None and os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
                if reason and reason != "ended":
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                del running[pid]
                for line in child.lines(reason):
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    print(
                        f"{total - len(waiting):4}/{total} {line['type']:32} {line['kind']:7} "
                        f"{line['status']:8} {line.get('cause', '')[:90]}",
                        flush=True,
                    )
                file.flush()


class Child:
    """A process that tries one type."""

    def __init__(self, name: str, kinds: list[str], out: Path, models: Path) -> None:
        self.name, self.kinds = name, kinds
        self.began, self.size = time.monotonic(), 0  # of the try that runs; of what was told before
        self.told = out / f"{name}.part"
        self.told.unlink(missing_ok=True)
        self.told.touch()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                self._try(out, models)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)

    def _try(self, out: Path, models: Path) -> None:
        """In the child: every kind of try, each of whose results is told at once."""
        import sweepchecks

        log = os.open(out / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        home, work = models / self.name, out / "work" / self.name
        for kind in self.kinds:
            start = time.process_time()
            if kind == sweepchecks.BUILD:
                kept = home / "built.json"
                if kept.exists():
                    line = json.loads(kept.read_text())
                else:
                    line = sweepchecks.as_json(sweepchecks.make(self.name, home))
                    home.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps(line))
            else:
                line = sweepchecks.as_json(sweepchecks.tried(kind, home, work))
            line |= {"type": self.name, "kind": kind}
            line["seconds"] = round(time.process_time() - start, 2)  # of CPU
            with open(self.told, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            if kind == sweepchecks.BUILD and line["status"] != sweepchecks.RIGHT:
                break

    def over(self, seconds: int, gigabytes: float) -> str | None:
        """Why it has to be stopped; None: it has not."""
        if (size := self.told.stat().st_size) != self.size:  # another try began
            self.began, self.size = time.monotonic(), size
        if time.monotonic() - self.began > seconds:
            return f"more than {seconds} s"
        try:
            with open(f"/proc/{self.pid}/statm", encoding="ascii") as file:
                resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError, ValueError):
            return None
        return f"more than {gigabytes} GB" if resident > gigabytes * 1e9 else None

    def lines(self, reason: str | None) -> list[Line]:
        """Its results, once it has ended; the kind of try that it did not get through is told as stopped."""
        found = [json.loads(text) for text in self.told.read_text(encoding="utf-8").splitlines()]
        self.told.unlink()
        unbuilt = any(line["kind"] == "build" and line["status"] != "right" for line in found)
        if len(found) < len(self.kinds) and not unbuilt:
            why = reason or "the process died"
            line = {"type": self.name, "kind": self.kinds[len(found)]}
            found.append(line | {"status": STOPPED, "cause": why})
        return found


if __name__ == "__main__":
    main()
