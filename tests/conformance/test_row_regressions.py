"""Bugs that other libraries shipped in these layers, by name; none may come back here.

Where the one rule judges, the case is in the table too; here it stands under its name.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnorm
from fastnorm.activation import as_activation
from fastnorm.functional import group_norm, instance_norm, layer_norm, layer_norm_2d, rms_norm
from fastnorm.testing import RowCase

from .backends import DEVICE, Backend, each_backend, over, random

LAYOUTS = ("contiguous", "channels_last")
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}

# Liger, TileOPs: the variance as E[x^2] - E[x]^2, nothing but noise at |mean| >> std.
UNCENTRED_VARIANCE = [
    RowCase((3, 6, 13, 17), "group", 2, layout, data=data)
    for layout in LAYOUTS
    for data in ("offset_1e2", "offset_1e4", "offset_1e6")
]
# PyTorch: dgamma of group norm as (sum(dy * x) - mean * sum(dy)) * rstd, which cancels.
UNCENTRED_DGAMMA = [
    RowCase(shape, kind, size, layout, data="offset_1e4", dy="centred")
    for shape, kind, size in (((3, 6, 13, 17), "group", 2), ((3, 5, 13, 17), "instance", 1))
    for layout in LAYOUTS
]
# pytorch#140913, #115940: an NHWC group norm whose dy has another format than its x.
OTHER_FORMAT_OF_DY = [
    RowCase((3, 6, 5, 7), "group", 3, layout, dtype, act=act, dy=dy)
    for layout, dy in (LAYOUTS, LAYOUTS[::-1], ("channels_last", "transposed"))
    for dtype in ("fp32", "bf16")
    for act in (None, "full")
]
# Liger#1375: a backward that took W for H * W, and was tested in rank 3 alone.
RANKS = [RowCase((2, 6, *spatial), "group", 2) for spatial in ((), (5,), (3, 7), (2, 3, 7), (2, 3, 2, 3))]
# FlagGems#4984: masked lanes of a group that is no power of two entered the statistics.
GROUP_SIZES = [
    RowCase((2, 2 * size, 3, positions), "group", 2, layout, data="offset_1e2")
    for size, positions in ((3, 1), (5, 1), (7, 3), (12, 1), (21, 1))
    for layout in LAYOUTS
]


@over(UNCENTRED_VARIANCE)
def test_variance_is_centred(case: RowCase, backend: Backend) -> None:
    backend.conform(case)


@over(UNCENTRED_DGAMMA)
def test_dgamma_is_centred(case: RowCase, backend: Backend) -> None:
    backend.conform(case)


@over(OTHER_FORMAT_OF_DY)
def test_dy_of_another_format(case: RowCase, backend: Backend) -> None:
    backend.conform(case)


@over(RANKS)
def test_every_rank(case: RowCase, backend: Backend) -> None:
    backend.conform(case)


@over(GROUP_SIZES)
def test_groups_of_no_power_of_two(case: RowCase, backend: Backend) -> None:
    backend.conform(case)


CHANNELS_LAST = {
    "group": (lambda: fastnorm.GroupNorm(2, 6), (2, 6, 5, 7)),
    "group of volumes": (lambda: fastnorm.GroupNorm(2, 6), (2, 6, 2, 5, 3)),
    "instance": (lambda: fastnorm.InstanceNorm2d(6, affine=True), (2, 6, 5, 7)),
    "instance of volumes": (lambda: fastnorm.InstanceNorm3d(6, affine=True), (2, 6, 2, 5, 3)),
    "layer over images": (lambda: fastnorm.LayerNorm((6, 5, 7)), (2, 6, 5, 7)),
    "layer over rows of pixels": (lambda: fastnorm.LayerNorm(7), (2, 6, 5, 7)),
    "layer over volumes": (lambda: fastnorm.LayerNorm((6, 2, 5, 3)), (2, 6, 2, 5, 3)),
    "rms over images": (lambda: fastnorm.RMSNorm((6, 5, 7)), (2, 6, 5, 7)),
    "layer over channels": (lambda: fastnorm.LayerNorm2d(6), (2, 6, 5, 7)),
    "lesson": (lambda: fastnorm.LessonLayerNorm(6), (2, 6, 5, 7)),
}


@pytest.mark.parametrize("name", CHANNELS_LAST)
@each_backend()
def test_channels_last_is_kept(name: str, backend: Backend) -> None:
    """pytorch#111824, #72341, #194616: NCHW came back for NHWC, forward or backward, whatever dy is."""
    make, shape = CHANNELS_LAST[name]
    form = FORMATS[len(shape)]
    layer = make().to(DEVICE)
    x = random(*shape).contiguous(memory_format=form).requires_grad_()
    with fastnorm.use_backend(backend.namespace):
        plain = layer(x)
        layer.activation = as_activation(nn.ReLU())
        fused = layer(x, random(*shape, seed=1))
        grads = [torch.autograd.grad(y, x, random(*shape, seed=2))[0] for y in (plain, fused)]
    for result in (plain, fused, *grads):
        assert result.is_contiguous(memory_format=form) and not result.is_contiguous()


