"""What the compiled nodes do with an optimizer's gradients, and what else sees a step that they take."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from fastnorm import optim
from fastnorm.ops.optim_watch import LONG_WAY, TAKEN
from fastnorm.optim.fused import FusedOptimizer
from tests.unit.optim_twins import check, contents, each_case, first, give_grads, make, params_of


class Named(Tensor):
    """A subclass, whose memory need not hold its numbers."""


GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "strided": lambda t: torch.stack((t, t), dim=-1)[..., 0],
    "expanded": lambda t: t.flatten()[:1].expand(t.shape),
    "in another order": lambda t: t.t().contiguous().t(),
    "to be negated": lambda t: torch.complex(t, -t).conj().imag,
    "of a subclass": lambda t: t.clone().as_subclass(Named),
    "without memory": lambda t: torch._efficientzerotensor(t.shape),
}


@pytest.mark.parametrize("name", GRADIENTS)
@each_case
def test_gradients_that_go_the_long_way(
    cls: Any, kwargs: dict[str, Any], name: str, answers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(optimizer: FusedOptimizer) -> None:
        p = first(optimizer)
        assert p.grad is not None
        p.grad = GRADIENTS[name](p.grad)

    check(cls, kwargs, change, monkeypatch)
    assert answers == [TAKEN] * 3 + [LONG_WAY, TAKEN]


@each_case
def test_a_parameter_with_gaps_goes_the_long_way(cls: Any, kwargs: dict[str, Any], answers: list[int]) -> None:
    torch.manual_seed(0)
    room, grads = torch.randn(3, 8), torch.randn(3, 8)
    p, q = torch.nn.Parameter(room[:, ::2]), torch.nn.Parameter(room[:, ::2].clone())
    gaps = room[:, 1::2].clone()
    p.grad, q.grad = grads[:, ::2], grads[:, ::2].clone()
    assert p.grad.stride() == p.stride()
    for t in (p, q):
        optimizer = cls([t], **kwargs)
        for _ in range(2):
            optimizer.step()
    assert torch.equal(p, q) and torch.equal(room[:, 1::2], gaps)
    assert answers == [LONG_WAY] * 2 + [TAKEN] * 2


@each_case
def test_a_sparse_gradient_is_refused(cls: Any, kwargs: dict[str, Any]) -> None:
    optimizer = make(cls, kwargs)
    for step in range(3):
        give_grads(optimizer, step)
        optimizer.step()
    before = contents(optimizer)
    first(optimizer).grad = torch.ones(3, 4).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, contents(optimizer), strict=True))


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names.append(str(func))
        return func(*args, **(kwargs or {}))


names: list[str] = []


def test_a_mode_sees_the_step(answers: list[int]) -> None:
    optimizer = make(optim.SGD, {"lr": 0.1})
    give_grads(optimizer, 0)
    optimizer.step()
    names.clear()
    with Seen():
        optimizer.step()
    assert answers == [TAKEN, LONG_WAY] and "fastnorm_optim.step.default" in names


@each_case
def test_versions_are_counted(cls: Any, kwargs: dict[str, Any]) -> None:
    optimizer = make(cls, kwargs)
    give_grads(optimizer, 0)
    optimizer.step()
    p = first(optimizer)
    written = [p, *(t for key, t in optimizer.state.get(p, {}).items() if key != "step")]
    before = [t._version for t in written]
    counts = [state["step"] for state in optimizer.state.values() if "step" in state]
    optimizer.step()
    assert [t._version for t in written] == [version + 1 for version in before]
    assert [t._version for t in counts] == [0] * len(counts)  # no graph holds a count of steps


@each_case
def test_nothing_outlives_the_optimizer(cls: Any, kwargs: dict[str, Any]) -> None:
    optimizer = make(cls, kwargs)
    give_grads(optimizer, 0)
    optimizer.step()
    gone = [weakref.ref(optimizer), *map(weakref.ref, params_of(optimizer))]
    del optimizer
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)


def named(optimizer: FusedOptimizer) -> list[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    return [event.name for event in profile.events()]


@pytest.mark.usefixtures("optim_route")
def test_a_profiler_sees_the_step() -> None:
    optimizer = make(optim.SGD, {"lr": 0.1})
    for step in range(2):
        give_grads(optimizer, step)
        seen = named(optimizer)
        assert seen.count("Optimizer.step#SGD.step") == 1 and seen.count("fastnorm_optim::step") == 1


@pytest.mark.usefixtures("optim_route")
def test_hooks_are_called_once() -> None:
    """Of the optimizer and of all optimizers, before and after."""
    called: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: called.append("before all")),
        register_optimizer_step_post_hook(lambda *_: called.append("after all")),
    ]
    optimizer = make(optim.SGD, {"lr": 0.1})
    handles.append(optimizer.register_step_pre_hook(lambda *_: called.append("before")))
    handles.append(optimizer.register_step_post_hook(lambda *_: called.append("after")))
    give_grads(optimizer, 0)
    try:
        while handles:
            optimizer.step()
            handles.pop().remove()
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    every = ["before all", "before", "after", "after all"]
    assert called == [*every, *every[:2], every[3], every[0], every[3], every[0]]
