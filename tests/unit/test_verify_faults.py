"""fastnorm.verify finds a broken norm, whatever is wrong with it, and in every dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnorm
from tests.unit.verify_models import Drawing, OnlySingle, ThroughSingle, convnet, images, verified


def scaled(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, x, *args, **kwargs: right(self, x, *args, **kwargs) * (1 + 1e-4)


def coarse(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As a kernel that adds up in bf16 would be: only the pair in fp32 can see it."""

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = right(self, x, *args, **kwargs)
        return y if y.dtype == torch.float64 else y + (y.bfloat16().to(y.dtype) - y).detach() / 8

    return forward


def another_eps(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Far below what fp32 can see: only the pair in float64 can."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.eps += 1e-9
        try:
            return right(self, x, *args, **kwargs)
        finally:
            self.eps -= 1e-9

    return forward


def without_statistics(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The gradient does not know that the statistics depend on x."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = right(self, x, *args, **kwargs)
        return y.detach() + (x - x.detach()) * self.weight.view(-1, 1, 1) if self.training else y

    return forward


def forgets(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The running variance stays behind."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        before = self.running_var.clone()
        y = right(self, x, *args, **kwargs)
        self.running_var.copy_(before)
        return y

    return forward


def wrong_in_eval(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, x, *args, **kwargs: right(self, x, *args, **kwargs) + (0 if self.training else 1e-3)


def loses_dtype(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, x, *args, **kwargs: right(self, x, *args, **kwargs).double()


def draws(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Consumes a random number: dropout behind it drops others."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        torch.rand(1)
        return right(self, x, *args, **kwargs)

    return forward


FAULTS = {
    scaled: ("training: outputs", "training, float64: outputs", "eval: outputs"),
    coarse: ("training: outputs", "eval: gradients"),
    another_eps: ("training, float64: outputs", "eval, float64: outputs"),
    without_statistics: ("training: gradients", "training, float64: gradients"),
    forgets: ("training: statistics, 1.running_var", "training, float64: statistics, 1.running_var"),
    wrong_in_eval: ("eval: outputs", "eval, float64: outputs"),
    loses_dtype: ("training: outputs, the model raises",),
    draws: ("training: outputs", "training: gradients"),
}


@pytest.mark.parametrize("fault", list(FAULTS), ids=lambda fault: fault.__name__)
def test_a_broken_norm_is_found(fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = convnet(dropout=0.3)
    monkeypatch.setattr(fastnorm.BatchNorm2d, "forward", fault(fastnorm.BatchNorm2d.forward))
    found = verified(model, images(), fuse=False)
    assert not found.ok
    for start in FAULTS[fault]:
        assert any(failure.startswith(start) for failure in found.failures), found.failures


def test_what_only_one_pair_can_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two pairs are not the same test twice."""
    right = fastnorm.BatchNorm2d.forward
    for fault, blind in ((coarse, "float64"), (another_eps, "training:")):
        monkeypatch.setattr(fastnorm.BatchNorm2d, "forward", fault(right))
        failures = verified(convnet(), images(), fuse=False).failures
        assert failures and not [failure for failure in failures if blind in failure.split(" is ")[0]]


@pytest.mark.parametrize("model", [OnlySingle, Drawing])
def test_without_float64_a_broken_norm_is_found_too(model: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastnorm.LayerNorm, "forward", scaled(fastnorm.LayerNorm.forward))
    assert not verified(model(), torch.randn(4, 12)).ok


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = convnet().to(dtype), images().to(dtype)
    found = verified(model, x)
    assert found.ok and not found.notes, str(found)
    monkeypatch.setattr(fastnorm.BatchNorm2d, "forward", another_eps(fastnorm.BatchNorm2d.forward))
    assert not verified(model, x, fuse=False).ok


class Mask(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(torch.eye(4, dtype=torch.bool), -torch.inf)


@pytest.mark.parametrize("tail", [[], [nn.Softmax(-1)]], ids=["output", "within"])
def test_infinities_that_both_have_are_no_error(tail: list[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do they hide one: what they leave over is compared."""
    model, x = nn.Sequential(nn.LayerNorm(4), Mask(), *tail), torch.randn(4, 4)

    def loss(output: Tensor) -> Tensor:
        return output.exp().square().sum()

    found = verified(model, x, loss=loss)
    assert found.ok and all(math.isfinite(one.allowed) for one in found.comparisons), str(found)
    monkeypatch.setattr(fastnorm.LayerNorm, "forward", scaled(fastnorm.LayerNorm.forward))
    assert any("outputs" in failure for failure in verified(model, x, loss=loss).failures)


def test_a_float64_copy_that_computes_in_fp32_is_no_sharper_than_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A converted norm that stays in float64 there is better than the original, not worse."""
    right = fastnorm.LayerNorm.forward
    monkeypatch.setattr(fastnorm.LayerNorm, "forward", lambda self, x: right(self, x) * (1 + 3e-8))
    x = torch.randn(4, 12)
    assert verified(ThroughSingle(), x).ok
    failures = verified(nn.Sequential(nn.LayerNorm(12)), x).failures
    assert failures and all("float64" in failure for failure in failures)