@pytest.mark.parametrize("value", (1e6, 3.0, -0.1, 65_000.0))
@each_backend()
def test_one_element_says_nothing_about_the_weight(value: float, backend: Backend) -> None:
    """pytorch#188372: normalized_shape=(1,) at x = 1e6 got weight.grad = 7.2; x_hat is 0, to the last bit."""
    x = torch.full((5, 1), value, device=DEVICE)
    weight, bias = (torch.full((1,), v, device=DEVICE, requires_grad=True) for v in (3.0, 0.25))
    for y in (
        layer_norm(x, (1,), weight, bias, backend=backend.namespace),
        group_norm(x, 1, weight, bias, backend=backend.namespace),
        fastnorm.functional.layer_norm_2d(x, weight, bias, backend=backend.namespace),
    ):
        dweight, dbias = torch.autograd.grad(y, (weight, bias), random(5, 1, seed=3))
        assert torch.equal(y, torch.full_like(y, 0.25))
        assert float(dweight) == 0.0
        torch.testing.assert_close(dbias, random(5, 1, seed=3).sum(0))


@pytest.mark.parametrize("affine", (True, False))
@each_backend()
def test_instance_norm_of_an_empty_batch_has_a_backward(affine: bool, backend: Backend) -> None:
    """torch 2.13: the forward works, the backward raises IndexError."""
    x = torch.empty(0, 7, 3, 5, device=DEVICE, requires_grad=True)
    weight = torch.ones(7, device=DEVICE, requires_grad=True) if affine else None
    y = instance_norm(x, weight=weight, backend=backend.namespace)
    grads = torch.autograd.grad(y.sum(), (x,) if weight is None else (x, weight))
    assert [g.shape for g in grads] == [x.shape, (7,)][: 1 + affine]
    assert affine is False or torch.equal(grads[1], torch.zeros(7, device=DEVICE))


# PaddlePaddle#16654, pytorch#147303, #183946, #190245: sums of 16-bit numbers kept in 16 bits.
HALF_SUMS = [
    RowCase(shape, kind, size, layout, dtype, weight=dtype, bias=None if kind == "rms" else dtype, data="near_200")
    for shape, kind, size in (
        ((2, 1301), "layer", 1),
        ((2, 1301), "rms", 1),
        ((2, 4, 27, 25), "group", 2),
        ((2, 3, 27, 25), "instance", 1),
    )
    for layout in LAYOUTS
    if layout == "contiguous" or len(shape) == 4
    for dtype in ("fp16", "bf16")
]


@over(HALF_SUMS)
def test_sums_past_65504(case: RowCase, backend: Backend) -> None:
    """1301 values of about 200: the sum overflows fp16, and bf16 cannot count past 256."""
    backend.conform(case)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@each_backend(fast=True)
def test_dbias_of_many_rows(dtype: torch.dtype, backend: Backend) -> None:
    """40,960 ones: an fp16 sum stops at 2048, a bf16 sum at 256. Exact in both."""
    x, bias = random(40_960, 3, dtype=dtype), torch.zeros(3, dtype=dtype, device=DEVICE, requires_grad=True)
    y = layer_norm(x, (3,), None, bias, backend=backend.namespace)
    (dbias,) = torch.autograd.grad(y, bias, torch.ones_like(y))
    assert dbias.tolist() == [40_960.0] * 3


