"""State dicts, checkpoints and pickles of the row family, to and from torch.nn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_state_dict import (
    assert_same_state,
    check_optimizer_made_before_loading,
    check_travels,
    randomised,
    stored,
)
from torch import nn

import fastnorm

VARIANTS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("LayerNorm", ((6, 5),), {}),
    ("LayerNorm", (5,), {"bias": False}),
    ("LayerNorm", (5,), {"elementwise_affine": False}),
    ("RMSNorm", (5,), {}),
    ("RMSNorm", (5,), {"elementwise_affine": False}),
    ("GroupNorm", (3, 6), {}),
    ("GroupNorm", (3, 6), {"bias": False}),
    ("GroupNorm", (3, 6), {"affine": False}),
    ("InstanceNorm1d", (6,), {}),
    ("InstanceNorm2d", (6,), {"affine": True}),
    ("InstanceNorm2d", (6,), {"affine": True, "bias": False}),
    ("InstanceNorm3d", (6,), {"affine": True, "track_running_stats": True}),
]
every_variant = pytest.mark.parametrize("kind, args, kwargs", VARIANTS, ids=str)


@every_variant
def test_both_ways_strictly(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ours, theirs = getattr(fastnorm, kind), getattr(nn, kind)
    for source, target in ((ours, theirs), (theirs, ours)):
        given = randomised(source(*args, **kwargs))
        built = target(*args, **kwargs)
        built.load_state_dict(stored(given.state_dict(), weights_only=True), strict=True)
        assert_same_state(built, given)


@every_variant
def test_an_activation_adds_no_keys(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    fused = getattr(fastnorm, kind)(*args, **kwargs, act=fastnorm.GeneralRelu(0.1, 0.4))
    reference = randomised(getattr(nn, kind)(*args, **kwargs))
    fused.load_state_dict(reference.state_dict(), strict=True)
    assert_same_state(fused, reference)
    assert not list(fused.children())


def test_statistics_that_nobody_asked_for_are_refused() -> None:
    """Instance norm's own rule for checkpoints from before version 2: running statistics without a use are an error."""
    state = fastnorm.InstanceNorm2d(6, track_running_stats=True).state_dict()
    del state._metadata
    messages = []
    for module in (fastnorm, nn):
        with pytest.raises(RuntimeError, match="Unexpected running stats buffer") as caught:
            module.InstanceNorm2d(6).load_state_dict(state)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_wrong_sizes_and_keys_are_named() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        fastnorm.LayerNorm(5).load_state_dict(nn.LayerNorm(6).state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        fastnorm.GroupNorm(3, 6, affine=False).load_state_dict(nn.GroupNorm(3, 6).state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_whole_modules_travel(training: bool) -> None:
    net = nn.Sequential(
        randomised(fastnorm.GroupNorm(3, 6, act=fastnorm.GeneralRelu(0.1, 0.4, 2.0))),
        randomised(fastnorm.InstanceNorm2d(6, affine=True, track_running_stats=True, act=nn.ReLU())),
        randomised(fastnorm.LayerNorm2d(6, act=nn.LeakyReLU(0.3))),
        randomised(fastnorm.LessonLayerNorm(6, 1e-3)),
        randomised(fastnorm.RMSNorm(5)),
        randomised(fastnorm.LayerNorm((6, 5, 5))),
    )
    check_travels(net.train(training), torch.randn(4, 6, 5, 5))


def test_own_layers_round_trip() -> None:
    for make in (lambda: fastnorm.LayerNorm2d(6), lambda: fastnorm.LessonLayerNorm(6)):
        given, built = randomised(make()), make()
        built.load_state_dict(stored(given.state_dict(), weights_only=True), strict=True)
        assert_same_state(built, given)


def test_an_optimizer_made_before_loading_keeps_working() -> None:
    check_optimizer_made_before_loading(fastnorm.LayerNorm(5), nn.LayerNorm(5), torch.randn(4, 5))
