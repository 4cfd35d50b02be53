"""What autograd promises for the row family: versions, retained graphs, modes, hooks, gradients exactly where due."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composed import ACT, UPSTREAM, composed_act, leaf
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing import assert_close

import fastnorm
from fastnorm.functional import group_norm, instance_norm, layer_norm, layer_norm_2d

pytestmark = pytest.mark.usefixtures("recorder")

SHAPE = (4, 6, 5, 2)


def their_position(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2], w, b, 1e-6).movedim(-1, 1)


def their_group(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    """The affine step written out: torch 2.13's backward fails for a bias alone."""
    y = F.group_norm(x, 3)
    y = y if w is None else y * w[:, None, None]
    return y if b is None else y + b[:, None, None]


# the parameters' shape, ours(x, w, b, **fused), torch's(x, w, b)
NORMS: dict[str, tuple[tuple[int, ...], Callable[..., Tensor], Callable[..., Tensor]]] = {
    "layer": (
        (5, 2),
        lambda x, w, b, **k: layer_norm(x, (5, 2), w, b, **k),
        lambda x, w, b: F.layer_norm(x, (5, 2), w, b),
    ),
    "group": ((6,), lambda x, w, b, **k: group_norm(x, 3, w, b, **k), their_group),
    "instance": (
        (6,),
        lambda x, w, b, **k: instance_norm(x, weight=w, bias=b, **k),
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
    ),
    "position": ((6,), layer_norm_2d, their_position),
}
every_norm = pytest.mark.parametrize("norm", NORMS)


