"""The optimizers under pytest-benchmark: `make bench`, grouped by op and list of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.optim import Problem, candidates
from benchmarks.optim_cases import OptimCase, optim_cases
from benchmarks.suite import OPTIONS

CASES = [c for c in optim_cases() if c.dtype == "fp32" and c.parameters in ("resnet18", "1000x64")]


@pytest.mark.benchmark(**OPTIONS)
@pytest.mark.parametrize("candidate", ("eager", "fastnorm"))
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_optim(benchmark: Any, case: OptimCase, candidate: str) -> None:
    problem = Problem(case)
    run = candidates(problem)[candidate]()
    complaint = problem.complaint(candidate, run)
    if complaint:
        pytest.fail(complaint)
    benchmark.group = f"{case.op} {case.parameters}"
    benchmark.extra_info["torch"] = torch.__version__
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        benchmark(run)
    finally:
        torch.set_num_threads(threads)
