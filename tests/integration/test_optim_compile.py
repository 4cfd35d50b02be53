"""A training step under torch.compile: the optimizer's own step stays as it is, outside the graphs, with its numbers.

torch.optim's classes break the graph there too: `zero_grad` and `backward` do before them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import fastnorm
from fastnorm import optim

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("RMSprop", {"lr": 0.01, "centered": True}),
    ("Adam", {"lr": 0.1, "max_norm": 0.5}),
    ("AdamW", {"lr": 0.1}),
)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(name: str, kwargs: dict[str, Any]) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), fastnorm.LayerNorm(16), fastnorm.GeneralRelu(0.1), nn.Linear(16, 3))
    return model, getattr(optim, name)(model.parameters(), **kwargs)


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def compare(name: str, kwargs: dict[str, Any], backend: str, **tolerance: float) -> None:
    (model, optimizer), (other, plain) = make(name, kwargs), make(name, kwargs)
    compiled = torch.compile(training_step, backend=backend)
    for step in range(4):
        torch.manual_seed(step + 1)
        x, y = torch.randn(20, 8), torch.randint(3, (20,))
        for group in (*optimizer.param_groups, *plain.param_groups):
            group["lr"] *= 0.9
        loss, expected = compiled(model, optimizer, x, y), training_step(other, plain, x, y)
        assert_close(loss, expected, **tolerance)
    assert_close(list(model.parameters()), list(other.parameters()), **tolerance)
    saved, expected_state = optimizer.state_dict()["state"], plain.state_dict()["state"]
    assert_close(saved, expected_state, **tolerance)
    assert len(saved) == len(list(model.parameters()))


@pytest.mark.parametrize("name, kwargs", CASES)
def test_a_compiled_training_step(name: str, kwargs: dict[str, Any]) -> None:
    compare(name, kwargs, "aot_eager", rtol=0, atol=0)


def test_a_training_step_compiled_by_inductor() -> None:
    """Which adds up the gradients in an order of its own."""
    compare("SGD", {"lr": 0.1, "momentum": 0.9}, "inductor", rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, kwargs", CASES)
def test_a_changing_rate_does_not_compile_again(name: str, kwargs: dict[str, Any]) -> None:
    model, optimizer = make(name, kwargs)
    compiled = torch.compile(training_step, backend="aot_eager")
    x, y = torch.randn(20, 8), torch.randint(3, (20,))
    compiled(model, optimizer, x, y)
    compiled(model, optimizer, x, y)
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(3):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 2)
            compiled(model, optimizer, x, y)
