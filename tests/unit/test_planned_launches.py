"""What the launchers plan, as data, for a list of real shapes on GPUs of 132, 108 and 16 SMs.

The launchers themselves are called, on tensors without memory, and every launch is written down instead of made: so a
kernel that joins the benchmark's cases is looked at here without another line.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

import fastnorm
from benchmarks.cases import all_cases
from benchmarks.gpu.testing import SHORT_LIST as SANITIZED
from benchmarks.optim_cases import optim_cases
from fastnorm.ops import triton as triton_ops
from fastnorm.testing.cases import Case as ConformanceCase
from fastnorm.testing.cases import NormCase, RowCase
from fastnorm.testing.short_list import SHORT_LIST
from fastnorm.testing.stats import StatsCase
from fastnorm.testing.triton_cases import Case
from fastnorm.testing.triton_cases import RowCase as AotRowCase
from fastnorm.testing.triton_cases import StatsCase as AotStatsCase

pytest.importorskip("triton")

from benchmarks.launch_plans import Planned, describe, launched, launches, recording
from tests.conformance.captured import STEPS
from tests.unit.test_triton_aot import LONG, PAST, RESIDENT, ROWS, SHORT, every_kernel

SMS = (132, 108, 16)
BENCHMARKED = list(dict.fromkeys(launched(case) for case in [*all_cases("cuda"), *optim_cases("cuda")]))
REAL = list(dict.fromkeys([*BENCHMARKED, *SHORT, *LONG, *ROWS, *PAST]))
# Kernels that no case of the conformance table launches, and the tests that compute-sanitizer runs for them.
ELSEWHERE = {"optim_step_kernel": "tests/conformance/test_optim_device.py::test_sizes_around_blocks_and_chunks"}
LARGEST_GRID = (2**31 - 1, 65535, 65535)
WORK = 16384  # values, the most that one program holds: a tensor of so many times the programs allows them
WARPS = 8  # of a program; one of 16 warps counts as two
NARROW_ROWS = 64  # of shorter rows, a mean and an rstd each are not a small part of the tensor


def every_plan() -> list[object]:
    return [pytest.param(case, sms, id=f"{describe(case).replace(' ', '-')}-{sms}") for case in REAL for sms in SMS]


def of_tensor(case: Case, planned: Planned) -> int:
    """How many tensors of x's size the launch reads or writes."""
    return sum(elements == case.elements for elements, _ in planned.tensors.values())


@pytest.mark.parametrize("case, sms", every_plan())
def test_plan(case: Case, sms: int) -> None:
    plans = launches(case, sms)
    assert plans
    for one in plans:
        told = f"{describe(case)}: {one}"
        assert all(1 <= n <= most for n, most in zip(one.grid, LARGEST_GRID, strict=False)), told
        assert one.warps in (1, 2, 4, 8, 16) and all(n & (n - 1) == 0 for n in one.blocks.values()), told
        if of_tensor(case, one) and case.elements >= 2 * sms * WORK:
            assert fills(one, sms) or no_fuller_wave_ends_sooner(one, sms), told


def fills(one: Planned, sms: int) -> bool:
    """Two programs for every SM."""
    return one.programs * max(1, one.warps / WARPS) >= 2 * sms


