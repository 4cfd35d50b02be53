"""What autograd promises: version counters, retained graphs, grad subsets, modes, hooks, double backward."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.testing import assert_close

import fastnorm
from fastnorm.functional import batch_norm, general_relu

ACT = fastnorm.GeneralRelu(0.1, 0.4, 1.0)
SHAPE = (4, 3, 5, 2)


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype).requires_grad_()


def composed_act(z: Tensor) -> Tensor:
    return (F.leaky_relu(z, 0.1) - 0.4).clamp_max(1.0)


def both(
    x: Tensor, w: Tensor | None, b: Tensor | None, r: Tensor | None, training: bool = True, fused: bool = True
) -> tuple[Tensor, Tensor]:
    """Ours and composed torch, on the same tensors, without running statistics unless evaluating."""
    stats = (None, None) if training else (torch.linspace(-1, 1, 3).to(x.dtype), torch.linspace(0.5, 2, 3).to(x.dtype))
    y = batch_norm(x, *stats, w, b, training, act=ACT if fused else None, residual=r)
    z = F.batch_norm(x, *stats, w, b, training)
    z = z if r is None else z + r
    return y, composed_act(z) if fused else z


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


UPSTREAM: dict[str, Callable[[], Tensor]] = {
    "expanded": lambda: torch.randn(1).expand(SHAPE),
    "expanded-batch": lambda: torch.randn(1, *SHAPE[1:]).expand(SHAPE),
    "transposed": lambda: torch.randn(SHAPE[3], *SHAPE[1:3], SHAPE[0]).transpose(0, 3),
    "sliced": lambda: torch.randn(8, 3, 5, 4)[::2, :, :, 1::2],
    "channels_last": lambda: torch.randn(SHAPE).to(memory_format=torch.channels_last),
    "offset": lambda: torch.randn(121)[1:].view(SHAPE),
}


@pytest.mark.parametrize("name", UPSTREAM)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_upstream_gradients_of_any_strides(cpu_backend: str, name: str, layout: torch.memory_format) -> None:
    """M4."""
    dy = UPSTREAM[name]()
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


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(cpu_backend: str, mode: Any) -> None:
    """A8: inference tensors have no version counter to move."""
    layer = fastnorm.BatchNorm2d(3, act=ACT)
    reference = nn.BatchNorm2d(3)
    with mode():
        x = torch.randn(SHAPE)
        y = layer(x, x)
        assert_close(y, composed_act(reference(x) + x))
        assert not y.requires_grad and y.is_inference() == (mode is torch.inference_mode)
        assert_close(layer.eval()(x), composed_act(reference.eval()(x)))
        assert_close(general_relu(x, 0.1, 0.4, 1.0), composed_act(x))
    assert_close(dict(layer.named_buffers()), dict(reference.named_buffers()))
    layer.train()(torch.randn(SHAPE))  # and the buffers are still ordinary tensors


def test_module_built_in_inference_mode(cpu_backend: str) -> None:
    with torch.inference_mode():
        layer, reference = fastnorm.BatchNorm2d(3), nn.BatchNorm2d(3)
        x = torch.randn(SHAPE)
        assert_close(layer(x), reference(x))
        assert_close(layer.running_var, reference.running_var)


def test_inference_tensor_outside_of_the_mode(cpu_backend: str) -> None:
    """As torch: usable without gradients, refused where it would be saved for a backward."""
    with torch.inference_mode():
        x = torch.randn(SHAPE)
    with torch.no_grad():
        assert_close(fastnorm.BatchNorm2d(3)(x), nn.BatchNorm2d(3)(x))
    for layer in (nn.BatchNorm2d(3), fastnorm.BatchNorm2d(3)):
        with pytest.raises(RuntimeError, match=r"[Ii]nference tensors cannot be saved for backward"):
            layer(x)


def test_anomaly_mode_names_the_layer(cpu_backend: str) -> None:
    x = leaf(*SHAPE)
    with warnings.catch_warnings(record=True), torch.autograd.detect_anomaly(check_nan=True):
        layer = fastnorm.BatchNorm2d(3, act=ACT)
        layer(x).backward(torch.randn(SHAPE))
        with pytest.raises(RuntimeError, match="BatchNormFunctionBackward"):
            layer(x).backward(torch.full(SHAPE, float("nan")))


@pytest.mark.parametrize("maxv", [None, 1.0])
def test_inplace_general_relu_is_safe(cpu_backend: str, maxv: float | None) -> None:
    given, dy = leaf(4, 6), torch.randn(4, 6)
    x = given * 1
    y = fastnorm.GeneralRelu(0.1, 0.4, maxv, inplace=True)(x)
    assert y is x
    # Not in place: torch's leaky_relu_ keeps its result for the backward, so a sub_ behind it raises.
    expected = F.leaky_relu(given, 0.1) - 0.4
    expected = expected if maxv is None else expected.clamp_max(maxv)
    assert_close(y, expected)
    assert_close(torch.autograd.grad(y, given, dy), torch.autograd.grad(expected, given, dy))


def test_inplace_under_no_grad_and_on_leaves(cpu_backend: str) -> None:
    x = torch.randn(4, 6)
    expected, address, version = composed_act(x), x.data_ptr(), x._version
    assert general_relu(x, 0.1, 0.4, 1.0, inplace=True) is x
    assert_close(x, expected)
    assert x.data_ptr() == address and x._version > version
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        general_relu(leaf(3), 0.1, inplace=True)
    with torch.no_grad():
        general_relu(leaf(3), 0.1, inplace=True)


def test_inplace_on_a_tensor_that_another_node_saved_raises(cpu_backend: str) -> None:
    x = leaf(4) * 1
    squared = x * x
    general_relu(x, 0.1, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


def test_inplace_on_a_view_reaches_its_base(cpu_backend: str) -> None:
    given, dy = leaf(4, 6), torch.randn(4, 6)
    results = []
    for fused in (True, False):
        base = given * 1
        part = base[:, ::2]
        general_relu(part, 0.1, inplace=True) if fused else F.leaky_relu_(part, 0.1)
        results.append([base, *torch.autograd.grad(base, given, dy)])
    assert_close(*results)


def test_without_inplace_the_input_stays(cpu_backend: str) -> None:
    x = torch.randn(4, 6)
    before, version = x.clone(), x._version
    general_relu(x, 0.1, 0.4, 1.0)
    assert torch.equal(x, before) and x._version == version


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
