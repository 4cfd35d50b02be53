"""What autograd sees: subsets of gradients, real graphs around the op, what is saved, what is detected."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastnorm.functional import batch_norm, general_relu
from fastnorm.testing import NormCase, RowCase, conform, forward, solved
from fastnorm.testing.layouts import storage_bits
from fastnorm.testing.row_tables import GROUP, LAYER, POSITION, RMS

from .backends import DEVICE, Backend, each_backend, random
from .functions import LEAKY, Option

CASE = NormCase((5, 7, 3, 11), act="full", residual="same")
CASES = (CASE, CASE.but(training=False), *(base.but(act="full", residual="same") for base in (LAYER, GROUP, POSITION)))
LEAVES = ("x", "weight", "bias", "residual")
NORMS = {
    "batch": Option(act=LEAKY),
    "layer": Option("layer", 1, act=LEAKY),
    "images": Option("layer", 3, act=LEAKY),
    "group": Option("group", 7, act=LEAKY),
    "position": Option("position", act=LEAKY),
}
every_norm = pytest.mark.parametrize("norm", NORMS)


@pytest.mark.parametrize("case", (*CASES, RMS.but(act="full", residual="same")), ids=lambda c: c.name)
@pytest.mark.parametrize("act", (None, "full"))
@each_backend()
def test_every_subset_of_gradients(case: NormCase | RowCase, act: str | None, backend: Backend) -> None:
    """Each subset gets bit for bit what all together get, and the others get nothing."""
    case = case.but(act=act, shape=(2, case.shape[1], 2, 5) if backend.slow else case.shape)
    kept, _ = solved(case)
    full = conform(case, backend.namespace, backend.device)
    leaves = [name for name in LEAVES if name in kept.tensors()]
    for size in range(len(leaves) + 1):
        for subset in itertools.combinations(leaves, size):
            p = kept.copy(backend.device)
            for name in subset:
                p.tensors()[name].requires_grad_()
            y = forward(case, p, backend.namespace)
            assert y.requires_grad == bool(subset)
            assert torch.equal(y, full["y"])
            if subset:
                y.backward(p.dy)
            for name in leaves:
                grad = p.tensors()[name].grad
                if name in subset:
                    assert grad is not None and torch.equal(grad, full[f"d{name}"]), (name, subset)
                else:
                    assert grad is None


@pytest.mark.parametrize("finish", ("sum", "cat", "transpose", "mean"))
@every_norm
@each_backend()
def test_upstream_of_real_graphs(norm: str, finish: str, backend: Backend) -> None:
    """The op gives for the graph's own dy what it gives for a contiguous copy of it."""
    seen: list[Tensor] = []
    x = random(5, 7, 3, 11).requires_grad_()
    weight = random(*NORMS[norm].parameter_shape(x.shape), seed=1).requires_grad_()

    def run(contiguous: bool) -> tuple[Tensor, ...]:
        y = NORMS[norm].call(x, weight, None, None, backend.namespace)
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


@every_norm
@each_backend(fast=True)
def test_batched_upstream(norm: str, backend: Backend) -> None:
    """Several upstream gradients in one call (is_grads_batched, a vmap over the backward) are those one by one."""
    x, residual = (random(3, 7, 2, 5, seed=s).requires_grad_() for s in (0, 1))
    weight = random(*NORMS[norm].parameter_shape(x.shape), seed=2).requires_grad_()
    y = NORMS[norm].call(x, weight, None, residual, backend.namespace)
    leaves, dy = (x, weight, residual), random(4, 3, 7, 2, 5, seed=3)
    batched = torch.autograd.grad(y, leaves, dy, retain_graph=True, is_grads_batched=True)
    single = [torch.autograd.grad(y, leaves, one, retain_graph=True) for one in dy]
    for got, want in zip(batched, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(want))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@each_backend()
def test_upstream_stays_as_it_was(case: NormCase | RowCase, backend: Backend) -> None:
    """Also where the residual's gradient is dy itself: changing one must not change the other."""
    for act in (None, "full"):
        kept, _ = solved(case.but(act=act))
        p = kept.copy(backend.device)
        before = storage_bits(p.dy)
        for name in LEAVES:
            p.tensors()[name].requires_grad_()
        forward(case.but(act=act), p, backend.namespace).backward(p.dy)
        assert torch.equal(storage_bits(p.dy), before)
        p.x.grad.add_(1)
        assert torch.equal(storage_bits(p.dy), before)


def sets(norm: str, shape: tuple[int, ...]) -> int:
    """A mean and an rstd are kept of each."""
    n, c, h, w = shape
    return {"batch": c, "layer": n * c * h, "images": n, "group": n * c, "position": n * h * w}[norm]


def saved_bytes(
    option: Option, shape: tuple[int, ...], buffers: tuple[Tensor, Tensor], backend: Backend
) -> tuple[int, int, int]:
    """Bytes of distinct storages that one training forward saves, those of x, and of weight and bias."""
    x = random(*shape).requires_grad_()
    weight, bias = (random(*option.parameter_shape(x.shape), seed=s).requires_grad_() for s in (1, 2))
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    residual = random(*x.shape, seed=3).requires_grad_() if option.residual else None
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = option.call(x, weight, bias, residual, backend.namespace, buffers)
    assert y.grad_fn is not None
    return sum(storages.values()), x.untyped_storage().nbytes(), 2 * weight.untyped_storage().nbytes()


@every_norm
@each_backend()
def test_saved_bytes(norm: str, backend: Backend) -> None:
    """x, weight and bias, a mean and an rstd per set; with a residual and an activation that too."""
    shape = (4, 7, 3, 11) if backend.slow else (16, 7, 9, 11)
    buffers = torch.zeros(7, device=DEVICE), torch.ones(7, device=DEVICE)
    for act, residual, tensors in ((None, False, 1), (LEAKY, False, 1), (None, True, 1), (LEAKY, True, 2)):
        option = replace(NORMS[norm], act=act, residual=residual)
        saved, size, parameters = saved_bytes(option, shape, buffers, backend)
        vectors = parameters + 2 * 4 * sets(norm, shape)
        assert vectors < size  # else one tensor more would pass
        assert tensors * size <= saved <= tensors * size + vectors, (act, residual)


@every_norm
@each_backend()
def test_backward_twice(norm: str, backend: Backend) -> None:
    x, dy = random(5, 7, 3, 11).requires_grad_(), random(5, 7, 3, 11, seed=1)
    y = NORMS[norm].call(x, None, None, None, backend.namespace)
    (first,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    (second,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x, dy)


@pytest.mark.parametrize("changed", ("x", "weight", "residual"))
@every_norm
@each_backend()
def test_in_place_change_of_a_saved_tensor_is_detected(norm: str, changed: str, backend: Backend) -> None:
    shape = (5, 7, 3, 11)
    tensors = {
        "x": random(*shape),
        "weight": random(*NORMS[norm].parameter_shape(shape), seed=1),
        "residual": random(*shape, seed=2),
    }
    for t in tensors.values():
        t.requires_grad_()
    y = NORMS[norm].call(tensors["x"], tensors["weight"], None, tensors["residual"], backend.namespace)
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.column("batch_norm")
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


@pytest.mark.column("batch_norm")
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
