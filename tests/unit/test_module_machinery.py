"""What torch does to modules: conversions, copies, fusion, parametrizations, hooks, checkpointing, sharing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from batch_norm_twins import buffers_of, random_norm, twin
from torch import Tensor, nn
from torch.nn.utils import fusion, parametrize
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import fastnorm


def test_conversions_take_the_buffers_along(cpu_backend: str) -> None:
    for convert in ("half", "bfloat16", "double", "float"):
        theirs = getattr(random_norm(), convert)()
        ours = getattr(fastnorm.BatchNorm2d(3), convert)()
        kinds = {name: t.dtype for name, t in theirs.state_dict().items()}
        assert {name: t.dtype for name, t in ours.state_dict().items()} == kinds
        x = torch.randn(4, 3, 5, 5).to(kinds["weight"])
        assert ours(x).dtype == x.dtype
        assert {name: t.dtype for name, t in ours.state_dict().items()} == kinds
    moved = fastnorm.BatchNorm2d(3).to(torch.float64, memory_format=torch.channels_last)
    assert moved.running_var.dtype == torch.float64 and moved.num_batches_tracked.dtype == torch.int64


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: fastnorm.BatchNorm2d(6, act=nn.ReLU()),
    "sync": lambda: fastnorm.SyncBatchNorm(6),
    "layer": lambda: fastnorm.LayerNorm(5, act=nn.ReLU()),
    "layer2d": lambda: fastnorm.LayerNorm2d(6),
    "group": lambda: fastnorm.GroupNorm(2, 6),
    "instance": lambda: fastnorm.InstanceNorm2d(6, affine=True, track_running_stats=True),
    "rms": lambda: fastnorm.RMSNorm(5),
    "lesson batch": lambda: fastnorm.LessonBatchNorm(6),
    "lesson layer": lambda: fastnorm.LessonLayerNorm(6),
}


@pytest.mark.parametrize("name", LAYERS)
def test_default_dtype(cpu_backend: str, name: str) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        layer = LAYERS[name]()
        x = torch.randn(4, 6, 5, 5, requires_grad=True)
        layer(x).sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    kinds = {t.dtype for t in layer.state_dict().values() if t.is_floating_point()}
    assert kinds == {x.grad.dtype} == {torch.float64}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", LAYERS)
def test_default_device(name: str) -> None:
    torch.set_default_device("meta")
    try:
        layer = LAYERS[name]()
        x = torch.randn(4, 6, 5, 5, requires_grad=True)
        layer(x).sum().backward()
    finally:
        torch.set_default_device(None)
    assert {t.device.type for t in (x.grad, *layer.state_dict().values())} == {"meta"}  # type: ignore[union-attr]


@pytest.mark.parametrize("training", [True, False])
def test_deepcopy_is_independent(cpu_backend: str, training: bool) -> None:
    ours = twin(random_norm(), act=fastnorm.GeneralRelu(0.1, 0.4)).train(training)
    x = torch.randn(4, 3, 5, 5)
    ours(x)
    twice = copy.deepcopy(ours)
    assert repr(twice) == repr(ours) and twice.training is training
    before = buffers_of(ours)
    assert_close(twice.train()(x), ours.train()(x), rtol=0, atol=0)
    ours.load_state_dict(ours.state_dict() | before)
    twice(x)
    assert_close(buffers_of(ours), before, rtol=0, atol=0)


def test_sync_batch_norm_conversion_does_not_crash() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), twin(random_norm()))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert isinstance(converted[1], nn.SyncBatchNorm)
    assert list(converted.state_dict()) == list(net.state_dict())


def test_conv_bn_fusion(cpu_backend: str) -> None:
    conv, ours = nn.Conv2d(3, 3, 3), twin(random_norm())
    x = torch.randn(4, 3, 5, 5)
    ours(x)
    conv.eval(), ours.eval()
    assert_close(fusion.fuse_conv_bn_eval(conv, ours)(x), ours(conv(x)))


class Squared(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight**2


def test_parametrized_weight(cpu_backend: str) -> None:
    theirs = random_norm()
    ours = twin(theirs)
    x, dy = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    for layer in (theirs, ours):
        parametrize.register_parametrization(layer, "weight", Squared())
        layer(x).backward(dy)
    assert_close(ours.parametrizations.weight.original.grad, theirs.parametrizations.weight.original.grad)
    parametrize.remove_parametrizations(ours, "weight")
    parametrize.remove_parametrizations(theirs, "weight")
    assert_close(ours(x), theirs(x))


def test_module_hooks(cpu_backend: str) -> None:
    theirs = random_norm()
    ours = twin(theirs)
    seen: dict[str, list[Any]] = {"ours": [], "theirs": []}
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    grads = []
    for name, layer in (("ours", ours), ("theirs", theirs)):
        record = seen[name]
        layer.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
        layer.register_forward_hook(lambda m, args, y: y + 1)
        layer.register_full_backward_pre_hook(lambda m, dy: (dy[0] * 3,))
        layer.register_full_backward_hook(lambda m, dx, dy, record=record: record.extend([*dx, *dy]))
        y = layer(x)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y) * x.detach())
        grads.append(dx)
        record.append(y.detach())
    assert_close(*grads)
    assert_close(seen["ours"], seen["theirs"])
    assert len(seen["ours"]) == 3


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(cpu_backend: str, reentrant: bool) -> None:
    """B10: right gradients; the statistics move twice, as torch's do."""
    theirs = random_norm()
    ours = twin(theirs, act=nn.ReLU())
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    r, dy = torch.randn(4, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 5, 5)
    checkpoint(ours, x, r, use_reentrant=reentrant).backward(dy)
    found = [x.grad, r.grad, *(p.grad for p in ours.parameters())]
    x.grad = r.grad = None
    checkpoint(lambda x, r: F.relu(theirs(x) + r), x, r, use_reentrant=reentrant).backward(dy)
    assert_close(found, [x.grad, r.grad, *(p.grad for p in theirs.parameters())])
    assert_close(buffers_of(ours), buffers_of(theirs))
    assert ours.num_batches_tracked == 2


def test_functional_call_leaves_the_module_alone(cpu_backend: str) -> None:
    ours = twin(random_norm())
    before = copy.deepcopy(ours.state_dict())
    state = {name: t.clone() for name, t in ours.state_dict().items()} | {"weight": torch.full((3,), 2.0)}
    x = torch.randn(4, 3, 5, 5)
    y = torch.func.functional_call(ours, state, (x,))
    assert_close(y, F.batch_norm(x, None, None, state["weight"], state["bias"], training=True))
    assert state["num_batches_tracked"] == 1 and not torch.equal(state["running_mean"], before["running_mean"])
    assert_close(dict(ours.state_dict()), dict(before), rtol=0, atol=0)


def test_shared_weight_gets_both_gradients(cpu_backend: str) -> None:
    results = []
    for kind in (fastnorm.BatchNorm2d, nn.BatchNorm2d):
        torch.manual_seed(1)
        first, second = kind(3), kind(3)
        second.weight = first.weight
        second.bias = first.weight
        x, dy = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
        second(F.relu(first(x))).backward(dy)
        results.append([first.weight.grad, first.bias.grad])
    assert_close(*results)
