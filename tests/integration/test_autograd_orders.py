"""Second derivatives, forward mode, and what is saved for the backward."""

from __future__ import annotations

import pytest
import torch
from composed import ACT, SHAPE, both, composed_act, leaf
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.testing import assert_close

import fastnorm

pytestmark = pytest.mark.usefixtures("recorder")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("fused", [True, False], ids=["act", "linear"])
def test_second_derivatives_with_residual(cpu_backend: str, training: bool, fused: bool) -> None:
    """A3. A finite difference must not cross a kink of the activation: the seed sees to that."""
    double = torch.float64
    inputs = [leaf(3, 3, 2, 2, dtype=double), leaf(3, dtype=double), leaf(3, dtype=double)]
    inputs.append(leaf(3, 3, 2, 2, dtype=double))

    def ours(*tensors: Tensor) -> Tensor:
        return both(*tensors, training, fused)[0]

    def theirs(*tensors: Tensor) -> Tensor:
        return both(*tensors, training, fused)[1]

    assert gradcheck(ours, inputs)
    assert gradgradcheck(ours, inputs)
    dy = torch.randn(3, 3, 2, 2, dtype=double, requires_grad=True)
    second = []
    for function in (ours, theirs):
        grads = torch.autograd.grad(function(*inputs), inputs, dy, create_graph=True)
        torch.manual_seed(5)
        probes = [torch.randn_like(g) for g in grads]
        second.append(torch.autograd.grad(grads, [*inputs, dy], probes, allow_unused=True))
    assert_close(*second)


def test_gradient_penalty(cpu_backend: str) -> None:
    """A loss that holds a gradient, as in WGAN-GP: parameters get the same second derivatives."""
    x = leaf(*SHAPE)
    results = []
    for kind in ("ours", "theirs"):
        torch.manual_seed(2)
        conv = nn.Conv2d(3, 3, 3, padding=1)
        if kind == "ours":
            net = nn.Sequential(conv, fastnorm.BatchNorm2d(3, act=nn.LeakyReLU(0.2)))
        else:
            net = nn.Sequential(conv, nn.BatchNorm2d(3), nn.LeakyReLU(0.2))
        weights = torch.randn(SHAPE)
        (dx,) = torch.autograd.grad((net(x) * weights).sum(), x, create_graph=True)
        (dx.flatten(1).norm(dim=1) - 1).square().mean().backward()
        results.append([p.grad for p in net.parameters()])
    # The bias of a convolution in front of a norm has gradient 0, and rounding of its own.
    assert_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_forward_mode_through_a_module(cpu_backend: str, training: bool) -> None:
    layer = fastnorm.BatchNorm2d(3, act=ACT, dtype=torch.float64).train(training)
    reference = nn.BatchNorm2d(3, dtype=torch.float64).train(training)
    x, r, tx, tr = (torch.randn(SHAPE, dtype=torch.float64) for _ in range(4))
    with forward_ad.dual_level():
        tangents = []
        for function in (layer, lambda x, r: composed_act(reference(x) + r)):
            y = function(forward_ad.make_dual(x, tx), forward_ad.make_dual(r, tr))
            tangents.append(forward_ad.unpack_dual(y).tangent)
    assert_close(*tangents)
    assert_close(dict(layer.named_buffers()), dict(reference.named_buffers()))


def test_forward_mode_over_reverse(cpu_backend: str) -> None:
    """A Hessian-vector product: dual numbers through a backward pass."""
    x, v, dy = (torch.randn(SHAPE, dtype=torch.float64) for _ in range(3))
    products = []
    for pick in (0, 1):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.clone().requires_grad_(), v)
            y = both(dual, None, None, None)[pick].square()
            (dx,) = torch.autograd.grad(y, dual, dy, create_graph=True)
            products.append(forward_ad.unpack_dual(dx).tangent)
    assert_close(*products)


@pytest.mark.parametrize("residual", [False, True])
def test_saved_tensors(cpu_backend: str, residual: bool) -> None:
    """x, the residual, and vectors of C: no pre-activation, no normalized x."""
    x, r = leaf(*SHAPE), leaf(*SHAPE)
    layer = fastnorm.BatchNorm2d(3, act=ACT)
    big: list[int] = []

    def pack(t: Tensor) -> Tensor:
        if t.numel() > 3:
            big.append(t.data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x, r if residual else None)
    assert sorted(big) == sorted([x.data_ptr(), r.data_ptr()] if residual else [x.data_ptr()])
    y.sum().backward()


def test_saved_tensor_hooks_may_move_them(cpu_backend: str) -> None:
    x, dy = leaf(*SHAPE), torch.randn(SHAPE)
    layer = fastnorm.BatchNorm2d(3, act=ACT)
    plain = torch.autograd.grad(layer(x), x, dy)
    with torch.autograd.graph.save_on_cpu():
        y = layer(x)
    assert_close(torch.autograd.grad(y, x, dy), plain, rtol=0, atol=0)
