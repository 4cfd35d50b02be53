"""Autograd's modes, and activations in place."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composed import ACT, SHAPE, composed_act, leaf
from torch import nn
from torch.testing import assert_close

import fastnorm
from fastnorm.functional import general_relu

pytestmark = pytest.mark.usefixtures("recorder")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(cpu_backend: str, mode: Any) -> None:
    """A8: inference tensors have no version counter to move."""
    layer = fastnorm.BatchNorm2d(3, act=ACT)
    reference = nn.BatchNorm2d(3)
    with mode():
        x = torch.randn(SHAPE)
        y = layer(x, x)
        assert_close(y, composed_act(reference(x) + x))
        assert not y.requires_grad and y.is_inference() == (mode is torch.inference_mode)
        assert_close(layer.eval()(x), composed_act(reference.eval()(x)))
        assert_close(general_relu(x, 0.1, 0.4, 1.0), composed_act(x))
    assert_close(dict(layer.named_buffers()), dict(reference.named_buffers()))
    layer.train()(torch.randn(SHAPE))  # and the buffers are still ordinary tensors


def test_module_built_in_inference_mode(cpu_backend: str) -> None:
    with torch.inference_mode():
        layer, reference = fastnorm.BatchNorm2d(3), nn.BatchNorm2d(3)
        x = torch.randn(SHAPE)
        assert_close(layer(x), reference(x))
        assert_close(layer.running_var, reference.running_var)


def test_inference_tensor_outside_of_the_mode(cpu_backend: str) -> None:
    """As torch: usable without gradients, refused where it would be saved for a backward."""
    with torch.inference_mode():
        x = torch.randn(SHAPE)
    with torch.no_grad():
        assert_close(fastnorm.BatchNorm2d(3)(x), nn.BatchNorm2d(3)(x))
    for layer in (nn.BatchNorm2d(3), fastnorm.BatchNorm2d(3)):
        with pytest.raises(RuntimeError, match=r"[Ii]nference tensors cannot be saved for backward"):
            layer(x)


def test_anomaly_mode_names_the_layer(cpu_backend: str) -> None:
    x = leaf(*SHAPE)
    with warnings.catch_warnings(record=True), torch.autograd.detect_anomaly(check_nan=True):
        layer = fastnorm.BatchNorm2d(3, act=ACT)
        layer(x).backward(torch.randn(SHAPE))
        with pytest.raises(RuntimeError, match="BatchNormFunction"):
            layer(x).backward(torch.full(SHAPE, float("nan")))


@pytest.mark.parametrize("maxv", [None, 1.0])
def test_inplace_general_relu_is_safe(cpu_backend: str, maxv: float | None) -> None:
    given, dy = leaf(4, 6), torch.randn(4, 6)
    x = given * 1
    y = fastnorm.GeneralRelu(0.1, 0.4, maxv, inplace=True)(x)
    assert y is x
    # Not in place: torch's leaky_relu_ keeps its result for the backward, so a sub_ behind it raises.
    expected = F.leaky_relu(given, 0.1) - 0.4
    expected = expected if maxv is None else expected.clamp_max(maxv)
    assert_close(y, expected)
    assert_close(torch.autograd.grad(y, given, dy), torch.autograd.grad(expected, given, dy))


def test_inplace_under_no_grad_and_on_leaves(cpu_backend: str) -> None:
    x = torch.randn(4, 6)
    expected, address, version = composed_act(x), x.data_ptr(), x._version
    assert general_relu(x, 0.1, 0.4, 1.0, inplace=True) is x
    assert_close(x, expected)
    assert x.data_ptr() == address and x._version > version
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        general_relu(leaf(3), 0.1, inplace=True)
    with torch.no_grad():
        general_relu(leaf(3), 0.1, inplace=True)


def test_inplace_on_a_tensor_that_another_node_saved_raises(cpu_backend: str) -> None:
    x = leaf(4) * 1
    squared = x * x
    general_relu(x, 0.1, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


def test_inplace_on_a_view_reaches_its_base(cpu_backend: str) -> None:
    given, dy = leaf(4, 6), torch.randn(4, 6)
    results = []
    for fused in (True, False):
        base = given * 1
        part = base[:, ::2]
        general_relu(part, 0.1, inplace=True) if fused else F.leaky_relu_(part, 0.1)
        results.append([base, *torch.autograd.grad(base, given, dy)])
    assert_close(*results)


def test_without_inplace_the_input_stays(cpu_backend: str) -> None:
    x = torch.randn(4, 6)
    before, version = x.clone(), x._version
    general_relu(x, 0.1, 0.4, 1.0)
    assert torch.equal(x, before) and x._version == version
