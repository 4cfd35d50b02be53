"""Measures one case: makes its candidates, checks each against float64, times those that are right."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.floors import make_floors
from benchmarks.graph_replay import captured, side_stream
from benchmarks.model_cases import ModelCase
from benchmarks.optim_cases import OptimCase
from benchmarks.oracle import Oracle
from benchmarks.peers import Peer
from benchmarks.prepare import prepare
from fastnorm.timing import HostClock, Plan, Run, Timing, interleave, make_clock, rotate

Row = dict[str, Any]


def measure(case: Case, peers: Mapping[str, Peer], plan: Plan, *, threads: int) -> list[Row]:
    """One row a candidate and a floor. A wrong candidate's row has status FAIL and no time."""
    with side_stream(case.device):
        return measure_here(case, peers, plan, threads)


def measure_here(case: Case, peers: Mapping[str, Peer], plan: Plan, threads: int) -> list[Row]:
    """On the current stream, if there are streams."""
    oracle = Oracle(case)
    sets = [oracle.problem, *(oracle.problem.copy(case.device) for _ in range(1, input_sets(case)))]
    runs: dict[str, list[Run]] = {}
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
        runs[name] = [p.run for p in prepared]
    replays = {}
    if case.device == "cuda" and not case.spec.module:  # modules are timed as they are called
        inputs = [t for one in sets for t in one.tensors().values()]
        replays = {name: replay for name, own in runs.items() if (replay := captured(own, inputs)) is not None}
    timed = {name: replays.get(name) or rotate(own) for name, own in runs.items()}
    timed |= make_floors(case, sets=len(sets))
    clock = HostClock() if case.direction == "call" else make_clock(case.device, threads)
    for name, timing in interleave(timed, clock, plan).items():
        if name in replays:
            timing.divide(len(sets))
        rows.append(timed_row(case, name, threads, timing) | ({"clock": "graph"} if name in replays else {}))
    return rows


def input_sets(case: Case) -> int:
    """How many sets of inputs take turns: on a GPU so many that x alone is four times the L2 cache."""
    if case.device != "cuda":
        return 1
    cache: int = torch.cuda.get_device_properties(0).L2_cache_size
    return min(32, max(2, math.ceil(4 * cache / case.tensor_bytes)))


def row(case: Case | OptimCase | ModelCase, candidate: str, threads: int, *, status: str, message: str = "") -> Row:
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


def timed_row(case: Case | OptimCase | ModelCase, candidate: str, threads: int, timing: Timing) -> Row:
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
