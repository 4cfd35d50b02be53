"""activation_stats on every backend: the rule, exact counts, edges, the same bits for any threads, torch's checks."""

from __future__ import annotations

import math

import pytest
import torch

from fastnorm.functional import activation_stats
from fastnorm.ops import OPS
from fastnorm.testing import StatsCase, check
from fastnorm.testing.stats import answers, long_stats_cases, stats_cases, stats_problem, stats_results

from .backends import DEVICE, REQUIRED, Backend, each_backend, over, random
from .test_opcheck import LAYOUTS as OPCHECKED
from .test_opcheck import LAYOUTS_OF_BACKENDS, opcheck

pytestmark = pytest.mark.column("activation_stats")


@over(stats_cases(), interpret_every=2)
def test_cases(case: StatsCase, backend: Backend) -> None:
    backend.conform(case)


@over(long_stats_cases())
def test_long_cases(case: StatsCase, backend: Backend) -> None:
    backend.conform(case)


# More values than one program of the interpreter takes: their results are merged.
MERGED = [
    StatsCase((12_301,), dtype=dtype, data=data)
    for dtype in ("fp32", "bf16", "fp64")
    for data in ("normal", "drift", "offset_1e4", "scale_1e20", "nan")
]


@pytest.mark.parametrize("case", MERGED, ids=lambda case: case.name)
@each_backend()
def test_merged_results(case: StatsCase, backend: Backend) -> None:
    backend.conform(case)


# Ends of bins and of the range, exact in every dtype; 0.25 is the width of a default bin.
EDGES = (0.0, -0.0, 0.25, -0.25, 0.5, 9.75, -9.75, 10.0, -10.0, 10.5, 11.0, math.inf, -math.inf, math.nan, 2.0**-20)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16), ids=str)
@each_backend()
def test_edges_as_histc(dtype: torch.dtype, backend: Backend) -> None:
    x = torch.tensor(EDGES, dtype=torch.float64).to(dtype)
    hist = activation_stats(x.to(DEVICE), backend=backend.namespace)[2].cpu()
    assert torch.equal(hist.double(), torch.histc(x.double().abs(), 40, 0, 10))
    assert hist.sum() == 10 and hist[0] == 3 and hist[1] == 2 and hist[39] == 4


@pytest.mark.parametrize("bins, low, high", ((7, 0.3, 1.7), (10, 0.0, 1.0), (3, 0.1, 0.4), (49, 0.0, 4.9)))
@each_backend()
def test_every_backend_has_the_same_edges(bins: int, low: float, high: float, backend: Backend) -> None:
    """Numbers at and next to the edges, where rounding decides: A2 says how it does."""
    edges = torch.linspace(low, high, bins + 1)
    x = torch.cat([edges, *(edges.nextafter(torch.tensor(end)) for end in (-math.inf, math.inf))])
    got = activation_stats(x.to(DEVICE), bins, (low, high), backend=backend.namespace)[2].cpu()
    assert torch.equal(got, activation_stats(x, bins, (low, high), backend="eager")[2])


@pytest.mark.parametrize("backend", [b for b in REQUIRED if b.name == "cpu"], ids=str)
@pytest.mark.parametrize(
    "case", [c for c in long_stats_cases() if c.dtype in ("fp32", "bf16")], ids=lambda case: case.name
)
def test_threads(case: StatsCase, backend: Backend, threads: None) -> None:
    x, _ = stats_problem(case)
    torch.set_num_threads(1)
    first = stats_results(case, x, backend.namespace)
    for count in (2, 3, 5):
        torch.set_num_threads(count)
        for name, got in stats_results(case, x, backend.namespace).items():
            assert torch.equal(got, first[name]), f"{name} differs between 1 and {count} threads"


@each_backend(fast=True)
def test_a_shift_that_lies_badly(backend: Backend) -> None:
    """Everything that C++ looks at for a value near the mean is far off it: it has to look again (A1)."""
    x = random(100_000) * 0.01
    for place in range(8):
        x[12_500 * place : 12_500 * place + 16] = 1000.0
    wanted = answers(StatsCase((100_000,)), x.cpu())
    got = activation_stats(x, backend=backend.namespace)
    for name, value in zip(("mean", "std"), got, strict=False):
        check(value, wanted[name], f"{name} on {backend}")


@pytest.mark.parametrize("backend", [b for b in REQUIRED if b.name == "cpu"], ids=str)
def test_bits_do_not_depend_on_place(backend: Backend) -> None:
    """Wherever the tensor begins in memory."""
    values = random(40_001)
    wanted = activation_stats(values, backend=backend.namespace)
    for offset in (1, 3, 5, 17):
        moved = torch.cat([torch.full((offset,), torch.nan), values])[offset:]
        got = activation_stats(moved, backend=backend.namespace)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)), offset


# The mean of nothing is NaN, which these checks take for unequal to itself.
@pytest.mark.parametrize("layout, backend", [pair for pair in LAYOUTS_OF_BACKENDS if pair[0] != "empty"], ids=str)
def test_opcheck(layout: str, backend: Backend) -> None:
    opcheck(OPS[backend.namespace].activation_stats_fwd, (OPCHECKED[layout](), 40, 0.0, 10.0))


@each_backend()
def test_no_gradient_flows(backend: Backend) -> None:
    x = random(5, 7).requires_grad_()
    assert not any(t.requires_grad for t in activation_stats(x * 2, backend=backend.namespace))


@each_backend()
def test_more_values_than_a_16_bit_counter_holds(backend: Backend) -> None:
    """All in one bin; few of the interpreter's programs."""
    n = 70_001 if backend.slow else 300_001
    mean, std, hist = activation_stats(torch.full((n,), 0.75, device=DEVICE), backend=backend.namespace)
    assert hist[3] == n == hist.sum() and mean == 0.75 and std == 0


@pytest.mark.parametrize("bins", (0, -1, 256, 2.0, "40", None))
def test_wrong_bins(bins: object) -> None:
    with pytest.raises(ValueError, match="bins must be an int from 1 to 255"):
        activation_stats(torch.ones(3), bins)  # type: ignore[arg-type]


@pytest.mark.parametrize("ends", ((0.0, 0.0), (1.0, 0.0), (0.0, math.inf), (math.nan, 1.0), (-math.inf, 0.0)))
def test_wrong_range(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="range must be two finite numbers"):
        activation_stats(torch.ones(3), range=ends)


def test_wrong_dtype() -> None:
    with pytest.raises(NotImplementedError, match="activation_stats takes"):
        activation_stats(torch.ones(3, dtype=torch.int64))
