"""The row family's modules beside torch.nn's: construction, fusion, statistics, hooks, sharing, checkpointing."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import fastnorm

# name, constructor arguments, shape of the input
LAYERS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    "layer": ("LayerNorm", (5,), {}, (4, 6, 5)),
    "layer over images": ("LayerNorm", ((6, 5, 3),), {}, (4, 6, 5, 3)),
    "rms": ("RMSNorm", (5,), {}, (4, 6, 5)),
    "rms with eps": ("RMSNorm", ((6, 5),), {"eps": 1e-3}, (4, 6, 5)),
    "group": ("GroupNorm", (3, 6), {}, (4, 6, 5, 3)),
    "instance 1d": ("InstanceNorm1d", (6,), {"affine": True}, (4, 6, 5)),
    "instance 2d": ("InstanceNorm2d", (6,), {"affine": True}, (4, 6, 5, 3)),
    "instance 3d": ("InstanceNorm3d", (6,), {"affine": True}, (4, 6, 5, 2, 3)),
    "instance tracked": ("InstanceNorm2d", (6,), {"affine": True, "track_running_stats": True}, (4, 6, 5, 3)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
KINDS = ("LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")


def pair(name: str, **extra: Any) -> tuple[nn.Module, nn.Module]:
    """torch's layer with random parameters and ours with its state; extra arguments are ours alone."""
    kind, args, kwargs, _ = LAYERS[name]
    theirs = getattr(nn, kind)(*args, **kwargs)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.uniform_(0.5, 1.5)
    ours = getattr(fastnorm, kind)(*args, **kwargs, **extra)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def data(name: str, *, grad: bool = False) -> tuple[Tensor, Tensor]:
    shape = LAYERS[name][3]
    return torch.randn(shape, requires_grad=grad), torch.randn(shape)


@pytest.mark.parametrize("kind", KINDS)
def test_constructor_takes_torchs_arguments_in_its_order(kind: str) -> None:
    own, reference = inspect.signature(getattr(fastnorm, kind)), inspect.signature(getattr(nn, kind))
    assert list(own.parameters) == [*reference.parameters, "act"]
    for name, parameter in reference.parameters.items():
        assert (own.parameters[name].kind, own.parameters[name].default) == (parameter.kind, parameter.default), name
    assert own.parameters["act"].kind is inspect.Parameter.KEYWORD_ONLY
    assert issubclass(getattr(fastnorm, kind), getattr(nn, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_repr_is_torchs(kind: str) -> None:
    args = {"LayerNorm": ((6, 5),), "RMSNorm": (5,), "GroupNorm": (3, 6)}.get(kind, (6,))
    switch = {"LayerNorm": "elementwise_affine", "RMSNorm": "elementwise_affine"}.get(kind, "affine")
    for kwargs in ({}, {"eps": 1e-3}, {switch: False}, {switch: True}):
        assert repr(getattr(fastnorm, kind)(*args, **kwargs)) == repr(getattr(nn, kind)(*args, **kwargs))


def test_repr_names_what_is_fused() -> None:
    act = fastnorm.GeneralRelu(0.1, 0.4)
    layers = (
        fastnorm.LayerNorm(5, act=act),
        fastnorm.RMSNorm(5, act=act),
        fastnorm.GroupNorm(3, 6, act=act),
        fastnorm.InstanceNorm2d(6, act=act),
        fastnorm.LayerNorm2d(6, act=act),
        fastnorm.LessonLayerNorm(6, act=act),
    )
    for layer in layers:
        assert repr(layer).startswith(type(layer).__name__ + "(")
        assert repr(layer).endswith("act=GeneralRelu(leak=0.1, sub=0.4))")
    assert repr(fastnorm.LayerNorm2d(6)) == "LayerNorm2d(6, eps=1e-06, elementwise_affine=True, bias=True)"
    assert repr(fastnorm.LessonLayerNorm(6, eps=1e-3)) == "LessonLayerNorm(eps=0.001)"


ACTS: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "none": (None, lambda z: z),
    "relu": (nn.ReLU(inplace=True), F.relu),
    "general": (fastnorm.GeneralRelu(0.1, 0.4, 1.0), lambda z: (F.leaky_relu(z, 0.1) - 0.4).clamp_max(1.0)),
}


@pytest.mark.parametrize("act", ACTS)
@every_layer
def test_fused_activation_and_residual(cpu_backend: str, name: str, act: str) -> None:
    fused, composed = ACTS[act]
    ours, theirs = pair(name, act=fused)
    (x, dy), residual = data(name, grad=True), torch.randn(LAYERS[name][3], requires_grad=True)
    for training in (True, False):
        ours.train(training), theirs.train(training)
        for added in (None, residual):
            expected = composed(theirs(x) if added is None else theirs(x) + added)
            y = ours(x, added)
            assert_close(y, expected)
            inputs = [x] if added is None else [x, added]
            found = torch.autograd.grad(y, [*inputs, *ours.parameters()], dy)
            assert_close(found, torch.autograd.grad(expected, [*inputs, *theirs.parameters()], dy))
            assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))


@pytest.mark.parametrize("momentum", [None, 0.0, 0.1, 1.0])
def test_running_statistics_follow_torch(cpu_backend: str, momentum: float | None) -> None:
    ours, theirs = (m.InstanceNorm2d(6, momentum=momentum, track_running_stats=True) for m in (fastnorm, nn))
    for step in range(3):
        x = torch.randn(4, 6, 5, 3) * (step + 1) + step
        assert_close(ours(x), theirs(x))
        assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    assert_close(ours.eval()(x), theirs.eval()(x))
    assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("tracked", [False, True])
