"""What autograd promises: version counters, retained graphs, subsets of gradients, upstream gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from composed import ACT, SHAPE, UPSTREAM, both, composed_act, leaf
from torch import Tensor, nn
from torch.testing import assert_close

import fastnorm
from fastnorm.functional import batch_norm, general_relu

pytestmark = pytest.mark.usefixtures("recorder")


@pytest.mark.parametrize("changed", ["x", "weight", "bias", "residual"])
def test_in_place_change_of_a_saved_tensor_raises(cpu_backend: str, changed: str) -> None:
    tensors = {"x": leaf(*SHAPE), "weight": leaf(3), "bias": leaf(3), "residual": leaf(*SHAPE)}
    used = {name: t * 1 for name, t in tensors.items()}
    y = batch_norm(used["x"], None, None, used["weight"], used["bias"], True, act=ACT, residual=used["residual"])
    with torch.no_grad():
        used[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_change_of_the_result_is_harmless(cpu_backend: str) -> None:
    """The output is not saved, so an in-place operation behind the layer is allowed."""
    x, w, dy = leaf(*SHAPE), leaf(3), torch.randn(SHAPE)
    y = batch_norm(x, None, None, w, None, True, act=ACT)
    expected = torch.autograd.grad(y * 2, [x, w], dy, retain_graph=True)
    assert_close(torch.autograd.grad(y.mul_(2), [x, w], dy), expected)


def test_change_after_general_relu_raises(cpu_backend: str) -> None:
    x = leaf(6) * 1
    y = general_relu(x, 0.1, 0.4)
    x.data.add_(0)  # .data has a version of its own: unseen, as in torch
    x.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_running_statistics_bump_their_version(cpu_backend: str, grad: bool) -> None:
    """A graph that saved running_mean before a training step is told that it changed."""
    layer = fastnorm.BatchNorm2d(3, act=ACT)
    scale = leaf(3)
    waiting = (scale * layer.running_mean).sum() + (scale * layer.running_var).sum()
    versions = layer.running_mean._version, layer.running_var._version
    with torch.set_grad_enabled(grad):
        layer(torch.randn(SHAPE))
    assert layer.running_mean._version > versions[0] and layer.running_var._version > versions[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        waiting.backward()


def test_lesson_buffers_bump_their_version(cpu_backend: str) -> None:
    layer = fastnorm.LessonBatchNorm(3)
    versions = layer.means._version, layer.vars._version
    layer(torch.randn(SHAPE))
    assert layer.means._version > versions[0] and layer.vars._version > versions[1]


def test_evaluation_leaves_versions_alone(cpu_backend: str) -> None:
    layer = fastnorm.BatchNorm2d(3).eval()
    versions = [b._version for b in layer.buffers()]
    layer(leaf(*SHAPE)).sum().backward()
    assert [b._version for b in layer.buffers()] == versions


def test_retained_graph_twice_then_freed(cpu_backend: str) -> None:
    x, r, dy = leaf(*SHAPE), leaf(*SHAPE), torch.randn(SHAPE)
    layer = fastnorm.BatchNorm2d(3, act=ACT)
    y = layer(x, r)
    inputs = [x, r, *layer.parameters()]
    first = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    second = torch.autograd.grad(y, inputs, dy)
    assert_close(first, second, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, inputs, dy)


def test_second_backward_of_general_relu_raises(cpu_backend: str) -> None:
    x = leaf(6)
    y = general_relu(x, 0.1)
    y.backward(torch.ones(6), retain_graph=True)
    y.backward(torch.ones(6))
    with pytest.raises(RuntimeError, match="second time"):
        y.backward(torch.ones(6))


def test_two_forwards_one_backward_and_eval_between(cpu_backend: str) -> None:
    """B11: the graph remembers the mode and the statistics of its own forward pass."""
    x, dy = leaf(*SHAPE), torch.randn(SHAPE)
    results = []
    for layer in (fastnorm.BatchNorm2d(3), nn.BatchNorm2d(3)):
        first = layer(x)
        second = layer(2 * x + 1)
        layer.eval()
        results.append(torch.autograd.grad(first + second, [x, *layer.parameters()], dy))
        third = layer(x)  # eval, then train() and another step before its backward
        layer.train()
        results[-1] += torch.autograd.grad(third, [x, *layer.parameters()], dy)
    assert_close(*results)


def test_statistics_moved_between_an_evaluation_and_its_backward(cpu_backend: str) -> None:
    """torch saved running_mean and raises; ours raises or has the right gradient, never a wrong one."""
    layer = fastnorm.BatchNorm2d(3).eval()
    x, dy = leaf(*SHAPE), torch.randn(SHAPE)
    expected = torch.autograd.grad(layer(x), x, dy)
    y = layer(x)
    with torch.no_grad():
        layer.running_mean.add_(5)
        layer.running_var.mul_(9)
    try:
        found = torch.autograd.grad(y, x, dy)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("fused", [True, False], ids=["act", "linear"])
@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=4)), ids=str)
def test_gradients_exactly_where_torch_has_them(
    cpu_backend: str, training: bool, fused: bool, wanted: tuple[bool, ...]
) -> None:
    def fresh() -> list[Tensor]:
        torch.manual_seed(3)
        shapes = [SHAPE, (3,), (3,), SHAPE]
        return [torch.randn(s).requires_grad_(want) for s, want in zip(shapes, wanted, strict=True)]

    ours_in, theirs_in = fresh(), fresh()
    y, expected = both(*ours_in, training, fused)[0], both(*theirs_in, training, fused)[1]
    assert y.requires_grad == expected.requires_grad == any(wanted)
    assert_close(y, expected)
    if not any(wanted):
        return
    dy = torch.randn(SHAPE)
    y.backward(dy)
    expected.backward(dy)
    for own, reference in zip(ours_in, theirs_in, strict=True):
        assert (own.grad is None) == (reference.grad is None)
        if own.grad is not None:
            assert_close(own.grad, reference.grad)


def test_one_tensor_as_input_and_residual(cpu_backend: str) -> None:
    for fused in (True, False):
        x, w, dy = leaf(*SHAPE), leaf(3), torch.randn(SHAPE)
        y, expected = both(x, w, None, x, True, fused)
        found = torch.autograd.grad(y, [x, w], dy, create_graph=True)
        wanted = torch.autograd.grad(expected, [x, w], dy, create_graph=True)
        assert_close(found, wanted)
        probe = torch.randn(SHAPE)
        assert_close(*(torch.autograd.grad(g[0], [x, w], probe, allow_unused=True) for g in (found, wanted)))


def test_one_vector_as_weight_and_bias(cpu_backend: str) -> None:
    x, w, dy = leaf(*SHAPE), leaf(3), torch.randn(SHAPE)
    y, expected = both(x, w, w, None)
    assert_close(torch.autograd.grad(y, w, dy), torch.autograd.grad(expected, w, dy))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_residual_of_another_dtype_gets_its_gradient_back_in_it(cpu_backend: str, dtype: torch.dtype) -> None:
    x, r = leaf(*SHAPE), torch.randn(SHAPE, dtype=dtype, requires_grad=True)
    for act in (ACT, None):
        r.grad = None
        y = batch_norm(x, None, None, training=True, act=act, residual=r)
        y.backward(torch.ones(SHAPE))
        assert y.dtype == x.dtype and r.grad.dtype == dtype


@pytest.mark.parametrize("fused", [True, False], ids=["act", "linear"])
def test_upstream_gradient_is_never_written(cpu_backend: str, fused: bool) -> None:
    """M5, also through later accumulation: without an activation dresidual is dy itself."""
    x, r, dy = leaf(*SHAPE), leaf(*SHAPE), torch.randn(SHAPE)
    before = dy.clone()
    for _ in range(2):
        both(x, None, None, r, True, fused)[0].backward(dy)
    assert torch.equal(dy, before)
    assert r.grad.data_ptr() != dy.data_ptr()


@pytest.mark.parametrize("name", UPSTREAM)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_upstream_gradients_of_any_strides(cpu_backend: str, name: str, layout: torch.memory_format) -> None:
    """M4."""
    dy = UPSTREAM[name](SHAPE)
    x, r = (torch.randn(SHAPE).to(memory_format=layout).requires_grad_() for _ in range(2))
    w, b = leaf(3), leaf(3)
    for fused in (True, False):
        y, expected = both(x, w, b, r, True, fused)
        assert_close(torch.autograd.grad(y, [x, w, b, r], dy), torch.autograd.grad(expected, [x, w, b, r], dy))
    y = general_relu(x, 0.1, 0.4, 1.0)
    assert_close(torch.autograd.grad(y, x, dy), torch.autograd.grad(composed_act(x), x, dy))


def test_tensor_hooks(cpu_backend: str) -> None:
    x, r, dy = leaf(*SHAPE), leaf(*SHAPE), torch.randn(SHAPE)
    layer = fastnorm.BatchNorm2d(3, act=ACT)
    y = layer(x, r)
    plain = torch.autograd.grad(y, [x, r], dy, retain_graph=True)
    seen = []
    x.register_hook(lambda g: g * 2)
    y.register_hook(lambda g: seen.append(g.clone()))
    r.register_post_accumulate_grad_hook(lambda t: seen.append(t.grad.clone()))
    y.backward(dy)
    assert_close(x.grad, 2 * plain[0])
    assert_close(seen, [dy, plain[1]])
