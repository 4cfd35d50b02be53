"""What the tests on other people's models share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastnorm.testing.zoo import ZOO, Batch, call, logits_of, loss_of

HEAVY = frozenset({"torchvision.resnet50", "torchvision.densenet121", "torchvision.convnext_tiny"})


def each_model(names: Iterable[str] = ZOO, *, slow: frozenset[str] = frozenset()) -> pytest.MarkDecorator:
    """Parametrize over entries of the zoo; those in `slow` run with the slow tests."""
    marks = {name: [pytest.mark.slow] if name in slow else [] for name in names}
    return pytest.mark.parametrize("entry", [pytest.param(ZOO[name], id=name, marks=marks[name]) for name in names])


def is_norm(module: nn.Module) -> bool:
    """A norm by its name, with parameters or buffers of its own; nothing of fastnorm is asked."""
    return "norm" in type(module).__name__.lower() and bool(module._parameters or module._buffers)


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if is_norm(module)}


def trained(model: nn.Module, batch: Batch, *, seed: int = 0) -> dict[str, Tensor]:
    """Output, gradients and state after one forward and backward in training, and the output in evaluation."""
    model.train().zero_grad()
    torch.manual_seed(seed)
    output = call(model, batch)
    loss_of(output).backward()
    found = {"logits": logits_of(output).detach()}
    found |= {f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    found |= {f"buffer {name}": b.clone() for name, b in model.named_buffers()}
    with torch.no_grad():
        found["evaluated"] = logits_of(call(model.eval(), batch))
    model.train()
    return found


def assert_same_bits(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
