"""torch.jit.trace of every layer: the graph holds the fused op, can be saved and computes the same."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import nn

import fastnorm

LAYERS = {
    "batch": lambda: fastnorm.BatchNorm2d(6, act=nn.ReLU()),
    "layer": lambda: fastnorm.LayerNorm(5, act=nn.ReLU()),
    "layer2d": lambda: fastnorm.LayerNorm2d(6),
    "group": lambda: fastnorm.GroupNorm(2, 6, act=fastnorm.GeneralRelu(0.1, 0.4)),
    "instance": lambda: fastnorm.InstanceNorm2d(6, affine=True),
    "rms": lambda: fastnorm.RMSNorm(5),
    "relu": lambda: fastnorm.GeneralRelu(0.1, 0.4, 2.0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_trace_is_saved_and_loaded(name: str) -> None:
    layer = LAYERS[name]().eval()
    x, other = torch.randn(4, 6, 5, 5), torch.randn(3, 6, 7, 5)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(layer, x)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
        assert torch.equal(loaded(x), layer(x))
        assert torch.equal(loaded(other), layer(other))
    assert "fastnorm" in str(traced.inlined_graph)
