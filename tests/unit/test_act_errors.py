"""Every mistake with an activation: in what `act` may be, and in general_relu's own arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnorm
from fastnorm.functional import batch_norm, general_relu

NAN = float("nan")


@pytest.mark.parametrize(
    "act",
    [nn.Sigmoid(), nn.Hardtanh(), "relu", torch.relu, nn.ReLU, 0.1],
    ids=["Sigmoid", "Hardtanh", "str", "function", "type", "float"],
)
def test_type_of_act(act: Any) -> None:
    makers: list[Callable[[], object]] = [
        lambda: fastnorm.BatchNorm1d(3, act=act),
        lambda: fastnorm.LessonBatchNorm(3, act=act),
        lambda: batch_norm(torch.randn(4, 3), None, None, training=True, act=act),
    ]
    for make in makers:
        with pytest.raises(ValueError, match=r"act must be a GeneralRelu.*or None, got") as caught:
            make()
        assert repr(act) in str(caught.value)


@pytest.mark.parametrize(
    "numbers, message",
    [
        ({"leak": NAN}, "leak must be a number or None, got nan"),
        ({"leak": "0.1"}, "leak must be a number or None, got '0.1'"),
        ({"sub": [0.4]}, r"sub must be a number or None, got \[0.4\]"),
        ({"maxv": torch.tensor(1.0)}, r"maxv must be a number or None, got tensor\(1.\)"),
        ({"maxv": 1.0, "max_leak": NAN}, "max_leak must be a number or None, got nan"),
        ({"max_leak": 0.1}, "max_leak=0.1 is the slope above maxv, but maxv is None"),
    ],
    ids=["nan", "str", "list", "tensor", "max_leak-nan", "max_leak"],
)
def test_numbers_of_general_relu(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastnorm.GeneralRelu(**numbers)
    with pytest.raises(ValueError, match=message):
        general_relu(torch.randn(3), **numbers)


class Louder(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 100 * super().forward(x)


class LouderGeneralRelu(fastnorm.GeneralRelu):
    def forward(self, x: Tensor) -> Tensor:
        return 100 * super().forward(x)


@pytest.mark.parametrize(
    "act",
    [Louder(), LouderGeneralRelu(0.1), fastnorm.BatchNorm1d(3, act=nn.ReLU()), fastnorm.LayerNorm(5, act=nn.ReLU())],
    ids=lambda act: type(act).__name__,
)
def test_act_that_computes_something_else(act: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"act must be a GeneralRelu.*or None, got"):
        fastnorm.BatchNorm1d(3, act=act)


def test_act_of_a_subclass_with_the_same_forward() -> None:
    class Relu(nn.ReLU): ...

    class Own(fastnorm.GeneralRelu): ...

    assert fastnorm.BatchNorm1d(3, act=Relu()).activation == fastnorm.BatchNorm1d(3, act=nn.ReLU()).activation
    assert fastnorm.BatchNorm1d(3, act=Own(0.1)).activation.leak == 0.1


def test_what_is_no_tensor_for_general_relu() -> None:
    with pytest.raises(TypeError, match=r"\bx\b|input"):
        general_relu([1.0], 0.1)