def behind(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """torch's group norm with its affine step written out: torch 2.13's backward fails for a bias alone."""
    y = y if weight is None else y * weight[:, None]
    return y if bias is None else y + bias[:, None]


@pytest.mark.parametrize("weighted, biased", itertools.product((True, False), repeat=2))
@each_backend()
def test_every_combination_of_weight_and_bias(weighted: bool, biased: bool, backend: Backend) -> None:
    """pytorch#69208, #108048, FlagGems#323: a bias without a weight, a weight without a bias, neither."""
    x = random(5, 6, 4).requires_grad_()
    dy = random(5, 6, 4, seed=3)
    at = backend.namespace
    calls = (
        (4, lambda w, b: layer_norm(x, (4,), w, b, backend=at), lambda w, b: F.layer_norm(x, (4,), w, b)),
        (6, lambda w, b: group_norm(x, 3, w, b, backend=at), lambda w, b: behind(F.group_norm(x, 3), w, b)),
        (
            6,
            lambda w, b: instance_norm(x, weight=w, bias=b, backend=at),
            lambda w, b: F.instance_norm(x, weight=w, bias=b),
        ),
        (4, lambda w, b: rms_norm(x, (4,), w, 1e-5, backend=at), lambda w, b: F.rms_norm(x, (4,), w, 1e-5)),
    )
    for size, ours, theirs in calls:
        weight = random(size, seed=1).requires_grad_() if weighted else None
        bias = random(size, seed=2).requires_grad_() if biased else None
        got, want = ours(weight, bias), theirs(weight, bias)
        torch.testing.assert_close(got, want)
        used = [t for t in (x, weight, bias) if t is not None]
        grads = (torch.autograd.grad(y, used, dy, allow_unused=True) for y in (got, want))
        torch.testing.assert_close(*(list(g) for g in grads))


@each_backend()
def test_an_expanded_dy_is_not_written_to(backend: Backend) -> None:
    """inplace_abn#155: scaled in place, an expanded upstream gradient is scaled many times."""
    for kind in ("layer", "group"):
        x = random(4, 6, 5).requires_grad_()
        act = fastnorm.GeneralRelu(0.1, 0.4)
        y = (
            layer_norm(x, (5,), act=act, backend=backend.namespace)
            if kind == "layer"
            else group_norm(x, 2, act=act, backend=backend.namespace)
        )
        one = torch.ones(1, device=DEVICE)
        y.backward(one.expand(y.shape))
        assert float(one) == 1.0


@pytest.mark.parametrize("kind", ["layer", "long rows", "group", "group channels_last", "over channels"])
@each_backend()
def test_a_gradient_of_the_residual_alone(kind: str, backend: Backend) -> None:
    """The backward that has neither dx nor parameters to write. Over long rows it wrote dx to nowhere for a day."""
    shape = {"layer": (3, 37), "long rows": (2, 16_389)}.get(kind, (2, 6, 5, 7))
    x, residual, dy = (random(*shape, seed=seed) for seed in range(3))
    if kind.endswith("channels_last"):
        x, residual, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual, dy))
    residual.requires_grad_()
    act, at = fastnorm.GeneralRelu(0.1, 0.4, maxv=1.0), backend.namespace
    if kind == "over channels":
        got = layer_norm_2d(x, residual=residual, act=act, backend=at)
        norm = F.layer_norm(x.movedim(1, -1), (6,), eps=1e-6).movedim(-1, 1)
    elif kind.startswith("group"):
        got, norm = group_norm(x, 3, residual=residual, act=act, backend=at), F.group_norm(x, 3)
    else:
        got = layer_norm(x, shape[1:], residual=residual, act=act, backend=at)
        norm = F.layer_norm(x, shape[1:])
    want = (F.leaky_relu(norm + residual, 0.1) - 0.4).clamp(max=1.0)
    grads = (torch.autograd.grad(y, residual, dy)[0] for y in (got, want))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("shape", [(3, 37), (3, 2_100), (2, 16_389)], ids=["short", "long", "longer than a chunk"])
@each_backend()
def test_gradients_of_the_parameters_alone(shape: tuple[int, ...], backend: Backend) -> None:
    """The backward that has no dx to write: dweight and dbias are then summed by loops of their own."""
    x, dy = random(*shape), random(*shape, seed=3)
    weight, bias = (random(shape[1], seed=seed).requires_grad_() for seed in (1, 2))
    got = layer_norm(x, shape[1:], weight, bias, backend=backend.namespace)
    want = F.layer_norm(x, shape[1:], weight, bias)
    grads = (torch.autograd.grad(y, (weight, bias), dy) for y in (got, want))
    torch.testing.assert_close(*(list(g) for g in grads))
