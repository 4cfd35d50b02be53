"""The kernels of the instruction sets that this CPU has: a short list, each in a process of its own.

All the other tests run on the best set. So it is left out here, but not in the sanitizer build, which runs few of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .backends import REQUIRED, SANITIZED, instruction_sets

HERE = Path(__file__).parent
SETS = instruction_sets() if SANITIZED else instruction_sets()[:-1]
SHORT = (
    "test_ties.py",
    "test_tables.py::test_batch_norm_dtypes",
    "test_tables.py::test_batch_norm_upstream",
    "test_row_tables.py::test_dtypes",
    "test_row_tables.py::test_upstream",
    "test_activation_stats.py::test_cases",
    "test_activation_stats.py::test_long_cases",
    "test_activation_stats.py::test_every_backend_has_the_same_edges",
    "test_optim_oracle.py::test_every_combination_of_switches",
    "test_optim_layouts.py::test_bits_do_not_depend_on_threads_or_place",
    "test_optim_layouts.py::test_nothing_beyond_the_end_is_touched",
    "../unit/test_optim_half.py::test_random_rounding_is_the_references_bit_for_bit",
    "../unit/test_optim_half.py::test_clipping_inside_the_step",
    "../unit/test_optim_functional.py::test_adams_fused_backward_is_the_references",
)


@pytest.mark.skipif("FASTNORM_CPU" in os.environ, reason="this is one of the processes that the test starts")
@pytest.mark.skipif(all(b.name != "cpu" for b in REQUIRED), reason="the native CPU kernels are not under test")
@pytest.mark.parametrize("isa", SETS)
def test_every_instruction_set(isa: str) -> None:
    environment = {**os.environ, "FASTNORM_CPU": isa, "FASTNORM_TEST_BACKENDS": "cpu"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        "not eager",
        *(str(HERE / name) for name in SHORT),
    ]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
