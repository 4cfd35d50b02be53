"""What an optimizer has found out about its tensors is found out once, whatever is among them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastnorm import optim
from fastnorm.optim import fused
from fastnorm.optim import plan as plans
from fastnorm.optim.device import fits_kernel
from fastnorm.optim.entry import Entry
from tests.conformance.backends import DEVICE

pytestmark = pytest.mark.usefixtures("optim_route")

CASES: tuple[tuple[Any, dict[str, Any]], ...] = (
    (optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (optim.RMSprop, {"lr": 0.1, "init": "first_grad"}),
    (optim.Adam, {"lr": 0.1}),
)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[fused.StepPlan]:
    """Every plan that is made."""
    found: list[fused.StepPlan] = []
    make = fused.StepPlan.__init__

    def recorded(self: fused.StepPlan, *args: Any) -> None:
        make(self, *args)
        found.append(self)

    monkeypatch.setattr(fused.StepPlan, "__init__", recorded)
    return found


def pair(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    value = torch.randn(shape, dtype=dtype)
    return torch.nn.Parameter(value), torch.nn.Parameter(value.clone())


def give_grads(*params: Tensor, seed: int) -> None:
    """The same gradient to all of one shape."""
    for p in params:
        torch.manual_seed(seed)
        p.grad = torch.randn(p.shape, dtype=p.dtype).to(p.device)


def test_a_momentum_that_follows_a_schedule(made: list[fused.StepPlan]) -> None:
    p, _ = pair(5)
    optimizer = optim.SGD([p], lr=0.1, momentum=0.9)
    for step in range(4):
        optimizer.param_groups[0]["momentum"] = 0.9 - 0.1 * step
        give_grads(p, seed=step)
        optimizer.step()
    assert len(made) == 1
    optimizer.param_groups[0]["momentum"] = 0.0
    optimizer.step()
    assert len(made) == 2


@pytest.mark.parametrize("cls, kwargs", CASES)
def test_complex_parameters(cls: Any, kwargs: dict[str, Any], made: list[fused.StepPlan]) -> None:
    p, q = pair(3, 4, dtype=torch.complex64)
    a, b = cls([p], **kwargs), cls([q], **kwargs)
    for step in range(3):
        give_grads(p, q, seed=step)
        a.step()
        b.step()
    assert len(made) == 2
    moves = (lambda t: t.clone(), lambda t: t.t().contiguous().t())
    for step, move in enumerate(moves):
        p.data = move(p.data)
        for key, value in a.state[p].items():
            if value.is_complex():
                a.state[p][key].data = move(value.data)
        give_grads(p, q, seed=step + 3)
        a.step()
        b.step()
        assert len(made) == 3 + step
    assert torch.equal(p, q)


@pytest.mark.parametrize("cls, kwargs", CASES)
@pytest.mark.parametrize("max_norm", (None, 0.5))
def test_a_conjugate_as_gradient(cls: Any, kwargs: dict[str, Any], max_norm: float | None) -> None:
    p, q = pair(3, 4, dtype=torch.complex64)
    grad = torch.randn(3, 4, dtype=torch.complex64).conj()
    p.grad, q.grad = grad, grad.resolve_conj().clone()
    assert p.grad.is_conj() and not q.grad.is_conj()
    for t in (p, q):
        cls([t], max_norm=max_norm, **kwargs).step()
    assert torch.equal(p, q)


class Named(torch.nn.Parameter):
    """A subclass: the reference updates it."""


@pytest.mark.parametrize("cls, kwargs", CASES)
@pytest.mark.parametrize("max_norm", (None, 0.5))
def test_a_subclass_among_plain_parameters(
    cls: Any, kwargs: dict[str, Any], max_norm: float | None, made: list[fused.StepPlan]
) -> None:
    (p, q), (r, s) = pair(70), pair(7)
    named = Named(r.detach().clone())
    a, b = cls([p, named], max_norm=max_norm, **kwargs), cls([q, s], max_norm=max_norm, **kwargs)
    for step in range(4):
        give_grads(p, q, seed=step)
        give_grads(named, s, seed=step + 10)
        a.step()
        b.step()
    assert len(made) == 2 and len(made[0].others) == 1
    assert torch.equal(p, q)
    torch.testing.assert_close(named.detach().as_subclass(Tensor), s.detach(), rtol=1e-5, atol=1e-6)
    named.grad = torch.ones(7).to_sparse()
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        a.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("cls, kwargs", CASES)
def test_two_devices(cls: Any, kwargs: dict[str, Any], made: list[fused.StepPlan]) -> None:
    p, q = pair(70)
    elsewhere = torch.nn.Parameter(torch.empty(3, device="meta"))
    a, b = cls([elsewhere, p], **kwargs), cls([q], **kwargs)
    for step in range(4):
        give_grads(p, q, seed=step)
        elsewhere.grad = torch.empty(3, device="meta")
        a.step()
        b.step()
    assert len(made) == 2
    assert torch.equal(p, q)


@pytest.mark.parametrize("cls, kwargs", CASES)
def test_two_backends_that_launch_and_loop(
    cls: Any, kwargs: dict[str, Any], made: list[fused.StepPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with parameters on a GPU and on the CPU. What moves on the one is noticed before the other is updated."""
    pytest.importorskip("triton")
    (start, q), (r, s) = pair(2, 3, 4, 5), pair(70)
    p = torch.nn.Parameter(start.detach().to(DEVICE))

    def backend_of(entry: Entry) -> str:
        return "triton" if entry.param is p and fits_kernel(entry) else "native"

    monkeypatch.setattr(plans, "backend_of", backend_of)
    a, b = cls([p, r], **kwargs), cls([q, s], **kwargs)
    for step in range(4):
        give_grads(p, q, seed=step)
        give_grads(r, s, seed=step + 10)
        a.step()
        b.step()
        if step == 1:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    assert len(made) == 3
    assert torch.equal(r, s)
    torch.testing.assert_close(p.cpu(), q, rtol=1e-5, atol=1e-6)
