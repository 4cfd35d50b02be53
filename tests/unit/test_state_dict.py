"""State dicts, checkpoints old and new, and pickles, to and from torch.nn."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import fastnorm

LAYERS = [
    (fastnorm.BatchNorm1d, nn.BatchNorm1d),
    (fastnorm.BatchNorm2d, nn.BatchNorm2d),
    (fastnorm.BatchNorm3d, nn.BatchNorm3d),
]
every_layer = pytest.mark.parametrize("ours, theirs", LAYERS, ids=[o.__name__ for o, _ in LAYERS])
VARIANTS: list[dict[str, Any]] = [
    {},
    {"affine": False},
    {"bias": False},
    {"track_running_stats": False},
    {"momentum": None},
]


def randomised(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in layer.state_dict(keep_vars=True).values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.fill_(7)
    return layer


def stored(value: Any, *, weights_only: bool) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


def assert_same_state(found: nn.Module, wanted: nn.Module) -> None:
    assert list(found.state_dict()) == list(wanted.state_dict())
    assert_close(dict(found.state_dict()), dict(wanted.state_dict()), rtol=0, atol=0)


@every_layer
@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
def test_both_ways_strictly(ours: Any, theirs: Any, kwargs: dict[str, Any]) -> None:
    for source, target in ((ours, theirs), (theirs, ours)):
        given = randomised(source(3, **kwargs))
        built = target(3, **kwargs)
        built.load_state_dict(stored(given.state_dict(), weights_only=True), strict=True)
        assert_same_state(built, given)


@every_layer
def test_an_activation_adds_no_keys(ours: Any, theirs: Any) -> None:
    fused = ours(3, act=fastnorm.GeneralRelu(0.1, 0.4), unbiased=True)
    fused.load_state_dict(randomised(theirs(3)).state_dict(), strict=True)
    assert list(fused.state_dict()) == list(theirs(3).state_dict())
    assert not list(fused.children())


@every_layer
@pytest.mark.parametrize("version", [None, 1])
def test_checkpoint_without_counter(ours: Any, theirs: Any, version: int | None) -> None:
    """B7: before version 2 there was no num_batches_tracked; it starts at 0."""
    state = OrderedDict(randomised(theirs(3)).state_dict())
    del state["num_batches_tracked"]
    state._metadata = {"": {} if version is None else {"version": version}}  # type: ignore[attr-defined]
    built = ours(3)
    built.load_state_dict(state, strict=True)
    assert built.num_batches_tracked.item() == 0
    assert torch.equal(built.running_var, state["running_var"])
    meta = ours(3, device="meta")
    meta.load_state_dict(state, strict=True, assign=True)
    assert meta.num_batches_tracked.item() == 0 and not meta.weight.is_meta


@every_layer
def test_new_checkpoint_must_hold_the_counter(ours: Any, theirs: Any) -> None:
    state = theirs(3).state_dict()
    del state["num_batches_tracked"]
    assert state._metadata[""]["version"] == 2
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        ours(3).load_state_dict(state, strict=True)
    assert ours(3).state_dict()._metadata[""]["version"] == 2


@every_layer
def test_wrong_sizes_and_keys_are_named(ours: Any, theirs: Any) -> None:
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        ours(3).load_state_dict(theirs(4).state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        ours(3, affine=False).load_state_dict(theirs(3).state_dict())


def check_travels(net: nn.Module, x: torch.Tensor) -> None:
    """Pickled and saved whole, it is the same."""
    training = net.training
    for travelled in (pickle.loads(pickle.dumps(net)), stored(net, weights_only=False)):
        assert repr(travelled) == repr(net)
        assert_same_state(travelled, net)
        assert travelled.training is training
        assert torch.equal(travelled.eval()(x), net.eval()(x))
        net.train(training)


def check_optimizer_made_before_loading(ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(ours.parameters(), lr=1.0)
    ours.load_state_dict(randomised(theirs).state_dict())
    before = ours.weight.detach().clone()
    ours(x).square().mul(torch.rand(5)).sum().backward()
    optimizer.step()
    assert not torch.equal(ours.weight, before)


@pytest.mark.parametrize("training", [True, False])
def test_whole_modules_travel(training: bool) -> None:
    net = nn.Sequential(
        randomised(fastnorm.BatchNorm2d(3, momentum=None, act=fastnorm.GeneralRelu(0.1, 0.4, 2.0), unbiased=True)),
        fastnorm.GeneralRelu(0.2, max_leak=0.1, maxv=1.0),
        randomised(fastnorm.LessonBatchNorm(3, act=nn.LeakyReLU(0.3))),
    )
    check_travels(net.train(training), torch.randn(4, 3, 5, 5))


def test_lesson_layer_round_trip() -> None:
    given, built = randomised(fastnorm.LessonBatchNorm(3)), fastnorm.LessonBatchNorm(3)
    built.load_state_dict(stored(given.state_dict(), weights_only=True), strict=True)
    assert_same_state(built, given)


def test_an_optimizer_made_before_loading_keeps_working() -> None:
    check_optimizer_made_before_loading(fastnorm.BatchNorm2d(3), nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5))
