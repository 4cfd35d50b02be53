"""The same bits from run to run, and on the CPU whatever the number of threads."""

from __future__ import annotations

import pytest
import torch

from fastnorm.testing import NormCase, ReluCase, RowCase, run
from fastnorm.testing.cases import Case, fits
from fastnorm.testing.problems import build
from fastnorm.testing.row_tables import FUSED, GROUP, LAYER, rms

from .backends import FAST, REQUIRED, Backend

# Below and above the size from which work is shared among threads, with few and with many channels.
SHAPES = (
    (5, 7, 3, 11),
    (31, 1, 37, 41),
    (67, 2, 41, 43),
    (2, 3, 211, 199),
    (2, 1, 307, 311),
    (3, 67, 23, 29),
    (5, 257, 11, 13),
    (4099, 17),
    (100_003, 1),
    (50_021, 3),
    (7, 1031),
    (3, 5, 9973),
    (2, 3, 7, 41, 43),
)
CASES = [
    NormCase(shape, layout, dtype, act="full", residual="same")
    for shape in SHAPES
    for layout in ("contiguous", "channels_last")
    if layout == "contiguous" or len(shape) in (4, 5)
    for dtype in ("fp32", "bf16")
] + [
    NormCase((67, 2, 41, 43)),
    NormCase((5, 257, 11, 13), "every_second"),
    NormCase((67, 2, 41, 43), "channel_slice", weight=None),
    NormCase((3, 67, 23, 29), "transposed", training=False),
    NormCase((2, 3, 211, 199), "contiguous", "fp64", act="max_leak"),
    ReluCase((67, 2, 41, 43), act="max_leak"),
    ReluCase((67, 2, 41, 43), "transposed"),
    ReluCase((100_003,)),
]

# Rows shared among threads, rows cut into pieces, and sums over many rows into few and into many parameters.
ROW_FORMS = (
    RowCase((4099, 17), "layer"),
    RowCase((50_021, 2), "layer"),
    RowCase((2, 100_003), "layer"),
    RowCase((67, 2, 41, 43), "layer", 3),
    rms((7, 9973)),
    RowCase((67, 4, 41, 43), "group", 2),
    RowCase((3, 64, 23, 29), "group", 32),
    RowCase((2, 6, 211, 199), "group", 3),
    RowCase((4099, 12), "group", 4),
    RowCase((3, 67, 23, 29), "instance"),
    RowCase((2, 3, 7, 41, 43), "instance"),
    RowCase((5, 257, 11, 13), "position"),
    RowCase((2, 3, 211, 199), "position"),
)
CASES += [
    base.but(layout=layout, dtype=("fp32", "bf16")[(index + (layout == "channels_last")) % 2], **FUSED)
    for index, base in enumerate(ROW_FORMS)
    for layout in ("contiguous", "channels_last")
    if fits(base.shape, layout)
] + [
    RowCase((67, 2, 41, 43), "layer", 3, "every_second"),
    RowCase((67, 4, 41, 43), "group", 2, "contiguous", "fp64"),
    RowCase((3, 67, 23, 29), "instance", layout="transposed", weight=None),
]


def outputs(case: Case, backend: Backend) -> dict[str, torch.Tensor]:
    return run(case, build(case).copy(backend.device), backend.namespace)


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], what: str) -> None:
    for name in a:
        assert torch.equal(a[name], b[name]), f"{name} differs {what}"


@pytest.mark.parametrize("backend", FAST, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_repeat(case: Case, backend: Backend) -> None:
    first = outputs(case, backend)
    for _ in range(2):
        assert_same(first, outputs(case, backend), "from run to run")


@pytest.mark.parametrize("backend", [b for b in REQUIRED if b.name == "cpu"], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_threads(case: Case, backend: Backend, threads: None) -> None:
    """1, 2, 3 and 5 threads: the work is cut by the tensor's size, not by the number of threads."""
    torch.set_num_threads(1)
    first = outputs(case, backend)
    for count in (2, 3, 5):
        torch.set_num_threads(count)
        assert_same(first, outputs(case, backend), f"between 1 and {count} threads")


@pytest.mark.parametrize("backend", FAST, ids=str)
@pytest.mark.parametrize("base", (NormCase((5, 7, 3, 11)), LAYER, GROUP), ids=lambda c: c.name)
def test_python_threads(base: NormCase | RowCase, backend: Backend) -> None:
    """Several Python threads at once get what one gets: no scratch memory is shared.

    Not for Triton's interpreter, which keeps the running program's id in a global of its own.
    """
    from concurrent.futures import ThreadPoolExecutor

    cases = [base.but(seed=s, act="full") for s in range(4)]
    single = [outputs(case, backend) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for alone, together in zip(single, pool.map(lambda c: outputs(c, backend), cases), strict=True):
                assert_same(alone, together, "among Python threads")
