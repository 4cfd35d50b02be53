"""torch's own checks of every op in every namespace, and the results that the functions hide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastnorm.ops import OPS
from fastnorm.testing import NormCase, check, solved
from fastnorm.testing.compare import Expectation
from fastnorm.testing.oracle import statistics

from .backends import DEVICE, REQUIRED, Backend, each_backend, random

ACT = (True, 0.1, 0.4, 0.7, None)
NO_ACT = (False, None, None, None, None)
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
LAYOUTS = {
    "contiguous": lambda: random(3, 5, 2, 7),
    "channels_last": lambda: random(3, 5, 2, 7).contiguous(memory_format=torch.channels_last),
    "strided": lambda: random(3, 5, 2, 14)[..., ::2],
    "bf16": lambda: random(3, 5, 2, 7, dtype=torch.bfloat16),
    "rank_2": lambda: random(11, 5),
    "volume": lambda: random(2, 5, 2, 3, 3).contiguous(memory_format=torch.channels_last_3d),
    "fp64": lambda: random(3, 5, 7, dtype=torch.float64),
    "empty": lambda: random(0, 5, 2, 7),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)
# Interpreted, three are enough: the fake implementation is the same for all backends.
LAYOUTS_OF_BACKENDS = [
    (layout, backend)
    for backend in REQUIRED
    for layout in (("contiguous", "strided", "bf16") if backend.slow else LAYOUTS)
]


def vectors() -> tuple[Tensor, Tensor]:
    return random(5, seed=1), random(5, seed=2).to(torch.bfloat16)


def bare_arguments(x: Tensor, eps: float, *, unbiased: bool) -> tuple[Any, ...]:
    return (x, *[None] * 6, True, 0.1, eps, unbiased, False, *NO_ACT)


def forward_arguments(x: Tensor, variant: str) -> tuple[Any, ...]:
    weight, bias = vectors()
    buffers = torch.zeros(5, device=DEVICE), torch.ones(5, device=DEVICE)
    if variant == "training":
        return (x, weight, bias, None, *buffers, None, True, 0.1, 1e-5, False, False, *NO_ACT)
    if variant == "fused":
        factor = torch.tensor(0.25, device=DEVICE)
        return (x, weight, None, torch.ones_like(x), *buffers, factor, True, 0.0, 1e-5, True, True, *ACT)
    if variant == "bare":
        return bare_arguments(x, 1e-5, unbiased=False)
    return (x, None, bias, None, *buffers, None, False, 0.1, 1e-5, False, False, *ACT)


def backward_arguments(x: Tensor, variant: str) -> tuple[Any, ...]:
    weight, bias = vectors()
    mean, rstd = (random(5, seed=s).abs().to(torch.promote_types(x.dtype, torch.float32)) for s in (3, 4))
    dy = torch.ones_like(x)
    if variant == "training":
        return (dy, x, weight, bias, None, mean, rstd, True, False, True, *NO_ACT)
    if variant == "fused":
        return (dy, x, weight, bias, torch.ones_like(x), mean, rstd, True, True, True, *ACT)
    if variant == "bare":
        return (dy, x, None, None, None, mean, rstd, True, False, False, *NO_ACT)
    return (dy, x, weight, None, None, mean, rstd, False, False, True, *ACT)


def opcheck(op: Any, arguments: tuple[Any, ...]) -> None:
    result = torch.library.opcheck(op, arguments, test_utils=CHECKS)
    assert set(result.values()) == {"SUCCESS"}, result


@layouts
@each_backend()
def test_general_relu(layout: str, backend: Backend) -> None:
    x, ops = LAYOUTS[layout](), OPS[backend.namespace]
    opcheck(ops.general_relu_fwd, (x, *ACT[1:]))
    opcheck(ops.general_relu_bwd, (torch.ones_like(x), x, None, None, None, None))


@pytest.mark.column("batch_norm")
@pytest.mark.parametrize("layout, backend", LAYOUTS_OF_BACKENDS, ids=str)
@pytest.mark.parametrize("variant", ("training", "fused", "bare", "evaluation"))
def test_batch_norm(layout: str, variant: str, backend: Backend) -> None:
    x, ops = LAYOUTS[layout](), OPS[backend.namespace]
    opcheck(ops.batch_norm_fwd, forward_arguments(x, variant))
    opcheck(ops.batch_norm_bwd, backward_arguments(x, variant))


@pytest.mark.column("batch_norm")
@pytest.mark.parametrize("variant", ("training", "fused", "bare", "evaluation"))
@each_backend()
def test_unneeded_results_are_empty(variant: str, backend: Backend) -> None:
    x = random(3, 5, 2, 7)
    arguments = backward_arguments(x, variant)
    dx, dweight, dbias, dresidual = OPS[backend.namespace].batch_norm_bwd(*arguments)
    assert dx.shape == ((0,) if variant == "bare" else x.shape) and dx.dtype == x.dtype
    assert dresidual.shape == (x.shape if variant == "fused" else (0,)) and dresidual.dtype == x.dtype
    assert dweight.dtype == (torch.float32 if arguments[2] is None else arguments[2].dtype)
    assert dbias.dtype == (torch.float32 if arguments[3] is None else arguments[3].dtype)


@pytest.mark.column("batch_norm")
@pytest.mark.parametrize("data", ("normal", "offset_1e4", "outlier", "constant"))
@pytest.mark.parametrize("unbiased", (False, True))
@each_backend()
def test_statistics_for_the_backward(data: str, unbiased: bool, backend: Backend) -> None:
    """mean and rstd are judged apart from y, so that an error of one cannot hide behind the other's."""
    case = NormCase((5, 7, 3, 11), data=data, unbiased=unbiased)
    kept, _ = solved(case)
    p, exact = kept.copy(backend.device), statistics(case, kept)
    _, mean, rstd = OPS[backend.namespace].batch_norm_fwd(*bare_arguments(p.x, case.eps, unbiased=unbiased))
    floors = (exact.mean_error, exact.rstd * exact.rstd_error)
    for got, want, floor in zip((mean, rstd), (exact.mean, exact.rstd), floors, strict=True):
        check(got, Expectation(want.flatten(), want.flatten(), floor.flatten(), torch.float32), data)
