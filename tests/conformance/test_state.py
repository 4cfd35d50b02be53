"""Running statistics, counters, the lessons' layer, refused and empty batches, through the modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastnorm
from fastnorm.testing.compare import Expectation, check, ulp
from fastnorm.testing.composed import composed_relu
from fastnorm.testing.rounding import unit_of

from .backends import DEVICE, Backend, each_backend, random

UNIT = unit_of(torch.float32)
pytestmark = pytest.mark.column("batch_norm")


def agree(ours: torch.Tensor, exact: torch.Tensor, peer: torch.Tensor, label: str) -> None:
    """The rule with the rounding of one number of this size as its floor."""
    floor = UNIT * exact.detach().abs().amax().clamp_min(1)
    check(ours, Expectation(exact.detach().double(), peer.detach().double(), floor, ours.dtype), label)


@pytest.mark.parametrize("momentum", (None, 0.0, 0.1, 1.0))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@each_backend()
def test_running_statistics_over_batches(momentum: float | None, dtype: torch.dtype, backend: Backend) -> None:
    """Three batches, then evaluation; None is the cumulative average."""
    exact, theirs = (nn.BatchNorm2d(7, momentum=momentum, dtype=d) for d in (torch.float64, torch.float32))
    ours = fastnorm.BatchNorm2d(7, momentum=momentum, device=DEVICE)
    with fastnorm.use_backend(backend.namespace):
        for step in range(3):
            x = random(5, 7, 3, 11, seed=step, dtype=dtype) * 2 + step
            ours(x)
            exact(x.cpu().double())
            theirs(x.cpu().float())
            for name in ("running_mean", "running_var"):
                agree(
                    getattr(ours, name).cpu(),
                    getattr(exact, name),
                    getattr(theirs, name),
                    f"{name}, step {step}",
                )
        assert int(ours.num_batches_tracked) == 3
        before = {name: t.clone() for name, t in ours.state_dict().items()}
        ours.eval()(x)
    for name, t in ours.state_dict().items():
        assert torch.equal(t, before[name]), f"evaluation moved {name}"


@each_backend()
def test_without_buffers_the_batch_is_used_in_evaluation_too(backend: Backend) -> None:
    x = random(5, 7, 3, 11)
    bn = fastnorm.BatchNorm2d(7, track_running_stats=False, device=DEVICE)
    with fastnorm.use_backend(backend.namespace):
        assert torch.equal(bn.train()(x), bn.eval()(x))


@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
@each_backend()
def test_lesson_batch_norm(training: bool, backend: Backend) -> None:
    """Unbiased variance, nothing flows through the statistics, buffers are lerped by mom."""
    x, dy = random(5, 7, 3, 11, seed=1) * 3 + 2, random(5, 7, 3, 11, seed=2)
    ours = fastnorm.LessonBatchNorm(7, mom=0.25, eps=1e-3).to(DEVICE).train(training)
    with torch.no_grad():
        for i, t in enumerate((ours.mults, ours.adds, ours.means, ours.vars)):
            t.copy_(random(*t.shape, seed=3 + i).abs() + 0.5)
    results = {}
    for dtype in (torch.float64, torch.float32):
        leaves = [t.detach().cpu().to(dtype).requires_grad_() for t in (x, ours.mults, ours.adds)]
        means, variances = ours.means.cpu().to(dtype), ours.vars.cpu().to(dtype)
        if training:
            batch_mean = leaves[0].detach().mean((0, 2, 3), keepdim=True)
            batch_var = leaves[0].detach().var((0, 2, 3), keepdim=True, correction=1)
            means, variances = means.lerp(batch_mean, 0.25), variances.lerp(batch_var, 0.25)
        m, v = (batch_mean, batch_var) if training else (means, variances)
        y = (leaves[0] - m) / (v + 1e-3).sqrt() * leaves[1] + leaves[2]
        results[dtype] = (y, *torch.autograd.grad(y, leaves, dy.cpu().to(dtype)), means, variances)
    leaf = x.clone().requires_grad_()
    with fastnorm.use_backend(backend.namespace):
        y = ours(leaf)
        grads = torch.autograd.grad(y, (leaf, ours.mults, ours.adds), dy)
    labels = ("y", "dx", "dmults", "dadds", "means", "vars")
    for label, mine, exact, peer in zip(labels, (y, *grads, ours.means, ours.vars), *results.values(), strict=True):
        agree(mine.detach(), exact, peer, label)


@pytest.mark.parametrize("shape", ((1, 7), (1, 7, 1, 1), (1, 7, 1, 1, 1)), ids=str)
@each_backend()
def test_one_value_per_channel_is_refused_in_training(shape: tuple[int, ...], backend: Backend) -> None:
    x = random(*shape)
    buffers = torch.zeros(7, device=DEVICE), torch.ones(7, device=DEVICE)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        fastnorm.functional.batch_norm(x, *buffers, training=True, backend=backend.namespace)
    y = fastnorm.functional.batch_norm(x, *buffers, backend=backend.namespace)
    agree(y.cpu(), x.cpu().double() / (1 + 1e-5) ** 0.5, x.cpu() / (1 + 1e-5) ** 0.5, "evaluation")


@pytest.mark.parametrize("shape", ((0, 7, 3, 5), (0, 7), (2, 7, 0, 5), (3, 7, 0)), ids=str)
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
@each_backend()
def test_empty_batch(shape: tuple[int, ...], training: bool, backend: Backend) -> None:
    """An empty result, zero gradients, untouched statistics; the counter advances."""
    kind = {2: fastnorm.BatchNorm1d, 3: fastnorm.BatchNorm1d, 4: fastnorm.BatchNorm2d}[len(shape)]
    bn = kind(7, act=fastnorm.GeneralRelu(0.1, 0.4), device=DEVICE).train(training)
    x, residual = (torch.empty(shape, device=DEVICE, requires_grad=True) for _ in range(2))
    with fastnorm.use_backend(backend.namespace):
        y = bn(x, residual)
        y.sum().backward()
    assert y.shape == x.grad.shape == residual.grad.shape == shape
    for parameter in (bn.weight, bn.bias):
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    assert torch.equal(bn.running_mean, torch.zeros(7, device=DEVICE))
    assert torch.equal(bn.running_var, torch.ones(7, device=DEVICE))
    assert int(bn.num_batches_tracked) == int(training)


@pytest.mark.column("general_relu")
@each_backend()
def test_general_relu_of_nothing(backend: Backend) -> None:
    x = torch.empty(0, 3, device=DEVICE, requires_grad=True)
    y = fastnorm.functional.general_relu(x, 0.1, 0.4, 1.0, backend=backend.namespace)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 3)


@each_backend()
def test_relu_modules_as_act(backend: Backend) -> None:
    """torch.nn's activations fuse as what they are."""
    x = random(5, 7, 3, 11)
    pairs = (
        (nn.ReLU(), (None,) * 4),
        (nn.LeakyReLU(0.2), (0.2, None, None, None)),
        (nn.ReLU6(), (None, None, 6.0, None)),
    )
    with fastnorm.use_backend(backend.namespace):
        plain = fastnorm.BatchNorm2d(7, device=DEVICE)(x)
        for module, numbers in pairs:
            fused = fastnorm.BatchNorm2d(7, act=module, device=DEVICE)(x)
            want = composed_relu(plain.double(), *numbers).cpu()
            floor = ulp(want, torch.float32)
            check(
                fused.detach(),
                Expectation(want.detach(), want.detach(), floor.detach(), fused.dtype),
                str(module),
            )
