"""What autograd sees: subsets of gradients, real graphs around the op, what is saved, what is detected."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import fastnorm
from fastnorm.functional import batch_norm, general_relu
from fastnorm.testing import NormCase, conform, forward, solved
from fastnorm.testing.layouts import storage_bits

from .backends import DEVICE, Backend, each_backend, random

CASE = NormCase((5, 7, 3, 11), act="full", residual="same")
LEAVES = ("x", "weight", "bias", "residual")


@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
@pytest.mark.parametrize("act", (None, "full"))
@each_backend()
def test_every_subset_of_gradients(training: bool, act: str | None, backend: Backend) -> None:
    """Each subset gets bit for bit what all together get, and the others get nothing."""
    case = CASE.but(training=training, act=act)
    kept, _ = solved(case)
    full = conform(case, backend.namespace, backend.device)
    for size in range(len(LEAVES) + 1):
        for subset in itertools.combinations(LEAVES, size):
            p = kept.copy(backend.device)
            for name in subset:
                p.tensors()[name].requires_grad_()
            y = forward(case, p, backend.namespace)
            assert y.requires_grad == bool(subset)
            assert torch.equal(y, full["y"])
            if subset:
                y.backward(p.dy)
            for name in LEAVES:
                grad = p.tensors()[name].grad
                if name in subset:
                    assert grad is not None and torch.equal(grad, full[f"d{name}"]), (name, subset)
                else:
                    assert grad is None


@pytest.mark.parametrize("finish", ("sum", "cat", "transpose", "mean"))
@each_backend()
def test_upstream_of_real_graphs(finish: str, backend: Backend) -> None:
    """The op gives for the graph's own dy what it gives for a contiguous copy of it."""
    seen: list[Tensor] = []
    x = random(5, 7, 3, 11).requires_grad_()
    weight = random(7, seed=1).requires_grad_()

    def run(contiguous: bool) -> tuple[Tensor, ...]:
        y = batch_norm(x, None, None, weight, None, True, act=fastnorm.GeneralRelu(0.1, 0.4), backend=backend.namespace)
        y.register_hook(lambda dy: dy.contiguous().clone() if contiguous else seen.append(dy))
        if finish == "sum":
            loss = y.sum()
        elif finish == "cat":
            loss = (torch.cat([random(5, 4, 3, 11, seed=2), y], 1) * random(5, 11, 3, 11, seed=3)).sum()
        elif finish == "transpose":
            loss = (y.permute(2, 0, 3, 1).reshape(3, -1) * random(3, 385, seed=4)).sum()
        else:
            loss = (y.mean((2, 3)) * random(5, 7, seed=5)).sum()
        return torch.autograd.grad(loss, (x, weight))

    for ours, plain in zip(run(False), run(True), strict=True):
        assert torch.equal(ours, plain)
    assert finish == "mean" or not seen[0].is_contiguous()


@each_backend()
def test_upstream_stays_as_it_was(backend: Backend) -> None:
    """Also where the residual's gradient is dy itself: changing one must not change the other."""
    for act in (None, "full"):
        kept, _ = solved(CASE.but(act=act))
        p = kept.copy(backend.device)
        before = storage_bits(p.dy)
        for name in LEAVES:
            p.tensors()[name].requires_grad_()
        forward(CASE.but(act=act), p, backend.namespace).backward(p.dy)
        assert torch.equal(storage_bits(p.dy), before)
        p.x.grad.add_(1)
        assert torch.equal(storage_bits(p.dy), before)


def saved_bytes(backend: Backend, **options: object) -> tuple[int, int]:
    """Bytes of distinct storages that one training forward saves, and those of x."""
    x = random(16, 7, 9, 11).requires_grad_()
    weight, bias = (random(7, seed=s).requires_grad_() for s in (1, 2))
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    residual = random(*x.shape, seed=3).requires_grad_() if options.pop("residual", False) else None
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = batch_norm(
            x, torch.zeros(7, device=DEVICE), torch.ones(7, device=DEVICE), weight, bias, True,
            residual=residual, backend=backend.namespace, **options,
        )  # fmt: skip
    assert y.grad_fn is not None
    return sum(storages.values()), x.untyped_storage().nbytes()


