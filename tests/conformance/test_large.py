"""Millions of values in odd shapes: grids of many programs, partial results of many splits, tails everywhere.

On GPUs alone: the CPU's kernels meet as many in `test_tables.py`, and float64 answers of this size take seconds each.
"""

from __future__ import annotations

import pytest

from fastnorm.testing import NormCase, ReluCase, RowCase
from fastnorm.testing.cases import PLAIN_LAYOUTS, Case, fits

from .backends import REQUIRED, Backend

FUSED = {"act": "full", "residual": "same"}
FORMS: tuple[Case, ...] = (
    ReluCase((7, 131, 67, 61)),
    ReluCase((4_000_037,), dtype="bf16"),
    NormCase((7, 131, 67, 61), **FUSED),
    NormCase((3, 1031, 37, 41), dtype="bf16", **FUSED),
    NormCase((1, 3, 1021, 1033)),
    NormCase((257, 65, 17, 13), dtype="bf16"),
    NormCase((65_537, 33), **FUSED),
    NormCase((2, 3, 67, 61, 59), dtype="fp16"),
    NormCase((5, 67, 101, 103), training=False, **FUSED),
    RowCase((4099, 1023), "layer", **FUSED),
    RowCase((262_147, 13), "layer", dtype="bf16"),
    RowCase((3, 1_000_003), "layer", **FUSED),
    RowCase((17, 131_071), "rms", dtype="bf16", bias=None),
    RowCase((5, 67, 101, 103), "layer", 3, **FUSED),
    RowCase((5, 65, 101, 103), "group", 13, **FUSED),
    RowCase((67, 96, 29, 31), "group", 32, dtype="bf16"),
    RowCase((5, 67, 101, 103), "instance", **FUSED),
    RowCase((7, 1031, 23, 29), "position", dtype="bf16", **FUSED),
)
CASES = [
    case if layout == "contiguous" else case.but(layout=layout)
    for case in FORMS
    for layout in PLAIN_LAYOUTS
    if layout == "contiguous" or (not isinstance(case, ReluCase) and fits(case.shape, layout))
]


@pytest.mark.parametrize("backend", [b for b in REQUIRED if b.device == "cuda"], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.column}-{case.name}")
def test_large(case: Case, backend: Backend) -> None:
    backend.conform(case)