def test_instance_norm_of_one_sample(cpu_backend: str, dims: int, tracked: bool) -> None:
    """Without a batch dim, as torch's: its residual has none either."""
    act = nn.LeakyReLU(0.1)
    ours = getattr(fastnorm, f"InstanceNorm{dims}d")(6, track_running_stats=tracked, act=act)
    theirs = getattr(nn, f"InstanceNorm{dims}d")(6, track_running_stats=tracked)
    x, residual = (torch.randn(6, *([4] * dims), requires_grad=True) for _ in range(2))
    y, expected = ours(x, residual), act(theirs(x) + residual)
    assert_close(y, expected)
    dy = torch.randn_like(y)
    assert_close(torch.autograd.grad(y, [x, residual], dy), torch.autograd.grad(expected, [x, residual], dy))
    assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))


@pytest.mark.parametrize("track", [True, False])
def test_track_running_stats_switched_off_later(cpu_backend: str, track: bool) -> None:
    ours, theirs = (m.InstanceNorm1d(6, track_running_stats=True) for m in (fastnorm, nn))
    x = torch.randn(4, 6, 5)
    for layer in (ours, theirs):
        layer(x)
        layer.track_running_stats = track
    assert_close(ours.eval()(x + 3), theirs.eval()(x + 3))
    assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))


@every_layer
def test_conversions(cpu_backend: str, name: str) -> None:
    for convert in ("half", "bfloat16", "double", "float"):
        ours, theirs = (getattr(layer, convert)() for layer in pair(name))
        kinds = {key: t.dtype for key, t in theirs.state_dict().items()}
        assert {key: t.dtype for key, t in ours.state_dict().items()} == kinds
        x = data(name)[0].to(kinds["weight"])
        assert ours(x).dtype == x.dtype
        assert {key: t.dtype for key, t in ours.state_dict().items()} == kinds


@every_layer
def test_deepcopy_is_independent(cpu_backend: str, name: str) -> None:
    ours, _ = pair(name, act=fastnorm.GeneralRelu(0.1, 0.4))
    twin = copy.deepcopy(ours)
    x = data(name)[0]
    assert repr(twin) == repr(ours)
    assert torch.equal(twin(x), ours(x))
    with torch.no_grad():
        twin.weight.add_(1)
    assert not torch.equal(twin(x), ours(x))


class Squared(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight**2


@every_layer
def test_parametrized_weight(cpu_backend: str, name: str) -> None:
    layers = pair(name)
    x, dy = data(name)
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Squared())
        layer(x).backward(dy)
    assert_close(*(layer.parametrizations.weight.original.grad for layer in layers))
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")
    assert_close(*(layer(x) for layer in layers))


@every_layer
def test_module_hooks(cpu_backend: str, name: str) -> None:
    x, _ = data(name, grad=True)
    results = []
    for layer in pair(name):
        record: list[Any] = []
        layer.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
        layer.register_forward_hook(lambda m, args, y: y + 1)
        layer.register_full_backward_pre_hook(lambda m, dy: (dy[0] * 3,))
        layer.register_full_backward_hook(lambda m, dx, dy, record=record: record.extend([*dx, *dy]))
        y = layer(x)
        record += torch.autograd.grad(y, x, torch.ones_like(y) * x.detach())
        results.append([*record, y.detach()])
    assert_close(*results)
    assert len(results[0]) == 4


@pytest.mark.parametrize("reentrant", [True, False])
@every_layer
def test_checkpointing(cpu_backend: str, name: str, reentrant: bool) -> None:
    """Right gradients. A recomputation moves running statistics again, as torch's does; but one that may stop early,
    once it has what the backward needs, stops in front of ours, which move last."""
    ours, theirs = pair(name, act=nn.ReLU())
    x, dy = data(name, grad=True)
    residual = torch.randn(LAYERS[name][3], requires_grad=True)
    results = []
    for layer, call in ((ours, ours), (theirs, lambda x, r: F.relu(theirs(x) + r))):
        x.grad = residual.grad = None
        checkpoint(call, x, residual, use_reentrant=reentrant).backward(dy)
        results.append([x.grad, residual.grad, *(p.grad for p in layer.parameters())])
        results[-1] += list(layer.buffers()) if reentrant else []
    assert_close(*results)


@every_layer
def test_functional_call_leaves_the_module_alone(cpu_backend: str, name: str) -> None:
    ours, theirs = pair(name)
    before = copy.deepcopy(dict(ours.state_dict()))
    states = [{key: t.clone() for key, t in layer.state_dict().items()} for layer in (ours, theirs)]
    for state in states:
        state["weight"] += 1
    x = data(name)[0]
    assert_close(*(torch.func.functional_call(m, s, (x,)) for m, s in zip((ours, theirs), states, strict=True)))
    assert_close(*states)
    assert_close(dict(ours.state_dict()), before, rtol=0, atol=0)


def test_shared_weight_gets_both_gradients(cpu_backend: str) -> None:
    results = []
    for module in (fastnorm, nn):
        torch.manual_seed(1)
        first, second = module.LayerNorm(5), module.LayerNorm(5)
        second.weight = second.bias = first.weight
        second(F.relu(first(torch.randn(4, 5)))).backward(torch.randn(4, 5))
        results.append([first.weight.grad, first.bias.grad])
    assert_close(*results)
