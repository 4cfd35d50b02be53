"""The functional steps under torch.compile and torch.export, and torch's own checks of their ops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from fastnorm.ops import optim as ops
from fastnorm.optim.functional import adam_step, rmsprop_step, sgd_step

Step = Callable[..., tuple[Tensor, ...]]


def adam(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    return adam_step(p, g, m, v, step=3, lr=0.1, weight_decay=0.1)


def amsgrad(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    return adam_step(p, g, m, v, v * 2, step=3, lr=0.1, eps_inside_sqrt=True)


def rmsprop(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    return rmsprop_step(p, g, v, m, g * 0.1, lr=0.1, momentum=0.9)


def sgd(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    return sgd_step(p, g, m, lr=0.1, momentum=0.9, nesterov=True)


def first_sgd(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    return sgd_step(p, g, lr=0.1, momentum=0.9)


STEPS = (adam, amsgrad, rmsprop, sgd, first_sgd)


def tensors(*shape: int, grad: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    p, g, m, v = (torch.randn(shape, dtype=dtype) for _ in range(4))
    return [t.requires_grad_(grad) for t in (p, g, m, v.square() + 1)]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("grad", (False, True))
@pytest.mark.parametrize("step", STEPS)
def test_compiled_in_one_graph(step: Step, grad: bool) -> None:
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    mine, plain = tensors(3, 4, grad=grad), tensors(3, 4, grad=grad)
    new, expected = compiled(*mine), step(*plain)
    assert_close(new, expected)
    if grad:
        for outputs in (new, expected):
            torch.manual_seed(1)
            torch.autograd.backward(outputs, [torch.randn_like(t) for t in outputs])
        assert_close([t.grad for t in mine], [t.grad for t in plain])
        assert all(t.grad is not None for t in mine[:2])


def test_numbers_in_tensors_are_not_waited_for() -> None:
    def step(p: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: Tensor, count: Tensor) -> Tensor:
        return adam_step(p, g, m, v, step=count, lr=lr)[0]

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    given = tensors(5, grad=False)
    for count in (1.0, 2.0, 7.0):
        lr, own_lr = (torch.tensor(0.1 / count, dtype=torch.float64, requires_grad=True) for _ in range(2))
        new, expected = compiled(*given, lr, torch.tensor(count)), step(*given, own_lr, torch.tensor(count))
        assert_close(new, expected)
        new.sum().backward()
        expected.sum().backward()
        assert_close(lr.grad, own_lr.grad)


class Stepping(nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return self.step(p, g, m, v)


@pytest.mark.parametrize("step", STEPS)
def test_exported(step: Step) -> None:
    """The graph holds the fused op, whose gradient nobody can have forgotten: it refuses to be differentiated."""
    given = tensors(3, 4, grad=False)
    program = torch.export.export(Stepping(step), tuple(given))
    op = torch.ops.fastnorm_optim.step_out.default
    assert [node.target for node in program.graph.nodes].count(op) == 1
    assert_close(program.module()(*given), step(*given), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="step_out has no derivative"):
        program.module()(given[0].requires_grad_(), *given[1:])


@pytest.mark.parametrize("step", STEPS)
def test_exported_with_gradients(step: Step) -> None:
    mine, plain = tensors(3, 4, grad=True), tensors(3, 4, grad=True)
    program = torch.export.export(Stepping(step), tuple(tensors(3, 4, grad=True)))
    for given, f in ((mine, program.module()), (plain, step)):
        f(*given)[0].square().sum().backward()
    assert_close([t.grad for t in mine[:2]], [t.grad for t in plain[:2]])


ADAM = [0.1, 0.9, 0.99, 1e-8, 0.0, 0.0, 0.0, 0.0]
RMSPROP = [0.1, 0.9, 1e-8, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
OP_CALLS: tuple[tuple[int, int, list[float]], ...] = (
    (ops.SGD, 0, [0.1, *[0.0] * 7]),
    (ops.SGD, 1, [0.1, 0.9, *[0.0] * 6]),
    (ops.RMSPROP, 1, RMSPROP),
    (ops.ADAM, 2, ADAM),
    (ops.ADAM, 3, ADAM),
)
LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.randn(2, 3, 4, 5),
    "channels_last": lambda: torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "strided": lambda: torch.randn(3, 8)[:, ::2],
    "bf16": lambda: torch.randn(7, dtype=torch.bfloat16),
    "empty": lambda: torch.randn(0, 3),
    "0-d": lambda: torch.randn(()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind, states, hyper", OP_CALLS)
def test_opcheck_of_the_step(kind: int, states: int, hyper: list[float], layout: str) -> None:
    param, grad = LAYOUTS[layout](), LAYOUTS[layout]()
    others = [LAYOUTS[layout]().float().abs() for _ in range(states)]
    args: tuple[Any, ...] = (kind, [param, grad, *others], hyper, 1.0, False)
    torch.library.opcheck(torch.ops.fastnorm_optim.step_out.default, args)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "bf16"])
@pytest.mark.parametrize("states", (2, 3))
def test_opcheck_of_adams_derivative(states: int, layout: str) -> None:
    inputs = [LAYOUTS[layout]().abs() for _ in range(2 + states)]
    upstream = [inputs[0].new_empty(0), *(LAYOUTS[layout]() for _ in range(states))]
    torch.library.opcheck(torch.ops.fastnorm_optim.adam_bwd.default, (inputs, upstream, ADAM, 2.0))
