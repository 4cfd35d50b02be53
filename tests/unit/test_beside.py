"""The rule for whole models: it lets pass what rounding does, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastnorm
from fastnorm.testing.beside import KINDS, STEPS, Trial

SETUPS = [(False, torch.float64), (True, torch.float64), (True, torch.float32)]
CORNERS_IN_FLOAT32 = (False, torch.float32)
each_sharp = pytest.mark.parametrize(("smooth", "dtype"), SETUPS)
each_setup = pytest.mark.parametrize(("smooth", "dtype"), [*SETUPS, CORNERS_IN_FLOAT32])


class Net(nn.Module):
    """Norms of both families, activations, dropout, and a bias whose gradient is zero."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.batch = nn.BatchNorm2d(6)
        self.group = nn.GroupNorm(2, 6)
        self.act = act
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.batch(self.conv(x)))
        return self.head(self.drop(self.act(self.group(x))).mean((2, 3)))


@pytest.fixture
def net(smooth: bool) -> Net:
    return Net(nn.SiLU() if smooth else nn.ReLU())


@pytest.fixture
def trial(net: Net, smooth: bool) -> Trial:
    return Trial(net, torch.randn(4, 3, 8, 8), smooth=smooth)


def worst(trial: Trial, candidate: nn.Module, dtype: torch.dtype) -> float:
    return max(d.excess for d in trial.distances(candidate.to(dtype), dtype))


@each_setup
def test_the_same_net_passes(trial: Trial, net: Net, dtype: torch.dtype) -> None:
    found = trial.distances(copy.deepcopy(net).to(dtype), dtype)
    assert {(d.step, d.kind) for d in found} == {(step, kind) for step in range(STEPS[dtype]) for kind in KINDS}
    assert max(d.excess for d in found) <= 1


@each_setup
def test_other_kernels_pass(trial: Trial, net: Net, dtype: torch.dtype) -> None:
    net.batch, net.group = fastnorm.BatchNorm2d(6), fastnorm.GroupNorm(2, 6)  # both start as torch.nn's do
    assert 0 < worst(trial, net, dtype) <= 1


def other_eps(net: Net) -> None:
    net.group.eps *= 2


def other_momentum(net: Net) -> None:
    net.batch.momentum = 0.1001


def unbiased(net: Net) -> None:
    net.batch = fastnorm.BatchNorm2d(6, unbiased=True)


def frozen_bias(net: Net) -> None:
    net.group.bias.register_hook(lambda grad: grad * 0.999)


def no_dropout(net: Net) -> None:
    net.drop.eval()


def another_draw(net: Net) -> None:
    def draw(*_: object) -> None:
        torch.rand(1)

    net.conv.register_forward_hook(draw)


def not_a_number(net: Net) -> None:
    net.head.register_forward_hook(lambda module, args, y: y + torch.nan)


@each_sharp
@pytest.mark.parametrize(
    "fault", [other_eps, other_momentum, unbiased, frozen_bias, no_dropout, another_draw, not_a_number]
)
def test_faults_do_not(trial: Trial, net: Net, fault: Callable[[Net], None], dtype: torch.dtype) -> None:
    fault(net)
    assert worst(trial, net, dtype) > 1


@pytest.mark.parametrize(("smooth", "dtype"), [CORNERS_IN_FLOAT32])
def test_gross_faults_do_not_beside_corners(trial: Trial, net: Net, dtype: torch.dtype) -> None:
    fault = copy.deepcopy(net)
    fault.batch.weight.register_hook(lambda grad: -grad)
    assert worst(trial, fault, dtype) > 1
    unbiased(net)
    assert worst(trial, net, dtype) > 1


@pytest.mark.parametrize("smooth", [True])
def test_other_names_do_not(trial: Trial, net: Net) -> None:
    net.add_module("norm", net._modules.pop("batch"))
    net.batch = net.norm
    with pytest.raises(AssertionError, match="other names of gradients"):
        trial.distances(net.double(), torch.float64)
