"""Gradients and hyper-parameters that a plan takes straight from Python's lists, and those that it must not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastnorm import optim
from fastnorm.ops import native
from fastnorm.ops.optim import Plan

CASES: tuple[tuple[Any, dict[str, Any]], ...] = (
    (optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (optim.RMSprop, {"lr": 0.1, "init": "first_grad"}),
    (optim.Adam, {"lr": 0.1}),
)


def params_of(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of every step, how many gradients and how many numbers were passed to the op. Without the compiled nodes."""
    monkeypatch.setattr(native._State, "nodes", None)
    counts: list[tuple[int, int]] = []

    def prepared(self: Plan) -> None:
        make(self)
        step = self._step

        def counted(handle: int, grads: list[Tensor], hyper: list[float], *rest: Any) -> bool:
            counts.append((len(grads), len(hyper)))
            return step(handle, grads, hyper, *rest)

        self._step = counted  # type: ignore[assignment]

    make = Plan.__post_init__
    monkeypatch.setattr(Plan, "__post_init__", prepared)
    return counts


@pytest.mark.skipif(not hasattr(Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no exchange protocol")
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("cls, kwargs", CASES)
def test_dense_gradients_and_plain_numbers_are_not_passed(
    cls: Any, kwargs: dict[str, Any], dtype: torch.dtype, passed: list[tuple[int, int]]
) -> None:
    params = params_of((3, 4), (), (0,), (1,), (5,), dtype=dtype)
    params.append(torch.nn.Parameter(torch.zeros(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last)))
    params[-1].grad = torch.ones_like(params[-1])
    optimizer = cls([{"params": params[:2]}, {"params": params[2:]}], **kwargs)
    for _ in range(2):
        optimizer.step()
    assert passed == [(0, 0), (0, 0)]


@pytest.mark.usefixtures("optim_route")
@pytest.mark.parametrize("cls, kwargs", CASES)
@pytest.mark.parametrize("shape", ((), (1,), (6,)), ids=str)
def test_a_gradient_that_is_still_to_be_negated(cls: Any, kwargs: dict[str, Any], shape: tuple[int, ...]) -> None:
    """The imaginary part of a conjugate: its memory holds the other sign, and one element lies dense."""
    a, b = params_of(shape, shape)
    b.data.copy_(a.data)
    grad = torch.randn(shape, dtype=torch.complex64).conj().imag
    assert grad.is_neg()
    a.grad, b.grad = grad, grad.clone()
    assert not b.grad.is_neg()
    for p in (a, b):
        optimizer = cls([p], **kwargs)
        for _ in range(2):
            optimizer.step()
    assert torch.equal(a, b)


@pytest.mark.parametrize("cls, kwargs", CASES)
def test_a_gradient_with_strides_of_its_own_goes_the_long_way(
    cls: Any, kwargs: dict[str, Any], passed: list[tuple[int, int]]
) -> None:
    a, b = params_of((3, 4), (3, 4))
    b.data.copy_(a.data)
    grad = torch.randn(4, 3).t()
    a.grad, b.grad = grad, grad.contiguous()
    cls([a], **kwargs).step()
    assert passed[-1] == (1, 0)
    cls([b], **kwargs).step()
    assert torch.equal(a, b)


class Named(Tensor):
    """A subclass, whose memory the protocol does not speak of."""


@pytest.mark.parametrize("cls, kwargs", CASES)
def test_a_gradient_of_a_subclass_goes_the_long_way(
    cls: Any, kwargs: dict[str, Any], passed: list[tuple[int, int]]
) -> None:
    a, b = params_of((5,), (5,))
    b.data.copy_(a.data)
    assert a.grad is not None
    b.grad = a.grad.as_subclass(Named)  # type: ignore[assignment]
    for p in (a, b):
        cls([p], **kwargs).step()
    assert passed[-1] == (1, 0) and torch.equal(a, b)


@pytest.mark.parametrize("cls, kwargs", CASES)
def test_numbers_in_tensors_go_the_long_way(cls: Any, kwargs: dict[str, Any], passed: list[tuple[int, int]]) -> None:
    a, b = params_of((5,), (5,))
    b.data.copy_(a.data)
    b.grad = a.grad
    cls([a], **kwargs).step()
    cls([b], **{**kwargs, "lr": torch.tensor(kwargs["lr"], dtype=torch.float64)}).step()
    assert passed[0][1] == 0 and passed[1][1] > 0
    assert torch.equal(a, b)
