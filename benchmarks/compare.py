"""`python -m benchmarks.compare`: every candidate against eager PyTorch, torch.compile and the floor."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import DTYPES, LAYOUTS, Case, all_cases, select
from benchmarks.machine import describe
from benchmarks.measure import Row, measure
from benchmarks.optim import measure_optim
from benchmarks.optim_cases import OptimCase, optim_cases
from benchmarks.peers import peers_of
from benchmarks.record import UNRECORDED, add_options, list_names, record, words, work
from benchmarks.report import summary_lines
from fastnorm.timing import QUICK, Plan


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    p.add_argument("--op", type=words, default=[], help="columns or ops: batch_norm,general_relu,...")
    p.add_argument("--case", type=words, default=[], metavar="SUBSTR", help="cases whose name contains one of these")
    p.add_argument("--dtype", type=words, default=list(DTYPES), help="fp32,bf16")
    p.add_argument("--layout", type=words, default=list(LAYOUTS), help="contiguous,channels_last")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    p.add_argument("--out", type=Path, help="results file; the default is build/benchmarks/<device>.json")
    add_options(p)
    return p


def chosen(args: argparse.Namespace) -> list[Case | OptimCase]:
    cases: list[Case | OptimCase] = [*all_cases(args.device), *optim_cases(args.device)]
    return select(cases, columns=args.op, substrings=args.case, dtypes=args.dtype, layouts=args.layout)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when a candidate was wrong or a worker died, 2 when nothing was chosen."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(arguments)
    cases = chosen(args)
    if not cases or args.list:
        return list_names([case.name for case in cases])
    if args.worker is not None:
        return work(args, cases, lambda case, threads: measure_one(case, args, threads))
    out = args.out or UNRECORDED / f"{args.device}.json"
    results, died = record("benchmarks.compare", args, arguments, [case.name for case in cases], out, describe())
    print("\n".join(["", *summary_lines(results), "", f"written to {out}"]))
    candidates = [row for row in results["rows"] if row["candidate"].startswith("fastnorm")]
    return 1 if died or any(row["status"] in ("FAIL", "ERROR") for row in candidates) else 0


def measure_one(case: Case | OptimCase, args: argparse.Namespace, threads: int) -> list[Row]:
    plan = QUICK if args.quick else Plan()
    if isinstance(case, OptimCase):
        return measure_optim(case, plan, threads=threads)
    return measure(case, peers_of(case, compile=args.compile), plan, threads=threads)


if __name__ == "__main__":
    sys.exit(main())
