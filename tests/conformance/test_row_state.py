"""The row family through its modules: instance norm's running statistics, the lessons' layer, empty batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastnorm
from fastnorm.testing.compare import Expectation, check, ulp
from fastnorm.testing.composed import composed_relu
from fastnorm.testing.rounding import sum_floor

from .backends import DEVICE, Backend, each_backend, random
from .test_state import UNIT, agree

FULL = fastnorm.GeneralRelu(0.1, 0.4)


@pytest.mark.parametrize("momentum", (None, 0.0, 0.1, 1.0))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@each_backend()
def test_instance_statistics_over_batches(momentum: float | None, dtype: torch.dtype, backend: Backend) -> None:
    """Three batches, then evaluation, which uses the buffers; with momentum None they never move, as torch's."""
    exact, theirs = (
        nn.InstanceNorm2d(7, momentum=momentum, track_running_stats=True, dtype=d)
        for d in (torch.float64, torch.float32)
    )
    ours = fastnorm.InstanceNorm2d(7, momentum=momentum, track_running_stats=True, device=DEVICE)
    with fastnorm.use_backend(backend.namespace):
        for step in range(3):
            x = random(5, 7, 3, 11, seed=step, dtype=dtype) * 2 + step
            y, want = ours(x), (exact(x.cpu().double()), theirs(x.cpu().float()))
            for name in ("running_mean", "running_var"):
                agree(getattr(ours, name).cpu(), getattr(exact, name), getattr(theirs, name), f"{name}, step {step}")
        agree(y.cpu(), *want, "training")
        before = {name: t.clone() for name, t in ours.state_dict().items()}
        want = exact.eval()(x.cpu().double()), theirs.eval()(x.cpu().float())
        agree(ours.eval()(x).cpu(), *want, "evaluation")
    for name, t in ours.state_dict().items():
        assert torch.equal(t, before[name]), f"evaluation moved {name}"


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=("nchw", "nhwc"))
@pytest.mark.parametrize("act", (None, FULL), ids=("linear", "act"))
@each_backend()
def test_lesson_layer_norm(act: nn.Module | None, layout: torch.memory_format, backend: Backend) -> None:
    """Unbiased variance over C, H, W; one mult and one add; gradients flow through the statistics."""
    x, dy = random(5, 7, 3, 11, seed=1) * 3 + 2, random(5, 7, 3, 11, seed=2)
    ours = fastnorm.LessonLayerNorm(7, eps=1e-3, act=act).to(DEVICE)
    with torch.no_grad():
        ours.mult.fill_(1.25)
        ours.add.fill_(-0.3)
    results = {}
    for dtype in (torch.float64, torch.float32):
        x_leaf = x.detach().cpu().to(dtype).requires_grad_()
        mult, add = (t.detach().cpu().to(dtype).expand(x.shape).requires_grad_() for t in (ours.mult, ours.add))
        m, v = x_leaf.mean((1, 2, 3), keepdim=True), x_leaf.var((1, 2, 3), keepdim=True)
        y = (x_leaf - m) / (v + 1e-3).sqrt() * mult + add
        y = y if act is None else composed_relu(y, 0.1, 0.4, None, None)
        results[dtype] = (y, *torch.autograd.grad(y, (x_leaf, mult, add), dy.cpu().to(dtype)))
    leaf = x.contiguous(memory_format=layout).requires_grad_()
    with fastnorm.use_backend(backend.namespace):
        y = ours(leaf)
        grads = torch.autograd.grad(y, (leaf, ours.mult, ours.add), dy)
    assert y.is_contiguous(memory_format=layout) and grads[0].is_contiguous(memory_format=layout)
    exact, peer = results.values()
    for label, mine, want, other in zip(("y", "dx"), (y, grads[0]), exact, peer, strict=False):
        agree(mine.detach().cpu(), want, other, label)
    for label, mine, terms, others in zip(("dmult", "dadd"), grads[1:], exact[2:], peer[2:], strict=True):
        floor = sum_floor(terms, (0, 1, 2, 3), UNIT).reshape(())
        check(mine, Expectation(terms.sum(), others.sum().double(), floor, torch.float32), label)


EMPTY = {
    "no rows": (lambda: fastnorm.LayerNorm(5, act=FULL), (0, 5)),
    "no samples": (lambda: fastnorm.LayerNorm((3, 5), act=FULL), (0, 7, 3, 5)),
    "no elements": (lambda: fastnorm.LayerNorm((0, 5), act=FULL), (7, 0, 5)),
    "no rms rows": (lambda: fastnorm.RMSNorm(5, act=FULL), (3, 0, 5)),
    "no group samples": (lambda: fastnorm.GroupNorm(2, 8, act=FULL), (0, 8, 3, 5)),
    "no group positions": (lambda: fastnorm.GroupNorm(2, 8, act=FULL), (3, 8, 0, 5)),
    "no instance samples": (lambda: fastnorm.InstanceNorm2d(7, affine=True, act=FULL), (0, 7, 3, 5)),
    "no instance positions": (lambda: fastnorm.InstanceNorm2d(7, affine=True, act=FULL), (2, 7, 0, 5)),
    "tracked": (lambda: fastnorm.InstanceNorm2d(7, affine=True, track_running_stats=True), (0, 7, 3, 5)),
    "no positions": (lambda: fastnorm.LayerNorm2d(7, act=FULL), (2, 7, 0, 5)),
    "no position samples": (lambda: fastnorm.LayerNorm2d(7, act=FULL), (0, 7, 3, 5)),
    "no lesson samples": (lambda: fastnorm.LessonLayerNorm(7, act=FULL), (0, 7, 3, 5)),
}


@pytest.mark.parametrize("name", EMPTY)
@each_backend()
def test_empty(name: str, backend: Backend) -> None:
    """An empty result, zero gradients, untouched statistics. torch raises in instance norm's backward."""
    make, shape = EMPTY[name]
    layer = make().to(DEVICE)
    before = {key: buffer.clone() for key, buffer in layer.named_buffers()}
    x, residual = (torch.empty(shape, device=DEVICE, requires_grad=True) for _ in range(2))
    with fastnorm.use_backend(backend.namespace):
        y = layer(x, residual)
        y.sum().backward()
    assert y.shape == x.grad.shape == residual.grad.shape == shape
    for parameter in layer.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    for key, buffer in layer.named_buffers():
        assert torch.equal(buffer, before[key])


@pytest.mark.parametrize("module", (nn.ReLU(), nn.LeakyReLU(0.2), nn.ReLU6()), ids=lambda m: type(m).__name__)
@each_backend()
def test_relu_modules_as_act(module: nn.Module, backend: Backend) -> None:
    """torch.nn's activations fuse as what they are."""
    x = random(5, 6, 3, 11)
    makers = (
        lambda act: fastnorm.LayerNorm(11, act=act),
        lambda act: fastnorm.RMSNorm((3, 11), act=act),
        lambda act: fastnorm.GroupNorm(2, 6, act=act),
        lambda act: fastnorm.InstanceNorm2d(6, act=act),
        lambda act: fastnorm.LayerNorm2d(6, act=act),
        lambda act: fastnorm.LessonLayerNorm(6, act=act),
    )
    with fastnorm.use_backend(backend.namespace), torch.no_grad():
        for make in makers:
            want = module(make(None).to(DEVICE)(x).double()).cpu()
            fused = make(module).to(DEVICE)(x)
            check(fused, Expectation(want, want, ulp(want, torch.float32), fused.dtype), repr(make(module)))
