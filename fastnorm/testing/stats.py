"""Cases of activation_stats, what float64 makes of them, and the run that holds a backend to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from fastnorm.functional import activation_stats
from fastnorm.testing.cases import DTYPES, LAYOUTS, SHAPES, case_name, fits
from fastnorm.testing.compare import Expectation, check
from fastnorm.testing.composed import arithmetic
from fastnorm.testing.layouts import lay_out, storage_bits, to_device
from fastnorm.testing.problems import DATA, Draw
from fastnorm.testing.rounding import Statistics, unit_of

NAMES = ("mean", "std", "hist")
# What sums, squares or counts may get wrong.
LOSSY = (
    *("offset_1e2", "offset_1e4", "narrow_100", "constant", "zeros", "minus_zeros", "two_values", "drift"),
    *("outlier_first", "outlier", "tiny", "nan", "inf", "both_infs"),
)


@dataclass(frozen=True)
class StatsCase:
    """activation_stats over one tensor."""

    column: ClassVar[str] = "activation_stats"
    shape: tuple[int, ...]
    layout: str = "contiguous"
    dtype: str = "fp32"
    bins: int = 40
    low: float = 0.0
    high: float = 10.0
    data: str = "normal"
    seed: int = 0

    @property
    def name(self) -> str:
        return case_name(self, StatsCase((1,)))


def stats_cases() -> list[StatsCase]:
    """Every shape and layout, every dtype, ranges and numbers of bins, data that sums or squares may lose."""
    cases = [StatsCase(shape, layout) for shape in SHAPES for layout in LAYOUTS if fits(shape, layout)]
    cases += [StatsCase(shape, dtype=dtype) for shape in ((), (1,), (4099,), (5, 7, 3, 11)) for dtype in DTYPES]
    cases += [
        StatsCase((67, 31), dtype=dtype, bins=bins, low=low, high=high)
        for dtype in ("fp32", "bf16")
        for bins, low, high in ((1, 0.0, 10.0), (7, 0.3, 1.7), (64, -1.0, 0.5), (255, 0.0, 3.0), (3, 5.0, 5.5))
    ]
    cases += [StatsCase((13, 17, 9), dtype=dtype, data=data) for data in LOSSY for dtype in ("fp32", "bf16")]
    cases += [StatsCase((13, 17, 9), data=f"scale_1e{power}") for power in (18, 19, 20)]
    return [*cases, StatsCase((0, 3)), StatsCase((2, 0, 5), dtype="bf16")]


def long_stats_cases() -> list[StatsCase]:
    """Longer than a chunk of the C++ kernel, and around its ends."""
    sizes = [16384 * k + more for k in (1, 2, 5) for more in (-1, 0, 1)]
    cases = [StatsCase((size,), dtype=dtype) for size in sizes for dtype in DTYPES]
    cases += [StatsCase((101, 103, 37), data=data) for data in ("offset_1e4", "drift", "outlier", "scale_1e19")]
    return [*cases, StatsCase((17, 33, 13, 11), "channels_last"), StatsCase((17, 33, 13, 11), "every_second")]


def place(x: Tensor, case: StatsCase) -> Tensor:
    """Where each |x| lies among the bins, in float64."""
    return (x.to(torch.float64).abs() - case.low) * (case.bins / (case.high - case.low))


def off_the_edges(x: Tensor, case: StatsCase) -> Tensor:
    """x with what lies so near an edge that rounding decides its bin put into a bin's middle.

    Not where a bin's width is a power of two, as in the default: there every place is exact, edges included.
    """
    if math.frexp(case.bins / (case.high - case.low))[0] == 0.5 and case.low == 0.0:
        return x
    near = (place(x, case) - place(x, case).round()).abs() < 1e-3
    width = (case.high - case.low) / case.bins
    return torch.where(near, case.low + (math.ceil(max(0.0, -case.low / width)) + 0.5) * width, x)


@lru_cache(maxsize=16)
def stats_problem(case: StatsCase) -> tuple[Tensor, dict[str, Expectation]]:
    """x, and what a backend should answer: mean, std, and the counts as float64."""
    dtype = DTYPES[case.dtype]
    drawn = DATA[case.data](Draw(case), case.shape, dtype).to(dtype)
    x = lay_out(off_the_edges(drawn, case), case.layout)
    return x, answers(case, x)


def answers(case: StatsCase, x: Tensor) -> dict[str, Expectation]:
    """What to expect of mean, std and the counts of x; of the case only the bins matter."""
    wide, acc = x.to(torch.float64), arithmetic(x.dtype)
    mean, n = wide.mean(), x.numel()
    # torch's own var adds one value after the other: over thousands of them, less exact than what it would judge.
    squares = (wide - mean).square().sum() - (wide - mean).sum().square() / max(n, 1)
    var = squares / (n - 1) if n > 1 else torch.full_like(mean, torch.nan)
    quantum = torch.finfo(acc).smallest_normal * torch.finfo(acc).eps
    stats = Statistics(mean, var, (wide - mean).pow(4).sum().sqrt(), 0.0, n, unit_of(acc), quantum)
    std = var.sqrt()
    # Near 0 the root magnifies an error without bound: what it makes of var + error is the floor.
    std_floor = (var + stats.var_error).sqrt() - std + stats.unit * std
    peer_std = x.to(acc).std() if n > 1 else std
    hist = torch.histc(wide.abs().contiguous().flatten(), case.bins, case.low, case.high)
    return {
        "mean": Expectation(mean, x.to(acc).mean().to(torch.float64), stats.mean_error, acc),
        "std": Expectation(std, peer_std.to(torch.float64), std_floor, acc),
        "hist": Expectation(hist, hist, torch.zeros(()), torch.float64),
    }


def stats_results(case: StatsCase, x: Tensor, backend: str) -> dict[str, Tensor]:
    found = activation_stats(x, case.bins, (case.low, case.high), backend=backend)
    return dict(zip(NAMES, found, strict=True))


def conform_stats(case: StatsCase, backend: str, device: str = "cpu") -> dict[str, Tensor]:
    """A call of a case, held to the rule; counts are exact. Not a byte of x may be written."""
    kept, wanted = stats_problem(case)
    x = to_device(kept, device)
    before = storage_bits(x)
    results = stats_results(case, x, backend)
    assert torch.equal(before, storage_bits(x)), f"{case.name}: memory of x, or around it, was written to"
    assert results["hist"].dtype == torch.int64, f"{case.name} on {backend}: hist has dtype {results['hist'].dtype}"
    assert all(t.device == x.device for t in results.values()), f"{case.name} on {backend}: a result left the device"
    for name, want in wanted.items():
        got = results[name].to(torch.float64) if name == "hist" else results[name]
        check(got, want, f"{case.name} on {backend}: {name}")
    return results
