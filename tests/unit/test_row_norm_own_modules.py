"""The modules of the row family that torch.nn lacks: LayerNorm2d and LessonLayerNorm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import fastnorm


def permuted(x: Tensor, layer: nn.Module) -> Tensor:
    """ConvNeXt's layer by way of torch's layer norm over the last dim."""
    return F.layer_norm(x.movedim(1, -1), (x.shape[1],), layer.weight, layer.bias, layer.eps).movedim(-1, 1)


@pytest.mark.parametrize("kwargs", [{}, {"bias": False}, {"elementwise_affine": False}, {"eps": 1e-2}], ids=str)
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 5, 3), (2, 6, 3, 2, 3)], ids=str)
def test_layer_norm_2d(cpu_backend: str, shape: tuple[int, ...], kwargs: dict[str, Any]) -> None:
    layer = fastnorm.LayerNorm2d(6, **kwargs)
    expected = {"weight": (6,), "bias": (6,)}
    if "bias" in kwargs:
        del expected["bias"]
    if "elementwise_affine" in kwargs:
        expected = {}
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == expected
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 1.5)
    x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)
    y, wanted = layer(x), permuted(x, layer)
    assert_close(y, wanted)
    inputs = [x, *layer.parameters()]
    assert_close(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(wanted, inputs, dy))


def test_layer_norm_2d_starts_as_the_identity_of_its_parameters() -> None:
    layer = fastnorm.LayerNorm2d(6, dtype=torch.float64)
    assert layer.weight.tolist() == [1.0] * 6 and layer.bias.tolist() == [0.0] * 6
    assert layer.weight.dtype == torch.float64
    assert fastnorm.LayerNorm2d(6, device="meta").weight.is_meta
    with torch.no_grad():
        layer.weight.zero_()
    layer.reset_parameters()
    assert layer.weight.tolist() == [1.0] * 6


def lesson(x: Tensor, layer: nn.Module) -> Tensor:
    """The lessons' layer as they write it."""
    m, v = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), keepdim=True)
    return (x - m) / (v + layer.eps).sqrt() * layer.mult + layer.add


@pytest.mark.parametrize("training", [True, False])
def test_lesson_layer_norm(cpu_backend: str, training: bool) -> None:
    layer = fastnorm.LessonLayerNorm(6, 1e-3, act=nn.LeakyReLU(0.1)).double().train(training)
    assert {name: t.item() for name, t in layer.state_dict().items()} == {"mult": 1.0, "add": 0.0}
    with torch.no_grad():
        layer.mult.fill_(1.3), layer.add.fill_(-0.2)
    x = torch.randn(4, 6, 5, 3, dtype=torch.float64, requires_grad=True)
    residual, dy = torch.randn_like(x, requires_grad=True), torch.randn_like(x)
    y, wanted = layer(x, residual), F.leaky_relu(lesson(x, layer) + residual, 0.1)
    assert_close(y, wanted)
    inputs = [x, residual, *layer.parameters()]
    assert_close(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(wanted, inputs, dy))


def test_lesson_layer_norm_takes_whatever_the_lessons_pass() -> None:
    """Its first argument is the number of channels there, and is not looked at."""
    x = torch.randn(4, 6, 5, 3)
    assert torch.equal(fastnorm.LessonLayerNorm(6)(x), fastnorm.LessonLayerNorm(None)(x))
