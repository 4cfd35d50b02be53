"""What the pytest-benchmark suites share: one benchmark of one candidate in one case."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from benchmarks.cases import FRESH_PAGES, FRESH_ROWS, Case, all_cases, select
from benchmarks.oracle import Oracle
from benchmarks.peers import PEERS
from benchmarks.prepare import prepare

CANDIDATES = ("eager", "fastnorm")


def suite_cases(column: str) -> list[Any]:
    """The fp32 cases of a column, without the 100 MB ones, as pytest parameters."""
    cases = select(all_cases(), columns=[column], dtypes=["fp32"])
    return [pytest.param(case, id=case.name) for case in cases if case.shape not in (FRESH_PAGES, FRESH_ROWS)]


def run_benchmark(benchmark: Any, case: Case, candidate: str) -> None:
    """Checks the candidate against float64, then hands it to pytest-benchmark, on one thread's CPU time."""
    oracle = Oracle(case)
    prepared = prepare(case, PEERS[candidate])(oracle.problem)
    complaint = oracle.complaint(candidate, prepared.results())
    if complaint:
        pytest.fail(complaint)
    size = "x".join(str(n) for n in case.shape)
    benchmark.group = f"{case.op} {case.direction} {size} {case.layout}"
    benchmark.extra_info["torch"] = torch.__version__
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        benchmark(prepared.run)
    finally:
        torch.set_num_threads(threads)


OPTIONS = {
    "timer": time.thread_time,
    "min_rounds": 5,
    "max_time": 0.3,
    "warmup": True,
    "warmup_iterations": 3,
}
