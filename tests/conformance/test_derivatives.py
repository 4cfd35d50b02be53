"""First and second derivatives against finite differences in float64, and every functorch transform."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fastnorm.functional import general_relu
from fastnorm.testing import ACTS

from .backends import Backend, each_backend, random
from .functions import OPTIONS, function

options = pytest.mark.parametrize(
    "option",
    [
        pytest.param(name, marks=pytest.mark.column("batch_norm" if option.norm == "batch" else "row_norm"))
        for name, option in OPTIONS.items()
    ],
)


@options
@each_backend()
def test_gradcheck(option: str, backend: Backend) -> None:
    call, inputs = function(option, backend)
    assert gradcheck(call, inputs, fast_mode=backend.slow)


@options
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=("nchw", "nhwc"))
@each_backend(fast=True)
def test_gradcheck_of_images(option: str, layout: torch.memory_format, backend: Backend) -> None:
    call, inputs = function(option, backend, (2, 4, 2, 2))
    inputs = tuple(t.detach().contiguous(memory_format=layout).requires_grad_() if t.dim() == 4 else t for t in inputs)
    assert gradcheck(call, inputs)


@options
@each_backend()
def test_gradgradcheck(option: str, backend: Backend) -> None:
    call, inputs = function(option, backend, (2, 2, 2))
    assert gradgradcheck(call, inputs, fast_mode=backend.slow)


@pytest.mark.parametrize("act", ACTS)
@each_backend()
def test_general_relu(act: str, backend: Backend) -> None:
    x = random(23, dtype=torch.float64).requires_grad_()

    def call(x: Tensor) -> Tensor:
        return general_relu(x, *ACTS[act].numbers, backend=backend.namespace)

    assert gradcheck(call, x, fast_mode=backend.slow)
    assert gradgradcheck(call, x, fast_mode=backend.slow)


@options
@each_backend(fast=True)
def test_double_backward_is_the_derivative_of_the_kernel(option: str, backend: Backend) -> None:
    """The backward that is differentiated again gives the same first derivatives as the fused one."""
    call, inputs = function(option, backend, (5, 6, 3))
    dy = random(5, 6, 3, seed=9, dtype=torch.float64)
    plain = torch.autograd.grad(call(*inputs), inputs, dy)
    differentiable = torch.autograd.grad(call(*inputs), inputs, dy, create_graph=True)
    for a, b in zip(plain, differentiable, strict=True):
        torch.testing.assert_close(a, b.detach())


@options
@each_backend(fast=True)
def test_forward_mode(option: str, backend: Backend) -> None:
    call, inputs = function(option, backend)
    assert gradcheck(call, inputs, check_forward_ad=True, check_backward_ad=False)


@options
@each_backend(fast=True)
def test_transforms(option: str, backend: Backend) -> None:
    """vmap, grad, jvp, vjp, jacrev, jacfwd, hessian agree with one another and with backward."""
    call, inputs = function(option, backend)
    inputs = tuple(t.detach() for t in inputs)
    dy = random(3, 2, 3, seed=9, dtype=torch.float64)
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    want = torch.autograd.grad(call(*leaves), leaves, dy)
    every = tuple(range(len(inputs)))

    def loss(*tensors: Tensor) -> Tensor:
        return (call(*tensors) * dy).sum()

    for got in (torch.func.grad(loss, every)(*inputs), torch.func.vjp(call, *inputs)[1](dy)):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)
    _, tangent = torch.func.jvp(loss, inputs, inputs)
    torch.testing.assert_close(tangent, sum((g * t).sum() for g, t in zip(want, inputs, strict=True)))
    stacked = tuple(torch.stack([t, t + 0.25]) for t in inputs)
    torch.testing.assert_close(
        torch.func.vmap(call)(*stacked), torch.stack([call(*(t[i] for t in stacked)) for i in range(2)])
    )
    torch.testing.assert_close(torch.func.jacfwd(loss)(*inputs), torch.func.jacrev(loss)(*inputs))
    hessian = torch.func.hessian(loss)(*inputs)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(lambda x: loss(x, *inputs[1:]), inputs[0]))
