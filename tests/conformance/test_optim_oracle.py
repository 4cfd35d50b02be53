"""Every option of every optimizer, several steps, against torch.optim's plain path in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import fastnorm
from fastnorm import optim
from fastnorm.ops.optim import Plan
from fastnorm.ops.optim_watch import Watch
from fastnorm.testing.optim import SIZES, check_step, make_params, set_grads

pytestmark = pytest.mark.usefixtures("optim_route")

NAMES = ("SGD", "RMSprop", "Adam", "AdamW")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)
BACKENDS = ("native", "eager")


@pytest.fixture(autouse=True)
def _one_thread(threads: None) -> None:
    """Threads wait for one another where others use the cores too; their bits are test_optim_layouts.py's affair."""
    torch.set_num_threads(1)


def options(name: str) -> list[dict[str, Any]]:
    """All combinations of the switches of one optimizer, with numbers that are not its defaults."""
    if name == "SGD":
        base = [
            {"lr": 0.1, "momentum": momentum, "weight_decay": decay, "maximize": maximize}
            for momentum, decay, maximize in itertools.product((0.0, 0.8), (0.0, 0.1), (False, True))
        ]
        more = [{"dampening": 0.3}, {"nesterov": True}]
        return [*base, *({**b, **m} for b in base if b["momentum"] for m in more)]
    if name == "RMSprop":
        return [
            {"lr": 0.02, "alpha": 0.9, "eps": 1e-3, "momentum": momentum, "centered": centered, "weight_decay": decay,
             "maximize": maximize}
            for momentum, centered, decay, maximize in itertools.product(
                (0.0, 0.8), (False, True), (0.0, 0.1), (False, True))
        ]  # fmt: skip
    return [
        {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": decay, "amsgrad": amsgrad, "maximize": maximize}
        for decay, amsgrad, maximize in itertools.product((0.0, 0.1), (False, True), (False, True))
    ]


def follow(name: str, kwargs: dict[str, Any], shapes: Any, dtype: torch.dtype, steps: int = 3) -> None:
    params = make_params(shapes, dtype)
    ours = getattr(optim, name)(params, **kwargs)
    for step in range(steps):
        set_grads(params, seed=step + 1)
        check_step(ours, params, lambda ps: getattr(torch.optim, name)(ps, **kwargs), f"{name} {kwargs}, step {step}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_combination_of_switches(name: str, dtype: torch.dtype, backend: str) -> None:
    with fastnorm.use_backend(backend):
        for kwargs in options(name):
            follow(name, kwargs, [(5, 7), (), (33,)], dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_sizes_around_every_edge(name: str, dtype: torch.dtype) -> None:
    follow(name, options(name)[-1], [(n,) for n in SIZES], dtype, steps=2)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_dtypes_in_one_group(name: str) -> None:
    params = [make_params([(70,)], dtype)[0] for dtype in DTYPES]
    alone = [make_params([(70,)], dtype)[0] for dtype in DTYPES]
    together = getattr(optim, name)(params, **options(name)[-1])
    apart = [getattr(optim, name)([p], **options(name)[-1]) for p in alone]
    for step in range(3):
        for p, q in zip(params, alone, strict=True):
            set_grads([p], seed=step)
            set_grads([q], seed=step)
        together.step()
        for one in apart:
            one.step()
    assert all(torch.equal(p, q) for p, q in zip(params, alone, strict=True))


@pytest.mark.parametrize("value", (float("inf"), float("-inf"), float("nan")))
@pytest.mark.parametrize("name", NAMES)
def test_gradients_that_are_not_finite(name: str, value: float) -> None:
    params = make_params([(40,)], torch.float32)
    kwargs = options(name)[-1]
    ours = getattr(optim, name)(params, **kwargs)
    twins = [torch.nn.Parameter(p.detach().double()) for p in params]
    theirs = getattr(torch.optim, name)(twins, **kwargs)
    for step in range(3):
        set_grads(params, seed=step)
        assert params[0].grad is not None
        params[0].grad[3 + step] = value
        twins[0].grad = params[0].grad.double()
        ours.step()
        theirs.step()
        assert torch.equal(params[0].isfinite(), twins[0].isfinite())


# Where each number stands among those of the kernel; switches of the table itself are left out.
PLACES = (
    [("SGD", i) for i in range(7)] + [("RMSprop", i) for i in range(11) if i != 5] + [("Adam", i) for i in range(8)]
)


@pytest.mark.parametrize("name, place", PLACES)
def test_a_wrong_number_is_seen(name: str, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check bites: each number of the kernel, off by a thousandth, fails it."""
    rule = getattr(optim, name).rule
    right = rule.hyper

    def wrong(group: dict[str, Any]) -> list[float]:
        numbers = [float(n) for n in right(group)]
        numbers[place] = 1 - numbers[place] if numbers[place] in (0, 1) else numbers[place] * 1.001
        return numbers

    monkeypatch.setattr(rule, "hyper", wrong)
    for native_step in (Plan, Watch):
        monkeypatch.setattr(native_step, "take_hyper", lambda *_: False)  # it does not ask the rule
    kwargs = {**options(name)[-1], "maximize": False}
    if name == "SGD":
        kwargs["nesterov"] = place != 2  # dampening only counts without it
        if place == 2:
            kwargs["dampening"] = 0.3
    with pytest.raises(AssertionError, match="elements are wrong"):
        follow(name, kwargs, [(40,)], torch.float32)
