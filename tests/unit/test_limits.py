"""What the documentation lists as a limit: refused as it says, and never a wrong result instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import fuse_modules

import fastnorm
from fastnorm import optim


def test_torchscript() -> None:
    with pytest.raises(ValueError, match="Activation"):
        torch.jit.script(fastnorm.BatchNorm2d(4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantization_fuses_what_was_reverted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    x = torch.randn(2, 3, 5, 5)
    want = model(x)
    fastnorm.convert(model)
    with pytest.raises(AssertionError, match="did not find fuser method"):
        fuse_modules(model, ["0", "1"])
    fastnorm.revert(model)
    torch.testing.assert_close(fuse_modules(model, ["0", "1"])(x), want)


@pytest.mark.parametrize("name", ("weight", "bias", "residual"))
def test_a_fused_activation_reads_again_in_backward(name: str, cpu_backend: str) -> None:
    """torch.nn's layers save no bias, and their backward does not mind."""
    x, residual = (torch.randn(4, 3, 5, requires_grad=True) for _ in range(2))
    norm = fastnorm.BatchNorm1d(3, act=nn.ReLU())
    y = norm(x, residual)
    with torch.no_grad():
        {"weight": norm.weight, "bias": norm.bias, "residual": residual}[name].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    if name == "bias":
        theirs = nn.BatchNorm1d(3)
        y = F.relu(theirs(x))
        with torch.no_grad():
            theirs.bias.add_(1)
        y.sum().backward()


@pytest.mark.parametrize("cls", (optim.SGD, optim.RMSprop, optim.Adam, optim.AdamW))
def test_parameters_that_have_been_stepped_are_not_swapped(cls: Any) -> None:
    """The refused swap changes nothing: the run goes on as one without it."""

    def train(swap: bool) -> list[Tensor]:
        torch.manual_seed(0)
        layer = nn.Linear(4, 3)
        optimizer = cls(layer.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            layer(torch.full((2, 4), step + 1.0)).square().sum().backward()
            optimizer.step()
            if swap:
                with pytest.raises(RuntimeError, match="use_count"):
                    torch.utils.swap_tensors(layer.weight, nn.Parameter(torch.zeros(3, 4)))
        return [p.detach() for p in layer.parameters()]

    for a, b in zip(train(True), train(False), strict=True):
        assert torch.equal(a, b)
