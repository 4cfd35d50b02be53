"""`python -m benchmarks.compare`: every candidate against eager PyTorch, torch.compile and the floor.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import DTYPES, LAYOUTS, Case, all_cases, select
from benchmarks.machine import ROOT, describe, sources
from benchmarks.measure import Row, measure
from benchmarks.optim import measure_optim
from benchmarks.optim_cases import OptimCase, optim_cases
from benchmarks.peers import peers_of
from benchmarks.report import case_lines, summary_lines
from fastnorm.timing import QUICK, Plan

UNRECORDED = ROOT / "build" / "benchmarks"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    p.add_argument("--op", type=words, default=[], help="columns or ops: batch_norm,general_relu,...")
    p.add_argument("--case", type=words, default=[], metavar="SUBSTR", help="cases whose name contains one of these")
    p.add_argument("--dtype", type=words, default=list(DTYPES), help="fp32,bf16")
    p.add_argument("--layout", type=words, default=list(LAYOUTS), help="contiguous,channels_last")
    p.add_argument("--threads", type=words, default=["1"], help="thread counts, e.g. 1,2")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--quick", action="store_true", help="about a second a case: to see that it works")
    p.add_argument("--minutes", type=float, help="begin no case after this time; what was measured is written")
    p.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    p.add_argument("--out", type=Path, help="results file; the default is build/benchmarks/<device>.json")
    p.add_argument("--resume", action="store_true", help="go on with the results file: measured cases stay")
    p.add_argument("--list", action="store_true", help="print the names of the chosen cases and stop")
    p.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--done", type=Path, help=argparse.SUPPRESS)
    return p


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def chosen(args: argparse.Namespace) -> list[Case | OptimCase]:
    cases: list[Case | OptimCase] = [*all_cases(args.device), *optim_cases(args.device)]
    return select(cases, columns=args.op, substrings=args.case, dtypes=args.dtype, layouts=args.layout)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when a candidate was wrong or a worker died, 2 when nothing was chosen."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(arguments)
    cases = chosen(args)
    if not cases:
        print("no case has such a name; --list shows them all", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    if args.worker is not None:
        done = set(json.loads(args.done.read_text()))
        return work(args, [case for case in cases if case.name not in done])
    out = args.out or UNRECORDED / f"{args.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    here = describe() | {"sources": sources(), "arguments": arguments, "threads": args.threads}
    kept = earlier_rows(out, here) if args.resume else []
    wanted = {(case.name, int(threads)) for case in cases for threads in args.threads}
    write(out, here, kept, wanted)
    rows, died = measure_in_workers(args, arguments, kept, unwritten(out))
    results = write(out, here, rows, wanted)
    print("\n".join(["", *summary_lines(results), "", f"written to {out}"]))
    wrong = [row for row in rows if row["candidate"].startswith("fastnorm") and row["status"] in ("FAIL", "ERROR")]
    return 1 if wrong or died else 0


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
    """The rows of a results file, if the same code was measured by the same versions on the same kind of machine."""
    try:
        earlier = json.loads(path.read_text())
        left = unwritten(path).read_text().splitlines() if unwritten(path).exists() else []
    except (OSError, ValueError):
        return []
    same = all(earlier.get(key) == here[key] for key in ("sources", "versions", "machine"))
    return [*earlier["rows"], *map(json.loads, left)] if same else []


def measure_in_workers(
    args: argparse.Namespace, arguments: list[str], kept: list[Row], part: Path
) -> tuple[list[Row], bool]:
    """The rows of every thread count, and whether a worker ended badly (its finished cases are kept).

    kept: rows that need not be measured again; they come first. part: where workers append theirs.
    """
    rows: list[Row] = list(kept)
    died = False
    for threads in args.threads:
        with tempfile.TemporaryDirectory() as folder:
            done = Path(folder) / "done.json"
            done.write_text(json.dumps([case for case, count in measured(kept) if count == int(threads)]))
            command = [sys.executable, "-m", "benchmarks.compare", *arguments]
            command += ["--threads", threads, "--worker", str(part), "--done", str(done)]
            environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
            status = subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode
            if status != 0:
                print(f"the worker with {threads} threads ended with status {status}", file=sys.stderr)
                died = True
    if part.exists():
        rows += [json.loads(line) for line in part.read_text().splitlines()]
    return rows, died


def work(args: argparse.Namespace, cases: list[Case | OptimCase]) -> int:
    """Measures the cases in this process; a line of JSON a row, flushed case by case."""
    threads = int(args.threads[0])
    torch.set_num_threads(threads)
    plan = QUICK if args.quick else Plan()
    end = time.monotonic() + 60 * (args.minutes or float("inf"))
    with args.worker.open("a") as part:
        for number, case in enumerate(cases, 1):
            if time.monotonic() > end:
                print(f"out of time: {len(cases) - number + 1} cases were not measured", flush=True)
                break
            if isinstance(case, OptimCase):
                rows = measure_optim(case, plan, threads=threads)
            else:
                rows = measure(case, peers_of(case, compile=args.compile), plan, threads=threads)
            part.writelines(json.dumps(row) + "\n" for row in rows)
            part.flush()
            print(
                "\n".join([f"[{number}/{len(cases)}] {case.name}, threads: {threads}", *case_lines(rows)]),
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
