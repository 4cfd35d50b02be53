"""The row family at the activation's corners: an x of zeros has x_hat = 0, so that z is the bias or the residual."""

from __future__ import annotations

import math

import pytest
import torch

from fastnorm.activation import Activation
from fastnorm.testing import DTYPES, RowCase
from fastnorm.testing.composed import composed_relu
from fastnorm.testing.problems import Problem
from fastnorm.testing.run import row_forward

from .backends import DEVICE, Backend, each_backend
from .test_ties import CORNERS, EXACT_ACTS, corners

FINITE = [c for c in CORNERS if math.isfinite(c)]
SHAPE = (2, len(FINITE), 2, 3)
assert len(FINITE) % 2 == 0
LAYER, GROUP = RowCase((3, 2, len(FINITE)), "layer"), RowCase(SHAPE, "group", 2, "channels_last")
FEW = ("full", "low_max_leak", "negative_leak")
# Every activation on one kind of kernel each, a few on the others.
RESIDUAL = [(RowCase((5, 17), "layer", dtype=dtype), act) for act in EXACT_ACTS for dtype in ("fp32", "bf16")]
RESIDUAL += [(RowCase((5, 17), "rms", bias=None), act) for act in FEW]
RESIDUAL += [(RowCase((1, 17, 5), "instance", dtype=dtype), act) for act in FEW for dtype in ("fp64", "fp16")]
BIASED = [(case, act) for act in EXACT_ACTS for case in (LAYER, GROUP)]
BIASED += [
    (RowCase(SHAPE, kind, size, layout), act)
    for kind, size, layout in (
        ("group", 2, "contiguous"),
        ("instance", 1, "channels_last"),
        ("position", 1, "contiguous"),
        ("position", 1, "channels_last"),
    )
    for act in FEW
]


@pytest.mark.parametrize("case, act", RESIDUAL, ids=[f"{case.name}-{act}" for case, act in RESIDUAL])
@each_backend()
def test_the_residual_at_the_corners(case: RowCase, act: str, backend: Backend) -> None:
    """NaN and infinities too, forward and backward."""
    residual, dy = (t.reshape(case.shape) for t in corners(DTYPES[case.dtype]))
    residual.requires_grad_()
    p = Problem(torch.zeros_like(residual), dy, residual=residual)
    numbers = EXACT_ACTS[act].numbers
    ours = row_forward(case, p, Activation(True, *numbers), backend.namespace)
    theirs = composed_relu(residual, *numbers)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    (grad,), (their_grad,) = (torch.autograd.grad(y, residual, dy) for y in (ours, theirs))
    torch.testing.assert_close(grad, their_grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case, act", BIASED, ids=[f"{case.name}-{act}" for case, act in BIASED])
@each_backend()
def test_the_bias_at_the_corners(case: RowCase, act: str, backend: Backend) -> None:
    """Its gradient sums small exact numbers; dresidual is dz."""
    bias = torch.tensor(FINITE, device=DEVICE, requires_grad=True)
    form = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    x, residual = (torch.zeros(case.shape, device=DEVICE).contiguous(memory_format=form) for _ in range(2))
    residual.requires_grad_()
    dy = corners(torch.float32, 100)[1][: x.numel()].reshape(case.shape).contiguous(memory_format=form)
    p = Problem(x, dy, bias=bias, residual=residual)
    numbers = EXACT_ACTS[act].numbers
    ours = row_forward(case, p, Activation(True, *numbers), backend.namespace)
    over_x = bias if case.dims else bias[:, None, None]
    theirs = composed_relu(over_x + residual, *numbers)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    grads, their_grads = (torch.autograd.grad(y, (residual, bias), dy) for y in (ours, theirs))
    for grad, their_grad in zip(grads, their_grads, strict=True):
        torch.testing.assert_close(grad, their_grad, rtol=0, atol=0)
