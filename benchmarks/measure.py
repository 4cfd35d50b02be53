"""Measures one case: makes its candidates, checks each against float64, times those that are right."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.floors import make_floors
from benchmarks.optim_cases import OptimCase
from benchmarks.oracle import Oracle
from benchmarks.peers import Peer, prepare
from benchmarks.timing import Plan, Run, Timing, interleave, make_clock, rotate

Row = dict[str, Any]


def measure(case: Case, peers: Mapping[str, Peer], plan: Plan, *, threads: int) -> list[Row]:
    """One row a candidate and a floor. A wrong candidate's row has status FAIL and no time."""
    oracle = Oracle(case)
    sets = [oracle.problem, *(oracle.problem.copy(case.device) for _ in range(1, input_sets(case)))]
    runs: dict[str, Run] = {}
    rows: list[Row] = []
    for name, peer in peers.items():
        try:
            ready = prepare(case, peer)
            prepared = [ready(one) for one in sets]
            complaint = oracle.complaint(name, prepared[0].results())
        except Exception as error:  # a peer may refuse a case: say so in its row, go on with the others
            rows.append(row(case, name, threads, status="ERROR", message=brief(error)))
            continue
        if complaint:
            rows.append(row(case, name, threads, status="FAIL", message=complaint))
            continue
        runs[name] = rotate([p.run for p in prepared])
    runs |= make_floors(case, sets=len(sets))
    timings = interleave(runs, make_clock(case.device, threads), plan)
    rows += [timed_row(case, name, threads, timing) for name, timing in timings.items()]
    return rows


def input_sets(case: Case) -> int:
    """How many sets of inputs take turns: on a GPU so many that none is still in the L2 cache."""
    if case.device != "cuda":
        return 1
    cache: int = torch.cuda.get_device_properties(0).L2_cache_size
    return min(16, max(2, 1 + math.ceil(2 * cache / case.tensor_bytes)))


def row(case: Case | OptimCase, candidate: str, threads: int, *, status: str, message: str = "") -> Row:
    """The fields that every row has."""
    return {
        "case": case.name,
        "op": case.op,
        "column": case.spec.column,
        "direction": case.direction,
        "shape": list(case.shape),
        "layout": case.layout,
        "dtype": case.dtype,
        "device": case.device,
        "threads": threads,
        "candidate": candidate,
        "status": status,
        "message": message,
    }


def timed_row(case: Case | OptimCase, candidate: str, threads: int, timing: Timing) -> Row:
    fields = row(case, candidate, threads, status="noisy" if timing.noisy else "ok")
    return fields | {
        "quantiles_us": timing.quantiles_us(),
        "calls_per_batch": timing.calls,
        "batches": len(timing.accepted),
        "rejected_batches": len(timing.rejected),
    }


def brief(error: Exception) -> str:
    """The first line of an exception and where it was raised."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]} ({where.name})"
