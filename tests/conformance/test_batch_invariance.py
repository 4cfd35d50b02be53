"""A row's forward result has the same bits alone, in a part of its batch, and in all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastnorm.testing import RowCase, forward
from fastnorm.testing.cases import fits
from fastnorm.testing.problems import build
from fastnorm.testing.row_tables import FUSED, KINDS, rms

from .backends import REQUIRED, Backend, over

# Besides one of each kind: more rows than a tile, rows of several blocks, and samples past a thread's share.
FORMS = (
    *KINDS,
    RowCase((67, 3), "layer"),
    RowCase((131, 67), "layer"),
    RowCase((7, 40_009), "layer"),
    RowCase((17, 33, 13, 11), "layer", 3),
    rms((33, 1031)),
    RowCase((5, 64, 28, 28), "group", 32),
    RowCase((3, 6, 101, 103), "group", 2),
    RowCase((33, 12), "group", 4),
    RowCase((5, 67, 13, 11), "instance"),
    RowCase((3, 3, 101, 103), "instance"),
    RowCase((5, 67, 13, 11), "position"),
)
CASES = [
    base.but(layout=layout, dtype=dtype, **FUSED)
    for base in FORMS
    for layout in ("contiguous", "channels_last")
    if fits(base.shape, layout)
    for dtype in ("fp32", "bf16")
    if dtype == "fp32" or base in KINDS
]


@pytest.fixture(autouse=True)
def asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU it always holds; the Triton kernels cut long sets by their length alone only if asked to."""
    monkeypatch.setenv("FASTNORM_BATCH_INVARIANT", "1")


@over(CASES, interpret_every=3)
def test_a_row_does_not_see_its_neighbours(case: RowCase, backend: Backend) -> None:
    p = build(case).copy(backend.device)
    whole = forward(case, p, backend.namespace)
    count = len(p.x)
    for first, last in ((0, 1), (count - 1, count), (1, count), (0, count // 2 + 1)):
        rows = slice(first, last)
        part = replace(p, x=p.x[rows], residual=p.residual[rows])
        sub = case.but(shape=(last - first, *case.shape[1:]))
        assert torch.equal(forward(sub, part, backend.namespace), whole[rows]), (first, last)


@pytest.mark.parametrize("backend", [b for b in REQUIRED if b.name == "cpu"], ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case.dtype == "fp32"], ids=lambda c: c.name)
def test_nor_the_threads_that_share_the_batch(case: RowCase, backend: Backend, threads: None) -> None:
    """A batch of one, computed by one thread, against its row of a batch shared by several."""
    p = build(case)
    torch.set_num_threads(3)
    whole = forward(case, p, backend.namespace)
    torch.set_num_threads(1)
    part = replace(p, x=p.x[1:2], residual=p.residual[1:2])
    sub = case.but(shape=(1, *case.shape[1:]))
    assert torch.equal(forward(sub, part, backend.namespace), whole[1:2])
