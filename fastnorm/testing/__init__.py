"""What proves a backend right: the case table, the float64 oracle, the one rule. Needs nothing but torch."""

from __future__ import annotations

from fastnorm.testing.cases import ACTS, DTYPES, Act, NormCase, ReluCase, RowCase
from fastnorm.testing.compare import Expectation, check, passes, ulp
from fastnorm.testing.oracle import norm_problem, relu_problem
from fastnorm.testing.row_oracle import row_problem
from fastnorm.testing.run import conform, forward, run, solved
from fastnorm.testing.stats import StatsCase

__all__ = [
    "ACTS",
    "DTYPES",
    "Act",
    "Expectation",
    "NormCase",
    "ReluCase",
    "RowCase",
    "StatsCase",
    "check",
    "conform",
    "forward",
    "norm_problem",
    "passes",
    "relu_problem",
    "row_problem",
    "run",
    "solved",
    "ulp",
]