def leaves(norm: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, weight, bias, residual."""
    shape = NORMS[norm][0]
    return [leaf(*size, dtype=dtype) for size in (SHAPE, shape, shape, SHAPE)]


def both(norm: str, tensors: list[Tensor | None], fused: bool = True) -> tuple[Tensor, Tensor]:
    """Ours and composed torch, on the same tensors."""
    x, w, b, r = tensors
    _, ours, theirs = NORMS[norm]
    z = theirs(x, w, b)
    z = z if r is None else z + r
    return ours(x, w, b, act=ACT if fused else None, residual=r), composed_act(z) if fused else z


@pytest.mark.parametrize("fused", [True, False], ids=["act", "linear"])
@every_norm
def test_gradients_exactly_where_torch_has_them(cpu_backend: str, norm: str, fused: bool) -> None:
    drawn, dy = [t.detach() for t in leaves(norm)], torch.randn(SHAPE)
    for wanted in itertools.product([False, True], repeat=4):
        ours_in, theirs_in = (
            [t.clone().requires_grad_(want) for t, want in zip(drawn, wanted, strict=True)] for _ in range(2)
        )
        y, expected = both(norm, ours_in, fused)[0], both(norm, theirs_in, fused)[1]
        assert y.requires_grad == expected.requires_grad == any(wanted), wanted
        assert_close(y, expected)
        if any(wanted):
            y.backward(dy)
            expected.backward(dy)
        for own, reference in zip(ours_in, theirs_in, strict=True):
            assert (own.grad is None) == (reference.grad is None), wanted
            if own.grad is not None:
                assert_close(own.grad, reference.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False], ids=["act", "linear"])
@every_norm
def test_second_derivatives(cpu_backend: str, norm: str, fused: bool) -> None:
    """Of x, weight, bias, residual and dy, beside composed torch's."""
    tensors = leaves(norm, torch.float64)
    dy = leaf(*SHAPE, dtype=torch.float64)
    second = []
    for y in both(norm, tensors, fused):
        grads = torch.autograd.grad(y, tensors, dy, create_graph=True)
        torch.manual_seed(5)
        probes = [torch.randn(g.shape, dtype=g.dtype) for g in grads]
        second.append(torch.autograd.grad(grads, [*tensors, dy], probes, allow_unused=True))
    assert_close(*second)


@every_norm
def test_change_of_the_result_is_harmless(cpu_backend: str, norm: str) -> None:
    """The output is not saved, so an in-place operation behind the layer is allowed."""
    x, w, _, _ = leaves(norm)
    dy = torch.randn(SHAPE)
    y = NORMS[norm][1](x, w, None, act=ACT)
    expected = torch.autograd.grad(y * 2, [x, w], dy, retain_graph=True)
    assert_close(torch.autograd.grad(y.mul_(2), [x, w], dy), expected)


@every_norm
def test_one_tensor_in_two_places(cpu_backend: str, norm: str) -> None:
    """As input and residual, as weight and bias: first and second derivatives."""
    x, w, _, _ = leaves(norm)
    for tensors in ([x, w, None, x], [x, w, w, None]):
        dy, probe = torch.randn(SHAPE), torch.randn(SHAPE)
        first, second = [], []
        for y in both(norm, tensors):
            first.append(torch.autograd.grad(y, [x, w], dy, create_graph=True))
            second.append(torch.autograd.grad(first[-1][0], [x, w], probe, allow_unused=True))
        assert_close(*first)
        assert_close(*second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", UPSTREAM)
@every_norm
def test_upstream_gradients_of_any_strides(cpu_backend: str, norm: str, name: str) -> None:
    """M4, M5: and dy stays as it was."""
    dy = UPSTREAM[name](SHAPE)
    before = dy.clone()
    for layout in (torch.contiguous_format, torch.channels_last):
        tensors = leaves(norm)
        tensors[0] = tensors[0].detach().to(memory_format=layout).requires_grad_()
        for fused in (True, False):
            grads = (torch.autograd.grad(y, tensors, dy) for y in both(norm, tensors, fused))
            assert_close(*grads, rtol=1e-5, atol=1e-5)
    assert torch.equal(dy, before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(cpu_backend: str, mode: Any) -> None:
    layer = fastnorm.InstanceNorm2d(6, track_running_stats=True, act=ACT)
    reference = torch.nn.InstanceNorm2d(6, track_running_stats=True)
    with mode():
        x = torch.randn(SHAPE)
        y = layer(x, x)
        assert_close(y, composed_act(reference(x) + x))
        assert not y.requires_grad and y.is_inference() == (mode is torch.inference_mode)
        for norm in NORMS:
            assert_close(*both(norm, [x, None, None, x]))
    assert_close(dict(layer.named_buffers()), dict(reference.named_buffers()))
    layer(torch.randn(SHAPE))  # and the buffers are still ordinary tensors


def test_anomaly_mode_names_the_layer(cpu_backend: str) -> None:
    x = leaf(*SHAPE)
    with warnings.catch_warnings(record=True), torch.autograd.detect_anomaly(check_nan=True):
        y = layer_norm(x, (5, 2), act=ACT)
        with pytest.raises(RuntimeError, match="RowNormFunction"):
            y.backward(torch.full(SHAPE, float("nan")))


@every_norm
def test_saved_tensors_may_be_moved(cpu_backend: str, norm: str) -> None:
    tensors, dy = leaves(norm), torch.randn(SHAPE)
    plain = torch.autograd.grad(both(norm, tensors)[0], tensors, dy)
    with torch.autograd.graph.save_on_cpu():
        y = both(norm, tensors)[0]
    assert_close(torch.autograd.grad(y, tensors, dy), plain, rtol=0, atol=0)


@every_norm
def test_forward_mode_over_reverse(cpu_backend: str, norm: str) -> None:
    """A Hessian-vector product: dual numbers through a backward pass."""
    tensors, v = leaves(norm, torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    dy = torch.randn(SHAPE, dtype=torch.float64)
    products = []
    for pick in (0, 1):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(tensors[0].detach().clone().requires_grad_(), v)
            y = both(norm, [dual, *tensors[1:]])[pick].square()
            (dx,) = torch.autograd.grad(y, dual, dy, create_graph=True)
            products.append(forward_ad.unpack_dual(dx).tangent)
    assert_close(*products)
