"""`python -m benchmarks.gpu OUT_DIR`: everything a machine with a GPU should say, as one PASS/FAIL table.

Written for a bare machine: Python, torch, triton, pytest and a compiler, no network, no virtual environment, fastnorm
not installed. Builds the extension in place, runs the tests on the GPU's backends, compute-sanitizer and CUDA graphs,
trains the demo on the GPU and measures `benchmarks.compare` there. OUT_DIR receives gpu.json, compare.json and
log.txt; called again with the same OUT_DIR, code and machine, it goes on from what has passed.

With --dry-run nothing is launched: commands are printed, tests are collected, cases are listed, and every launch that
the cases would make is computed.

Exit status: 0 when all steps passed, 1 when one failed, 2 when none failed but something is left to run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import table
from benchmarks.gpu.selection import UnknownName, choose, columns
from benchmarks.gpu.session import FAIL, PART, Record, Session
from benchmarks.gpu.steps import STEPS, take
from benchmarks.machine import describe, sources


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("out", type=Path, metavar="OUT_DIR")
    p.add_argument("--dry-run", action="store_true", help="walk all of it but the launches")
    p.add_argument("--minutes", type=float, default=30, help="time for everything (default: %(default)s)")
    p.add_argument(
        "--only",
        type=lambda text: [name for name in text.split(",") if name],
        default=[],
        help=f"steps ({', '.join(STEPS)}; tests; sanitizer) and op columns (norms, activations, batch_norm, ...)",
    )
    p.add_argument("--quick", action="store_true", help="fewer rounds in compare")
    p.add_argument("--commit", help="of a checkout without its history: what it is a copy of")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    p = parser()
    args = p.parse_args(argv)
    try:
        steps, chosen = choose(args.only, list(STEPS), columns())
    except UnknownName as error:
        p.error(str(error))
    os.environ.pop("TRITON_INTERPRET", None)  # here every kernel is the GPU's
    args.out.mkdir(parents=True, exist_ok=True)
    session = Session(args.out.resolve(), time.time() + 60 * args.minutes, args.dry_run, args.quick, chosen)
    here = describe()
    source = {
        "sources": sources(),
        "gpu": here["machine"]["gpu"],
        "versions": here["versions"],
        "dry_run": args.dry_run,
    }
    if args.commit:
        here["commit"] = {"hash": args.commit, "dirty": None}
    record = start(session, source)
    for step in steps:
        begun = time.time()
        outcome = take(step, session, record)
        if outcome is not record.passed(step, chosen):
            outcome.seconds, outcome.columns = round(time.time() - begun, 1), chosen
            record.add(outcome)
        record.write(here)
    return finish(session, record, here)


def start(session: Session, source: dict[str, object]) -> Record:
    """What an earlier run of the same code on the same machine left; of any other, nothing stays."""
    record = Record.resume(session.out / "gpu.json", source)
    if not record.outcomes:
        for name in ("passed.txt", "log.txt"):
            (session.out / name).unlink(missing_ok=True)
    record.write({})
    return record


def finish(session: Session, record: Record, here: dict[str, object]) -> int:
    """Prints the table, writes gpu.json."""
    measured = session.out / "compare.json"
    compared = any(o.step == "compare" for o in record.outcomes) and not session.dry_run
    targets = table.target_rows(measured) if compared and measured.exists() else []
    record.write(here | {"targets": targets})
    print("\n".join(["", *table.lines(record.outcomes, targets)]))
    states = {outcome.status for outcome in record.outcomes}
    return 1 if FAIL in states else 2 if PART in states else 0


if __name__ == "__main__":
    sys.exit(main())
