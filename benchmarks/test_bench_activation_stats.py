"""activation_stats under pytest-benchmark: `make bench`, grouped by op and shape."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import Case
from benchmarks.suite import CANDIDATES, OPTIONS, run_benchmark, suite_cases


@pytest.mark.benchmark(**OPTIONS)
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("case", suite_cases("activation_stats"))
def test_activation_stats(benchmark: Any, case: Case, candidate: str) -> None:
    run_benchmark(benchmark, case, candidate)
