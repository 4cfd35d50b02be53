"""Two optimizers that take the same steps, one with the compiled nodes and one without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastnorm import optim
from fastnorm.ops import native
from fastnorm.optim.fused import FusedOptimizer

CASES: tuple[tuple[Any, dict[str, Any]], ...] = (
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (optim.RMSprop, {"lr": 0.1, "init": "first_grad", "momentum": 0.5}),
    (optim.Adam, {"lr": 0.1}),
)
each_case = pytest.mark.parametrize("cls, kwargs", CASES)
Change = Callable[[FusedOptimizer], None]


def make(cls: Any, kwargs: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """Two groups: a matrix, an image in channels_last, a vector, and one that never has a gradient."""
    torch.manual_seed(0)
    image = torch.randn(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last)
    values = [torch.randn(3, 4, dtype=dtype), image, torch.randn(70, dtype=dtype), torch.randn(5, dtype=dtype)]
    a, b, c, idle = (torch.nn.Parameter(v) for v in values)
    return cls([{"params": [a, idle, b]}, {"params": [c], "lr": 0.05}], **kwargs)


def params_of(optimizer: FusedOptimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def first(optimizer: FusedOptimizer) -> Tensor:
    return params_of(optimizer)[0]


def give_grads(optimizer: FusedOptimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for p in params_of(optimizer):
        if p.shape != (5,):
            p.grad = torch.randn_like(p)


def contents(optimizer: FusedOptimizer) -> list[Tensor]:
    states = [v for p in params_of(optimizer) for v in optimizer.state.get(p, {}).values() if isinstance(v, Tensor)]
    return [t.detach().clone() for t in (*params_of(optimizer), *states)]


def run(cls: Any, kwargs: dict[str, Any], change: Change | None, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Five steps, with a change before the fourth."""
    optimizer = make(cls, kwargs, dtype)
    for step in range(5):
        give_grads(optimizer, step)
        if change is not None and step == 3:
            change(optimizer)
        optimizer.step()
    return contents(optimizer)


def check(
    cls: Any, kwargs: dict[str, Any], change: Change | None, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> None:
    """The same bits with the compiled nodes as without."""
    found = run(cls, kwargs, change, **more)
    with monkeypatch.context() as patch:
        patch.setattr(native._State, "nodes", None)
        wanted = run(cls, kwargs, change, **more)
    assert len(found) == len(wanted)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(found, wanted, strict=True))
