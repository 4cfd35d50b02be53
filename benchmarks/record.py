"""How a command measures its cases and keeps what it measured: worker processes, a results file, going on after a stop.

Each thread count is measured in a process of its own, whose thread pools start with that size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from benchmarks.machine import ROOT, sources
from benchmarks.measure import Row
from benchmarks.report import case_lines

UNRECORDED = ROOT / "build" / "benchmarks"


class Named(Protocol):
    @property
    def name(self) -> str: ...


AnyCase = TypeVar("AnyCase", bound=Named)


def add_options(p: argparse.ArgumentParser) -> None:
    """What every command takes that records."""
    p.add_argument("--threads", type=words, default=["1"], help="thread counts, e.g. 1,2")
    p.add_argument("--quick", action="store_true", help="about a second a case: to see that it works")
    p.add_argument("--minutes", type=float, help="begin no case after this time; what was measured is written")
    p.add_argument("--resume", action="store_true", help="go on with the results file: measured cases stay")
    p.add_argument("--list", action="store_true", help="print the names of the chosen cases and stop")
    p.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--done", type=Path, help=argparse.SUPPRESS)


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def list_names(names: Sequence[str]) -> int:
    """What --list prints, and the exit status: 2 where nothing was chosen."""
    if not names:
        print("no case has such a name; --list shows them all", file=sys.stderr)
        return 2
    print("\n".join(names))
    return 0


def record(
    module: str, args: argparse.Namespace, arguments: list[str], names: Sequence[str], out: Path, here: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """Measures what the results file lacks, and whether a worker ended badly (its finished cases are kept).

    module: the command, which is called again as a worker. here: what is to be said of machine and code.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    here = here | {"sources": sources(), "arguments": arguments, "threads": args.threads}
    kept = earlier_rows(out, here) if args.resume else []
    wanted = {(name, int(threads)) for name in names for threads in args.threads}
    write(out, here, kept, wanted)
    rows, died = measure_in_workers(module, args.threads, arguments, kept, unwritten(out))
    return write(out, here, rows, wanted), died


def unwritten(out: Path) -> Path:
    """Where a worker leaves its rows until they are in the results file: they outlive a run that is stopped."""
    return out.with_suffix(".part")


def write(out: Path, here: dict[str, Any], rows: list[Row], wanted: set[tuple[str, int]]) -> dict[str, Any]:
    """Writes the results file, with how many of the wanted cases it lacks; the rows left by workers are in it."""
    results = here | {"missing": len(wanted - measured(rows)), "rows": rows}
    out.write_text(json.dumps(results, indent=1) + "\n")
    unwritten(out).unlink(missing_ok=True)
    return results


def measured(rows: list[Row]) -> set[tuple[str, int]]:
    """(case, threads) of what has rows."""
    return {(row["case"], row["threads"]) for row in rows}


def earlier_rows(path: Path, here: dict[str, Any]) -> list[Row]:
    """The rows of a results file, if the same code was measured by the same versions on the same kind of machine.

    Another file is moved aside, not lost.
    """
    try:
        earlier = json.loads(path.read_text())
        left = unwritten(path).read_text().splitlines() if unwritten(path).exists() else []
    except (OSError, ValueError):
        return []
    same = all(earlier.get(key) == here[key] for key in ("sources", "versions", "machine"))
    if not same:
        aside = path.with_suffix(f".{int(path.stat().st_mtime)}.json")
        print(f"{path} was measured with other code, versions or machine: kept as {aside.name}", file=sys.stderr)
        path.rename(aside)
        return []
    return [*earlier["rows"], *map(json.loads, left)]


def measure_in_workers(
    module: str, thread_counts: Sequence[str], arguments: list[str], kept: list[Row], part: Path
) -> tuple[list[Row], bool]:
    """The rows of every thread count, and whether a worker ended badly (its finished cases are kept).

    kept: rows that need not be measured again; they come first. part: where workers append theirs.
    """
    rows: list[Row] = list(kept)
    died = False
    for threads in thread_counts:
        with tempfile.TemporaryDirectory() as folder:
            done = Path(folder) / "done.json"
            done.write_text(json.dumps([case for case, count in measured(kept) if count == int(threads)]))
            command = [sys.executable, "-m", module, *arguments]
            command += ["--threads", threads, "--worker", str(part), "--done", str(done)]
            environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
            status = subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode
            if status != 0:
                print(f"the worker with {threads} threads ended with status {status}", file=sys.stderr)
                died = True
    if part.exists():
        rows += [json.loads(line) for line in part.read_text().splitlines()]
    return rows, died


def work(args: argparse.Namespace, cases: Sequence[AnyCase], measure_one: Callable[[AnyCase, int], list[Row]]) -> int:
    """A worker: measures the cases in this process; a line of JSON a row, flushed case by case."""
    done = set(json.loads(args.done.read_text()))
    cases = [case for case in cases if case.name not in done]
    threads = int(args.threads[0])
    torch.set_num_threads(threads)
    end = time.monotonic() + 60 * (args.minutes or float("inf"))
    with args.worker.open("a") as part:
        for number, case in enumerate(cases, 1):
            if time.monotonic() > end:
                print(f"out of time: {len(cases) - number + 1} cases were not measured", flush=True)
                break
            rows = measure_one(case, threads)
            part.writelines(json.dumps(row) + "\n" for row in rows)
            part.flush()
            print(
                "\n".join([f"[{number}/{len(cases)}] {case.name}, threads: {threads}", *case_lines(rows)]),
                flush=True,
            )
    return 0
