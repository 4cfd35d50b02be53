"""At the activation's corners, with numbers exact in every dtype: the same bits as composed PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastnorm.activation import Activation
from fastnorm.functional import batch_norm, general_relu
from fastnorm.testing import DTYPES, Act
from fastnorm.testing.composed import composed_relu

from .backends import DEVICE, Backend, each_backend

# z = 1.5 gives y == maxv for sub = 0.5, maxv = 1; z = -12 does for the negative leak.
EXACT_ACTS = {
    "relu": Act(),
    "relu_max": Act(maxv=1.0),
    "relu_sub_max": Act(None, 0.5, 1.0),
    "leaky": Act(0.125),
    "leaky_sub": Act(0.125, 0.5),
    "full": Act(0.125, 0.5, 1.0),
    "max_leak": Act(0.125, 0.5, 1.0, 0.25),
    "flat_bottom": Act(None, 0.5, -0.5),
    "low_max": Act(0.125, 0.5, -0.625),
    "low_max_leak": Act(0.125, 0.5, -0.625, 0.25),
    "negative_leak": Act(-0.125, 0.5, 1.0),
    "negative_leak_max_leak": Act(-0.125, 0.5, 1.0, 0.25),
    "zero_leak": Act(0.0),
    "zero_max": Act(0.125, None, 0.0),
}
CORNERS = (
    0.0,
    -0.0,
    1.5,
    -1.0,
    1.0,
    -12.0,
    2.0,
    -2.0,
    0.5,
    -0.5,
    math.nan,
    math.inf,
    -math.inf,
    1.25,
    1.75,
    3.0,
    -24.0,
)
acts = pytest.mark.parametrize("act", EXACT_ACTS.values(), ids=EXACT_ACTS)
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def corners(dtype: torch.dtype, repeat: int = 5) -> tuple[Tensor, Tensor]:
    """x with each corner at several places in a vector, and a dy of small exact numbers without zeros."""
    x = torch.tensor(CORNERS, dtype=dtype, device=DEVICE).repeat(repeat)
    dy = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 4.0], dtype=dtype, device=DEVICE)
    return x, dy.repeat(len(x) // 6 + 1)[: len(x)]


def assert_same_bits(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Equal, NaN where they have NaN, and zeros of the same sign."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True, msg=lambda m: f"{what}: {m}")
    zero = (theirs == 0) & (ours == 0)
    assert torch.equal(ours.signbit() & zero, theirs.signbit() & zero), f"{what}: a zero of the other sign"


@acts
@dtypes
@each_backend()
def test_general_relu(act: Act, dtype: torch.dtype, backend: Backend) -> None:
    x, dy = corners(dtype)
    x.requires_grad_()
    ours = general_relu(x, *act.numbers, backend=backend.namespace)
    theirs = composed_relu(x, *act.numbers)
    assert_same_bits(ours, theirs, "y")
    (dx,), (their_dx,) = torch.autograd.grad(ours, x, dy), torch.autograd.grad(theirs, x, dy)
    torch.testing.assert_close(dx, their_dx, rtol=0, atol=0, equal_nan=True)


@pytest.mark.column("batch_norm")
@acts
@dtypes
@pytest.mark.parametrize("residual", (False, True), ids=("", "residual"))
@each_backend()
def test_batch_norm_in_evaluation(act: Act, dtype: torch.dtype, residual: bool, backend: Backend) -> None:
    """With mean 0, variance 1 and eps 0 the norm is the identity; the corners reach the activation."""
    x, dy = (t.reshape(5, 17) for t in corners(dtype))
    zeros, ones = torch.zeros(17, device=DEVICE), torch.ones(17, device=DEVICE)
    r = torch.zeros_like(x) if residual else None
    leaves = [t.requires_grad_() for t in (x, r) if t is not None]
    ours = batch_norm(
        x, zeros, ones, eps=0.0, act=Activation(True, *act.numbers), residual=r, backend=backend.namespace
    )
    theirs = composed_relu(x if r is None else x + r, *act.numbers)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    grads, their_grads = torch.autograd.grad(ours, leaves, dy), torch.autograd.grad(theirs, leaves, dy)
    for grad, their_grad in zip(grads, their_grads, strict=True):
        torch.testing.assert_close(grad, their_grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.column("batch_norm")
@acts
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=("nchw", "nhwc"))
@each_backend()
def test_batch_norm_in_training(act: Act, layout: torch.memory_format, backend: Backend) -> None:
    """Zero channels: x_hat is 0 and z is the bias, which walks over the corners; dresidual is dz."""
    bias = torch.tensor([c for c in CORNERS if math.isfinite(c)], device=DEVICE, requires_grad=True)
    shape = (3, len(bias), 2, 3)
    x = torch.zeros(shape, device=DEVICE).contiguous(memory_format=layout)
    residual = torch.zeros(shape, device=DEVICE).contiguous(memory_format=layout).requires_grad_()
    dy = corners(torch.float32, 100)[1][: x.numel()].reshape(shape).contiguous(memory_format=layout)
    ours = batch_norm(
        x,
        None,
        None,
        None,
        bias,
        True,
        act=Activation(True, *act.numbers),
        residual=residual,
        backend=backend.namespace,
    )
    theirs = composed_relu(bias[:, None, None] + residual, *act.numbers)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    grads = torch.autograd.grad(ours, (residual, bias), dy)
    their_grads = torch.autograd.grad(theirs, (residual, bias), dy)
    for grad, their_grad in zip(grads, their_grads, strict=True):
        torch.testing.assert_close(grad, their_grad, rtol=0, atol=0)