@each_backend()
def test_saved_bytes(backend: Backend) -> None:
    """x and per-channel vectors (weight, bias, mean, rstd); with a residual and an activation both."""
    vectors, act = 4 * 7 * 4, fastnorm.GeneralRelu(0.1, 0.4)
    for options, tensors in (
        ({}, 1),
        ({"act": act}, 1),
        ({"residual": True}, 1),
        ({"act": act, "residual": True}, 2),
    ):
        saved, size = saved_bytes(backend, **options)
        assert tensors * size <= saved <= tensors * size + vectors, options


@each_backend()
def test_backward_twice(backend: Backend) -> None:
    x, dy = random(5, 7, 3, 11).requires_grad_(), random(5, 7, 3, 11, seed=1)
    y = batch_norm(x, None, None, training=True, act=fastnorm.GeneralRelu(0.1), backend=backend.namespace)
    (first,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    (second,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x, dy)


@pytest.mark.parametrize("changed", ("x", "weight", "residual"))
@each_backend()
def test_in_place_change_of_a_saved_tensor_is_detected(changed: str, backend: Backend) -> None:
    tensors = {"x": random(5, 7, 3, 11), "weight": random(7, seed=1), "residual": random(5, 7, 3, 11, seed=2)}
    for t in tensors.values():
        t.requires_grad_()
    y = batch_norm(
        tensors["x"], None, None, tensors["weight"], None, True, act=fastnorm.GeneralRelu(0.1, 0.4),
        residual=tensors["residual"], backend=backend.namespace,
    )  # fmt: skip
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@each_backend()
def test_moved_statistics_tell_autograd(backend: Backend) -> None:
    """The buffers' version moves with their values, and stays in evaluation and for backward's own use."""
    mean, var = torch.zeros(7, device=DEVICE), torch.ones(7, device=DEVICE)
    versions = mean._version, var._version
    x = random(5, 7, 3, 11).requires_grad_()
    y = batch_norm(x, mean, var, training=True, backend=backend.namespace)
    assert mean._version > versions[0] and var._version > versions[1]
    batch_norm(x, mean, var, training=True, backend=backend.namespace)
    y.backward(random(5, 7, 3, 11, seed=1))
    versions = mean._version, var._version
    batch_norm(x, mean, var, backend=backend.namespace)
    assert versions == (mean._version, var._version)


@each_backend()
def test_evaluation_gradient_survives_a_change_of_the_statistics(backend: Backend) -> None:
    """Either the gradient of what was computed, or an error: never that of the new statistics."""
    mean, var = torch.zeros(7, device=DEVICE), torch.ones(7, device=DEVICE)
    x, dy = random(5, 7, 3, 11).requires_grad_(), random(5, 7, 3, 11, seed=1)
    (want,) = torch.autograd.grad(batch_norm(x, mean, var, backend=backend.namespace), x, dy)
    y = batch_norm(x, mean, var, backend=backend.namespace)
    mean.add_(3)
    var.mul_(5)
    (got,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(got, want)


@each_backend()
def test_in_place_general_relu(backend: Backend) -> None:
    x, dy = random(5, 7, 3, 11), random(5, 7, 3, 11, seed=1)
    leaf = x.clone().requires_grad_()
    y = general_relu(leaf, 0.1, 0.4, 0.7, backend=backend.namespace)
    (want,) = torch.autograd.grad(y, leaf, dy)
    middle = leaf * 1
    version = middle._version
    out = general_relu(middle, 0.1, 0.4, 0.7, inplace=True, backend=backend.namespace)
    assert out is middle and middle._version > version and torch.equal(out, y)
    (got,) = torch.autograd.grad(out, leaf, dy)
    assert torch.equal(got, want)
    general_relu(x, 0.1, 0.4, 0.7, inplace=True, backend=backend.namespace)
    assert torch.equal(x, y)
