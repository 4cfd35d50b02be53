"""Nested tensors go through torch's layer and RMS norm, with the activation and the residual behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnorm
from fastnorm.functional import layer_norm, rms_norm

NORMS: dict[str, Callable[[Any], nn.Module]] = {
    "layer": lambda module: module.LayerNorm(8),
    "rms": lambda module: module.RMSNorm(8),
}
FUNCTIONS: dict[str, Callable[..., Tensor]] = {"layer": layer_norm, "rms": rms_norm}


def ragged(layout: torch.layout = torch.jagged) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, 8, generator=generator) for n in (3, 5)]
    return torch.nested.nested_tensor(rows, layout=layout, requires_grad=True)


@pytest.mark.parametrize(
    ("name", "layout"), (("layer", torch.jagged), ("rms", torch.jagged), ("layer", torch.strided)), ids=str
)
def test_modules(name: str, layout: torch.layout) -> None:
    results = []
    for module in (nn, fastnorm):
        x = ragged(layout)
        y = NORMS[name](module)(x)
        assert y.is_nested and y.layout == layout
        total = sum((part * part * part).sum() for part in y.unbind())
        (dx,) = torch.autograd.grad(total, x)
        results.append((y.unbind(), dx.unbind()))
    for theirs, ours in zip(*results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation_and_residual(name: str) -> None:
    """As on the rows one by one."""
    x = ragged()
    act = fastnorm.GeneralRelu(0.1, 0.4, 1.0)
    got = FUNCTIONS[name](x, (8,), act=act, residual=x)
    for row, y in zip(x.unbind(), got.unbind(), strict=True):
        torch.testing.assert_close(y, FUNCTIONS[name](row, (8,), act=act, residual=row))


def test_a_converted_model_still_takes_them() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8))
    want = model(ragged())
    fastnorm.convert(model)
    for a, b in zip(want.unbind(), model(ragged()).unbind(), strict=True):
        torch.testing.assert_close(a, b)
