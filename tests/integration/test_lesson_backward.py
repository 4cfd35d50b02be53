"""The lessons' first backward pass, written by hand from tensor operations, against the library and autograd.

A two-layer net with the lessons' shifted ReLU and mean squared error:

    l1 = x @ w1 + b1        l2 = relu(l1) - 0.5        out = l2 @ w2 + b2        loss = mean((out - y)^2)
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastnorm
from fastnorm.testing.compare import Expectation, check
from fastnorm.testing.rounding import sum_floor, unit_of

N, IN, HIDDEN = 201, 31, 50
NAMES = ("dx", "dw1", "db1", "dw2", "db2")


def lin(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x @ w + b


def lin_grad(dout: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, w and b: out[n, o] = sum_i x[n, i] w[i, o] + b[o]."""
    return dout @ w.t(), (x.unsqueeze(-1) * dout.unsqueeze(1)).sum(0), dout.sum(0)


def relu(x: Tensor) -> Tensor:
    return x.clamp_min(0.0) - 0.5


def relu_grad(dout: Tensor, x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype) * dout


def mse(out: Tensor, y: Tensor) -> Tensor:
    return (out.squeeze(-1) - y).pow(2).mean()


def mse_grad(out: Tensor, y: Tensor) -> Tensor:
    return 2.0 * (out.squeeze(-1) - y).unsqueeze(-1) / out.shape[0]


def by_hand(x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, ...]:
    """The loss and the gradients of x, w1, b1, w2, b2."""
    l1 = lin(x, w1, b1)
    l2 = relu(l1)
    out = lin(l2, w2, b2)
    dl2, dw2, db2 = lin_grad(mse_grad(out, y), l2, w2)
    dx, dw1, db1 = lin_grad(relu_grad(dl2, l1), x, w1)
    return mse(out, y), dx, dw1, db1, dw2, db2


def by_library(backend: str, x: Tensor, y: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    """The same through autograd, the activation being the library's Function."""
    leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
    xs, w1, b1, w2, b2 = leaves
    with fastnorm.use_backend(backend):
        l2 = fastnorm.GeneralRelu(sub=0.5)(lin(xs, w1, b1))
        loss = mse(lin(l2, w2, b2), y)
        return loss.detach(), *torch.autograd.grad(loss, leaves)


def by_autograd(x: Tensor, y: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
    xs, w1, b1, w2, b2 = leaves
    loss = mse(lin(torch.relu(lin(xs, w1, b1)) - 0.5, w2, b2), y)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def problem(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x, y, and Kaiming weights as in the lessons; values of fp32 in any dtype, and no l1 near the kink."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, y = normal(N, IN), torch.randint(10, (N,), generator=generator).float()
    w1, b1 = normal(IN, HIDDEN) * (2 / IN) ** 0.5, torch.zeros(HIDDEN)
    w2, b2 = normal(HIDDEN, 1) * (2 / HIDDEN) ** 0.5, torch.zeros(1)
    tensors = tuple(t.double() for t in (x, y, w1, b1, w2, b2))
    assert float(lin(tensors[0], tensors[2], tensors[3]).abs().min()) > 1e-6
    return tuple(t.to(dtype) for t in tensors)


def floors(x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, unit: float) -> tuple[Tensor, ...]:
    """What rounding can do to each: the sums that it is made of, and what the rounding of out and dout does to them."""
    l1 = lin(x, w1, b1)
    l2 = relu(l1)
    out = lin(l2, w2, b2)
    l1_error = sum_floor(x[:, :, None] * w1, (1,), unit)[:, 0]
    l2_error = l1_error + unit * (l2.abs() + 0.5)
    out_error = sum_floor(l2[:, :, None] * w2, (1,), unit)[:, 0] + l2_error @ w2.abs()
    dout, dout_error = mse_grad(out, y), 2 * (out_error + unit * (out - y[:, None]).abs()) / N
    dl1, mask = relu_grad(dout @ w2.t(), l1), (l1 > 0).to(l1.dtype)
    dl1_error = mask * (dout_error @ w2.abs().t() + unit * dl1.abs())
    apart = (out.squeeze(-1) - y).abs()
    return (
        sum_floor(apart.square() / N, (0,), unit)[0] + (2 * apart * out_error[:, 0]).mean(),
        sum_floor(dl1[:, :, None] * w1.t(), (1,), unit)[:, 0] + dl1_error @ w1.abs().t(),
        sum_floor(x[:, :, None] * dl1[:, None], (0,), unit)[0] + x.abs().t() @ dl1_error,
        sum_floor(dl1, (0,), unit)[0] + dl1_error.sum(0),
        sum_floor(l2[:, :, None] * dout[:, None], (0,), unit)[0]
        + l2.abs().t() @ dout_error
        + l2_error.t() @ dout.abs(),
        sum_floor(dout, (0,), unit)[0] + dout_error.sum(0),
    )


def assert_near(results: tuple[Tensor, ...], dtype: torch.dtype, label: str) -> None:
    """Every result within what rounding can do of the hand-written one in float64: the lessons' test_near."""
    exact_inputs = problem(torch.float64)
    exact, peer = by_hand(*exact_inputs), by_autograd(*problem(dtype))
    bounds = floors(*exact_inputs, unit_of(dtype))
    for name, got, want, other, floor in zip(("loss", *NAMES), results, exact, peer, bounds, strict=True):
        check(got, Expectation(want, other.double(), floor, dtype), f"{label}: {name}")


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("backend", ("eager", "native"))
def test_near_by_the_library(backend: str, dtype: torch.dtype) -> None:
    assert_near(by_library(backend, *problem(dtype)), dtype, backend)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_near_by_hand(dtype: torch.dtype) -> None:
    assert_near(by_hand(*problem(dtype)), dtype, "by hand")


def test_by_hand_is_autograds() -> None:
    """The two ways, in float64, agree with each other: the hand-written pass is no oracle that was never checked."""
    for name, a, b in zip(
        ("loss", *NAMES), by_hand(*problem(torch.float64)), by_autograd(*problem(torch.float64)), strict=True
    ):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


WRONG = {
    "slope above half": lambda dout, x: (x > 0.5).to(x.dtype) * dout,
    "no slope": lambda dout, x: dout,
    "shift in the gradient": lambda dout, x: (x > 0).to(x.dtype) * (dout - 1e-6),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_backward_is_not_near(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = problem(torch.float32)
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "relu_grad", WRONG[name])
        wrong = by_hand(*inputs)
    with pytest.raises(AssertionError, match="by hand: d"):
        assert_near(wrong, torch.float32, "by hand")
