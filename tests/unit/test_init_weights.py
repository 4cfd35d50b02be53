"""Xavier and Kaiming: the gains, torch's own numbers, and what they are for: the size of a signal stays."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

import fastnorm
from fastnorm import init

SHAPES = ((7, 5), (8, 3, 3), (8, 3, 5, 5), (4, 6, 3, 3, 3))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize(
    "act, gain",
    [
        (None, 1.0),
        (nn.ReLU(), math.sqrt(2)),
        (nn.ReLU6(), math.sqrt(2)),
        (nn.LeakyReLU(0.3), nn.init.calculate_gain("leaky_relu", 0.3)),
        (fastnorm.GeneralRelu(0.1, 0.4), nn.init.calculate_gain("leaky_relu", 0.1)),
        (fastnorm.GeneralRelu(None, 0.5, 6.0), math.sqrt(2)),
        (nn.Tanh(), nn.init.calculate_gain("tanh")),
        (nn.SELU(), nn.init.calculate_gain("selu")),
        (nn.Sigmoid(), nn.init.calculate_gain("sigmoid")),
        (nn.Identity(), 1.0),
    ],
    ids=str,
)
def test_gain(act: nn.Module | None, gain: float) -> None:
    assert init.gain_of(act) == pytest.approx(gain, rel=1e-15)


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="GELU"):
        init.gain_of(nn.GELU())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", ("fan_in", "fan_out"))
def test_kaiming_is_torchs(shape: tuple[int, ...], mode: str) -> None:
    for ours, theirs in (
        (init.kaiming_normal_, nn.init.kaiming_normal_),
        (init.kaiming_uniform_, nn.init.kaiming_uniform_),
    ):
        got = ours(torch.empty(shape), fastnorm.GeneralRelu(0.2, 0.4), mode=mode, generator=seeded())
        wanted = theirs(torch.empty(shape), a=0.2, mode=mode, nonlinearity="leaky_relu", generator=seeded())
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_xavier_is_torchs(shape: tuple[int, ...]) -> None:
    gain = nn.init.calculate_gain("tanh")
    for ours, theirs in (
        (init.xavier_normal_, nn.init.xavier_normal_),
        (init.xavier_uniform_, nn.init.xavier_uniform_),
    ):
        got = ours(torch.empty(shape), nn.Tanh(), generator=seeded())
        torch.testing.assert_close(got, theirs(torch.empty(shape), gain, generator=seeded()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16))
def test_in_place_without_a_graph(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.zeros(64, 64, dtype=dtype))
    assert init.kaiming_normal_(weight) is weight
    assert weight.requires_grad and weight.grad_fn is None and weight.dtype == dtype
    assert float(weight.detach().double().std()) == pytest.approx(1 / 8, rel=0.05)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"at least 2 dims, got shape \(3,\)"):
        init.kaiming_normal_(torch.empty(3))
    with pytest.raises(ValueError, match="mode must be"):
        init.kaiming_normal_(torch.empty(3, 3), mode="fan")


@pytest.mark.parametrize("leak", (0.0, 0.1, 0.5, 1.0))
def test_a_deep_net_keeps_the_size_of_its_signal(leak: float) -> None:
    """20 layers: the gain of a leak of 0.5 in front of ReLU (or the reverse) is off by a factor of 9.3 in the end."""
    torch.manual_seed(0)
    layers = [layer for _ in range(20) for layer in (nn.Linear(256, 256), fastnorm.GeneralRelu(leak))]
    net = nn.Sequential(*layers, nn.Linear(256, 256))
    net.apply(partial(init.init_weights, leak=leak))
    with torch.no_grad():
        out = net(torch.randn(256, 256))
    # The first layer has no activation in front of it, and so makes its input larger by its gain.
    assert 0.6 < float(out.square().mean().sqrt()) / init.gain_of(fastnorm.GeneralRelu(leak)) < 1.6


@pytest.mark.parametrize(
    "layer", (nn.Linear(6, 5), nn.Conv1d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv3d(2, 4, 3)), ids=str
)
def test_init_weights(layer: nn.Module) -> None:
    nn.init.ones_(layer.bias)
    torch.manual_seed(5)
    init.init_weights(layer, leak=0.1)
    torch.manual_seed(5)
    wanted = nn.init.kaiming_normal_(torch.empty_like(layer.weight), a=0.1)
    torch.testing.assert_close(layer.weight.detach(), wanted, rtol=1e-6, atol=0)
    assert not layer.bias.any()


def test_init_weights_leaves_others_alone() -> None:
    net = nn.Sequential(fastnorm.BatchNorm2d(3), nn.Embedding(3, 4), nn.Conv2d(3, 4, 1, bias=False))
    before = [t.clone() for t in (net[0].weight, net[0].bias, net[1].weight, net[2].weight)]
    net.apply(init.init_weights)
    after = [net[0].weight, net[0].bias, net[1].weight, net[2].weight]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, True, False]
