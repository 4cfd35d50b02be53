"""What the compiled nodes look after between two steps: with the same bits, and noticing the same, as Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastnorm import optim
from fastnorm.ops.optim_watch import MOVED, OTHER, REFORMED, TAKEN
from fastnorm.optim.fused import FusedOptimizer
from tests.unit.optim_twins import CASES, Change, check, contents, each_case, first, give_grads, make, params_of


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16), ids=str)
@each_case
def test_every_step_is_one_question(
    cls: Any, kwargs: dict[str, Any], dtype: torch.dtype, answers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(cls, kwargs, None, monkeypatch, dtype=dtype)
    assert answers == [TAKEN] * 5


def in_groups(**values: Any) -> Change:
    return lambda optimizer: [group.update(values) for group in optimizer.param_groups] and None


def share_lazily(optimizer: FusedOptimizer) -> None:
    optimizer.copy = torch._lazy_clone(first(optimizer).detach())  # type: ignore[attr-defined]


def late(optimizer: FusedOptimizer) -> None:
    params_of(optimizer)[1].grad = torch.ones(5)


def lost(optimizer: FusedOptimizer) -> None:
    first(optimizer).grad = None


def swapped(optimizer: FusedOptimizer) -> None:
    optimizer.param_groups.reverse()


def reloaded(optimizer: FusedOptimizer) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


def other_params(optimizer: FusedOptimizer) -> None:
    group = optimizer.param_groups[0]
    group["params"] = group["params"][::-1]


CHANGES: dict[str, tuple[Change, list[int]]] = {  # and what the fourth step is answered
    "lr": (in_groups(lr=0.01), [TAKEN]),
    "lr of an int": (in_groups(lr=1), [TAKEN]),
    "lr in a tensor": (in_groups(lr=torch.tensor(0.02)), [TAKEN]),
    "weight_decay": (in_groups(weight_decay=0.1), [TAKEN]),
    "a new key": (in_groups(initial_lr=0.01), [OTHER, TAKEN]),
    "groups in another order": (swapped, [OTHER, TAKEN]),
    "parameters in another order": (other_params, [OTHER, TAKEN]),
    "a state dict": (reloaded, [OTHER, TAKEN]),
    "a late gradient": (late, [MOVED, TAKEN]),
    "a lost gradient": (lost, [MOVED, TAKEN, MOVED]),  # the next step has it again
    "other memory": (lambda o: setattr(first(o), "data", first(o).data.clone()), [MOVED, TAKEN]),
    "memory for other processes": (lambda o: first(o).share_memory_(), [MOVED, TAKEN]),
    "memory shared until it is written": (share_lazily, [MOVED, TAKEN]),
}


@pytest.mark.parametrize("name", CHANGES)
@each_case
def test_changes_are_noticed(
    cls: Any, kwargs: dict[str, Any], name: str, answers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, wanted = CHANGES[name]
    check(cls, kwargs, change, monkeypatch)
    assert answers == [TAKEN] * 3 + wanted + [TAKEN]


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "another shape": lambda t: t.view(4, 3),
    "fewer rows": lambda t: t[:2],
    "later in it": lambda t: t.as_strided((2, 4), (4, 1), 4),
}


@pytest.mark.parametrize("name", VIEWS)
def test_other_views_of_the_same_memory(name: str, answers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def change(optimizer: FusedOptimizer) -> None:
        p = first(optimizer)
        p.data = VIEWS[name](p.data)
        p.grad = torch.ones(p.shape)

    check(*CASES[0], change, monkeypatch)
    assert answers == [TAKEN] * 3 + [MOVED, TAKEN, TAKEN]


def test_another_place_in_the_same_memory() -> None:
    room = torch.ones(20)
    p = torch.nn.Parameter(room[:10])
    optimizer = optim.SGD([p], lr=1.0)
    p.grad = torch.ones(10)
    optimizer.step()
    p.data = room[10:]
    p.grad = torch.ones(10)
    optimizer.step()
    assert torch.equal(room, torch.zeros(20))


def restride(t: Tensor) -> None:
    t.as_strided_((3, 4), (1, 3))  # the same memory, another order


STATE_CHANGES: dict[str, tuple[Callable[[dict[str, Any], str], None], int]] = {
    "replaced": (lambda state, key: state.update({key: state[key].clone()}), OTHER),
    "moved": (lambda state, key: setattr(state[key], "data", state[key].data.clone()), MOVED),
    "added": (lambda state, key: state.update(more=1), OTHER),
    "in another order": (lambda state, key: restride(state[key]), MOVED),
}


@pytest.mark.parametrize("name", STATE_CHANGES)
@pytest.mark.parametrize(
    "cls, kwargs, key",
    ((*CASES[1], "momentum_buffer"), (*CASES[2], "square_avg"), (*CASES[3], "exp_avg_sq"), (*CASES[3], "step")),
)
def test_states_that_change_are_noticed(
    cls: Any, kwargs: dict[str, Any], key: str, name: str, answers: list[int]
) -> None:
    """The step that follows is that of an optimizer which has never seen anything else."""
    if key == "step" and name == "in another order":
        return
    (change, answer), both = STATE_CHANGES[name], [make(cls, kwargs), make(cls, kwargs)]
    for optimizer in both:
        for step in range(2):
            give_grads(optimizer, step)
            optimizer.step()
        change(optimizer.state[first(optimizer)], key)
        give_grads(optimizer, 2)
    both[1]._plan = None
    answers.clear()
    for optimizer in both:
        optimizer.step()
    assert answers == [answer, TAKEN, TAKEN]
    assert all(torch.equal(a, b) for a, b in zip(*map(contents, both), strict=True))


@pytest.mark.parametrize("cls, kwargs", CASES[1:])
def test_another_dict_of_states_is_noticed(cls: Any, kwargs: dict[str, Any], answers: list[int]) -> None:
    optimizer = make(cls, kwargs)
    for step in range(3):
        give_grads(optimizer, step)
        if step == 2:
            state = {key: value.clone() for key, value in optimizer.state[first(optimizer)].items()}
            before = {key: value.clone() for key, value in state.items()}
            optimizer.state[first(optimizer)] = state
        optimizer.step()
    assert answers == [TAKEN] * 2 + [OTHER, TAKEN]
    assert not any(torch.equal(state[key], before[key]) for key in state)


def test_numbers_that_follow_a_schedule(answers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Momentum decides about states: another one is asked about. None at all takes another plan."""
    check(optim.SGD, {"lr": 0.1, "momentum": 0.9}, in_groups(momentum=0.8), monkeypatch)
    assert answers == [TAKEN] * 3 + [REFORMED, TAKEN]
    answers.clear()
    check(optim.SGD, {"lr": 0.1, "momentum": 0.9}, in_groups(momentum=0.0), monkeypatch)
    assert answers == [TAKEN] * 3 + [REFORMED, TAKEN, TAKEN]
    answers.clear()
    check(optim.Adam, {"lr": 0.1}, in_groups(betas=[0.5, 0.6]), monkeypatch)
    assert answers == [TAKEN] * 5
