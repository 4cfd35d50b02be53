"""The presets, against the lessons' own lines, and the options that torch.optim does not have, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastnorm import optim

pytestmark = pytest.mark.usefixtures("optim_route")

GRADS = [torch.linspace(-1, 2, 40, dtype=torch.float64).roll(3 * i) * (i + 1) for i in range(5)]
START = torch.linspace(-2, 2, 40, dtype=torch.float64)


def run(optimizer_of: Callable[[list[Tensor]], Any]) -> Tensor:
    p = torch.nn.Parameter(START.clone())
    optimizer = optimizer_of([p])
    for grad in GRADS:
        p.grad = grad.clone()
        optimizer.step()
    return p.detach()


def test_momentum_of_the_lessons() -> None:
    p, average = START.clone(), torch.zeros_like(START)
    for grad in GRADS:
        p *= 1 - 0.1 * 0.2
        average = average * 0.8 + grad * (1 - 0.8)
        p -= 0.1 * average
    torch.testing.assert_close(run(lambda ps: optim.SGD.lesson(ps, 0.1, wd=0.2, mom=0.8)), p)


def test_rmsprop_of_the_lessons() -> None:
    p, squares = START.clone(), GRADS[0] ** 2
    for grad in GRADS:
        p *= 1 - 0.1 * 0.2
        squares = squares * 0.9 + grad**2 * (1 - 0.9)
        p -= 0.1 * grad / (squares.sqrt() + 1e-4)
    torch.testing.assert_close(run(lambda ps: optim.RMSprop.lesson(ps, 0.1, wd=0.2, sqr_mom=0.9, eps=1e-4)), p)


def test_adam_of_the_lessons() -> None:
    p, average, squares = START.clone(), torch.zeros_like(START), torch.zeros_like(START)
    for i, grad in enumerate(GRADS):
        p *= 1 - 0.1 * 0.2
        average = 0.8 * average + (1 - 0.8) * grad
        unbiased = average / (1 - 0.8 ** (i + 1))
        squares = 0.9 * squares + (1 - 0.9) * grad**2
        unbiased_squares = squares / (1 - 0.9 ** (i + 1))
        p -= 0.1 * unbiased / (unbiased_squares + 1e-4).sqrt()
    for cls in (optim.Adam, optim.AdamW):
        got = run(lambda ps, c=cls: c.lesson(ps, 0.1, wd=0.2, beta1=0.8, beta2=0.9, eps=1e-4))
        torch.testing.assert_close(got, p)


def test_defaults_of_the_presets() -> None:
    p = [torch.nn.Parameter(torch.zeros(1))]
    adam, rmsprop, sgd = (cls.lesson(p, 0.1).param_groups[0] for cls in (optim.Adam, optim.RMSprop, optim.SGD))
    assert (adam["betas"], adam["eps"], adam["weight_decay"], adam["eps_inside_sqrt"]) == ((0.9, 0.99), 1e-5, 0, True)
    assert adam["decoupled_weight_decay"] and rmsprop["decoupled_weight_decay"] and sgd["decoupled_weight_decay"]
    assert (rmsprop["alpha"], rmsprop["eps"], rmsprop["init"]) == (0.99, 1e-5, "first_grad")
    assert (sgd["momentum"], sgd["lerp"]) == (0.9, True)
    added = optim.Adam.lesson(p, 0.1)
    added.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    assert added.param_groups[1]["decoupled_weight_decay"] and added.param_groups[1]["eps_inside_sqrt"]


@pytest.mark.parametrize("momentum", (0.0, 0.8))
@pytest.mark.parametrize("centered", (False, True))
def test_rmsprop_of_tensorflow(momentum: float, centered: bool) -> None:
    p, square, average, buffer = START.clone(), torch.ones_like(START), torch.zeros_like(START), torch.zeros_like(START)
    for grad in GRADS:
        square = 0.9 * square + (1 - 0.9) * grad**2
        average = 0.9 * average + (1 - 0.9) * grad
        variance = square - average**2 if centered else square
        buffer = momentum * buffer + 0.1 * grad / (variance + 1e-3).sqrt()
        p -= buffer
    got = run(lambda ps: optim.RMSprop.tensorflow(ps, 0.1, 0.9, 1e-3, momentum=momentum, centered=centered))
    torch.testing.assert_close(got, p)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"init": "first_grad"}, {"init": "ones"}, {"eps_inside_sqrt": True}, {"decoupled_weight_decay": True},
        {"lr_in_momentum": True},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)  # fmt: skip
def test_every_option_of_rmsprop_does_something(kwargs: dict[str, Any]) -> None:
    """With an lr that changes, lr_in_momentum differs too; and the compiled step is the reference's."""

    def trained(backend: str, more: dict[str, Any]) -> Tensor:
        import fastnorm

        p = torch.nn.Parameter(START.clone())
        optimizer = optim.RMSprop([p], lr=0.1, momentum=0.9, weight_decay=0.1, eps=1e-2, **more)
        with fastnorm.use_backend(backend):
            for i, grad in enumerate(GRADS):
                optimizer.param_groups[0]["lr"] = 0.1 / (i + 1)
                p.grad = grad.clone()
                optimizer.step()
        return p.detach()

    torch.testing.assert_close(trained("native", kwargs), trained("eager", kwargs))
    assert not torch.allclose(trained("native", kwargs), trained("native", {}))


@pytest.mark.parametrize("cls", (optim.SGD, optim.RMSprop, optim.Adam))
def test_decoupled_decay_comes_before_the_step(cls: Any) -> None:
    p = torch.nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))
    p.grad = torch.zeros(3, dtype=torch.float64)
    cls([p], lr=0.1, weight_decay=0.5, decoupled_weight_decay=True).step()
    torch.testing.assert_close(p.detach(), torch.full((3,), 2.0 * (1 - 0.1 * 0.5), dtype=torch.float64))