def no_fuller_wave_ends_sooner(one: Planned, sms: int) -> bool:
    """The one exemption: a reduction whose programs walk through tiles, in one wave, so that it has no tail.

    Either no column can have one more share in that wave; or however many more there is room for, the longest share
    stays as long, and more shares would only mean more partial results.
    """
    if one.walk is None:
        return False
    columns, shares, tiles = one.walk
    slots = sms * max(1, RESIDENT[one.kernel] * WARPS // max(WARPS, one.warps))
    longest = -(-tiles // shares)
    return columns * shares <= slots and all(-(-tiles // s) == longest for s in range(shares + 1, slots // columns + 1))


def test_an_idle_sm_is_seen() -> None:
    """The exemption excuses no grid that could be fuller and end sooner."""
    (one,) = [p for p in launches(SHORT[0], 132) if p.kernel == "batch_norm_bwd_reduce_kernel"]
    assert one.walk is not None and not no_fuller_wave_ends_sooner(dataclasses.replace(one, walk=None), 132)
    columns, shares, tiles = one.walk
    half = dataclasses.replace(one, grid=(columns, shares // 2), walk=(columns, shares // 2, tiles))
    assert fills(half, 132) is no_fuller_wave_ends_sooner(half, 132) is False
    uneven = dataclasses.replace(one, grid=(1, 128), walk=(1, 128, 4096))  # 32 tiles each; with 137 shares 30
    assert not no_fuller_wave_ends_sooner(uneven, 132)
    assert no_fuller_wave_ends_sooner(dataclasses.replace(uneven, walk=(1, 256, 4096)), 132)  # 16 each, with 264 too


def budget(case: Case, op: str, passes: int) -> int:
    """Tensors that an op may read or write in one pass over them, or in two.

    Forward: x in each, y. Backward: x and dy in each, dx; fused, the residual in each and its gradient, dz.
    """
    fused = not op.startswith("general_relu")
    if op.endswith("_fwd"):
        return passes + 1 + (fused and case.residual)
    return 2 * passes + 1 + (passes + 1 if fused and case.act and case.residual else 0)


def check_bytes(case: Case, planned: list[Planned]) -> None:
    """The large tensors are touched no more than in two passes, and all else together is a small part of them."""
    for op in {one.op for one in planned}:
        touched = [count for one in planned if one.op == op and (count := of_tensor(case, one))]
        assert len(touched) <= 2 and sum(touched) <= budget(case, op, len(touched)), (op, touched)
    small = [size for one in planned for elements, size in one.tensors.values() if elements < case.elements]
    if case.elements >= 2**24 and shortest_set(case) >= NARROW_ROWS:
        assert sum(small) <= 0.05 * sum(one.bytes for one in planned), f"{sum(small) / 1e6:.1f} MB beside the tensors"


@pytest.mark.parametrize("case", REAL, ids=lambda case: describe(case).replace(" ", "-"))
def test_bytes_moved(case: Case) -> None:
    check_bytes(case, launches(case))


def test_one_pass_more_is_seen() -> None:
    planned = launches(SHORT[0])
    with pytest.raises(AssertionError, match="batch_norm_fwd"):
        check_bytes(SHORT[0], [planned[0], *planned])
    wide = dataclasses.replace(planned[1], tensors={"partials_ptr": (math.prod(SHORT[0].shape) // 2, 10**9)})
    with pytest.raises(AssertionError, match="beside the tensors"):
        check_bytes(SHORT[0], [*planned, wide])


def shortest_set(case: Case) -> int:
    """How many values share a mean, or a weight."""
    if isinstance(case, AotRowCase) and case.dims:
        return min(math.prod(case.shape[-case.dims :]), math.prod(case.shape[: -case.dims]))
    return case.shape[1] if isinstance(case, AotRowCase) and not case.groups else math.prod(case.shape[2:])


def test_every_op_is_planned() -> None:
    """Nothing that has a launcher is missing from the lists."""
    planned = [one for case in REAL for one in launches(case)]
    assert {one.op for one in planned} >= set(triton_ops._import_kernels().LAUNCHERS)


def as_launched(case: ConformanceCase | StatsCase) -> Case:
    """The launchers' view of a conformance case."""
    if isinstance(case, StatsCase):
        return AotStatsCase(case.shape, case.dtype, case.layout == "channels_last", bins=case.bins)
    act = not isinstance(case, (NormCase, RowCase)) or case.act is not None
    residual = isinstance(case, (NormCase, RowCase)) and case.residual is not None
    training = not isinstance(case, NormCase) or case.training
    options = (case.shape, case.dtype, case.layout == "channels_last", act, residual, training)
    return AotRowCase(*options, case.dims, case.groups, case.rms) if isinstance(case, RowCase) else Case(*options)


def test_the_short_list_launches_every_kernel() -> None:
    """What compute-sanitizer looks at on a GPU leaves no kernel out."""
    cases = [as_launched(case) for case in SHORT_LIST if len(case.shape) > 1]
    listed = {one.kernel for case in cases for one in launches(case)}
    assert listed | ELSEWHERE.keys() == every_kernel()
    assert set(ELSEWHERE.values()) <= set(SANITIZED) and all(
        Path(path.partition("::")[0]).exists() for path in SANITIZED
    )


def test_every_op_is_captured_in_a_graph() -> None:
    """Nothing that has a launcher is missing from the steps that a GPU captures and replays."""
    with fastnorm.use_backend("triton"), recording() as recorded:
        for make in STEPS.values():
            make(torch.device("cpu")).run()
    assert {one.op for one in recorded} >= set(triton_ops._import_kernels().LAUNCHERS)
