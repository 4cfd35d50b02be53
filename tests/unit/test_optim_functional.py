"""The differentiable steps: bits of the in-place step, exact derivatives, transforms, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastnorm import optim
from fastnorm.optim.functional import adam_step, rmsprop_step, sgd_step


def vector(seed: int, count: int = 6, dtype: torch.dtype = torch.float64, least: float | None = None) -> Tensor:
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if least is not None:
        values = values.abs() + least
    return values.to(dtype).requires_grad_()


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


# Each: a function of its tensor inputs alone, and those inputs.
Problem = tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]


def adam_problem(amsgrad: bool, **switches: bool) -> Problem:
    def f(p: Tensor, g: Tensor, m: Tensor, v: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        *largest, lr, b1, b2, eps, wd = rest
        return adam_step(p, g, m, v, *largest, step=3, lr=lr, betas=(b1, b2), eps=eps, weight_decay=wd, **switches)

    states = [vector(3), vector(4, least=0.1), *([vector(5, least=0.1)] if amsgrad else [])]
    return f, [vector(1), vector(2), *states, *map(scalar, (0.1, 0.8, 0.9, 0.01, 0.2))]


def rmsprop_problem(momentum: bool, centered: bool, **switches: bool) -> Problem:
    def f(p: Tensor, g: Tensor, v: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        *states, lr, alpha, eps, wd, mom = rest
        buffer = states.pop(0) if momentum else None
        average = states.pop(0) if centered else None
        return rmsprop_step(
            p, g, v, buffer, average, lr=lr, alpha=alpha, eps=eps, weight_decay=wd,
            momentum=mom if momentum else 0.0, **switches,
        )  # fmt: skip

    states = [vector(3, least=1.0), *([vector(4)] if momentum else [])]
    if centered:
        states.append((vector(5) * 0.1).detach().requires_grad_())
    return f, [vector(1), vector(2), *states, *map(scalar, (0.1, 0.8, 0.01, 0.2, 0.7))]


def sgd_problem(buffer: bool, **switches: bool) -> Problem:
    def f(p: Tensor, g: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        *states, lr, mom, wd = rest
        return sgd_step(p, g, *states, lr=lr, momentum=mom, weight_decay=wd, **switches)

    return f, [vector(1), vector(2), *([vector(3)] if buffer else []), *map(scalar, (0.1, 0.8, 0.2))]


PROBLEMS = {
    "adam": adam_problem(False),
    "adamw": adam_problem(False, decoupled_weight_decay=True, maximize=True),
    "amsgrad": adam_problem(True),
    "adam, eps inside": adam_problem(False, eps_inside_sqrt=True),
    "rmsprop": rmsprop_problem(False, False),
    "rmsprop, momentum": rmsprop_problem(True, False, decoupled_weight_decay=True),
    "rmsprop, centered": rmsprop_problem(False, True, eps_inside_sqrt=True),
    "rmsprop, both": rmsprop_problem(True, True, lr_in_momentum=True),
    "rmsprop, first gradient": rmsprop_problem(False, False, first_grad=True),
    "sgd": sgd_problem(True),
    "sgd, nesterov": sgd_problem(True, nesterov=True, maximize=True),
    "sgd, lerp": sgd_problem(True, lerp=True, decoupled_weight_decay=True),
    "sgd, first": sgd_problem(False),
    "sgd, first, lerp": sgd_problem(False, lerp=True),
}
each_problem = pytest.mark.parametrize("name", PROBLEMS)


@each_problem
def test_first_and_second_derivatives(name: str) -> None:
    f, inputs = PROBLEMS[name]
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@each_problem
def test_forward_mode_and_vmap(name: str) -> None:
    f, inputs = PROBLEMS[name]
    plain = [t.detach() for t in inputs]
    tangents = [torch.ones_like(t) for t in plain]
    _, forward = torch.func.jvp(f, tuple(plain), tuple(tangents))
    outputs = f(*inputs)
    for y, dy in zip(outputs, forward, strict=True):
        weights = torch.randn(y.shape, dtype=y.dtype)
        grads = torch.autograd.grad(y, inputs, weights, retain_graph=True, allow_unused=True)
        reverse = sum(g.sum() for g in grads if g is not None)
        torch.testing.assert_close((weights * dy).sum(), reverse)
    batched = torch.func.vmap(f, in_dims=tuple(0 if t.dim() else None for t in plain))
    got = batched(*(torch.stack([t, 2 * t]) if t.dim() else t for t in plain))
    for i, scale in enumerate((1, 2)):
        single = f(*(t * scale if t.dim() else t for t in plain))
        for a, b in zip(got, single, strict=True):
            torch.testing.assert_close(a[i], b)


@each_problem
def test_only_what_is_asked_for(name: str) -> None:
    """Gradients with respect to each input alone are those with respect to all."""
    f, inputs = PROBLEMS[name]
    full = torch.autograd.grad(f(*inputs)[0].sum(), inputs, allow_unused=True)
    for i, wanted in enumerate(full):
        alone = [t.detach().requires_grad_(i == j) for j, t in enumerate(inputs)]
        y = f(*alone)[0]
        if wanted is None or not y.requires_grad:
            continue
        (got,) = torch.autograd.grad(y.sum(), alone[i])
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("grad_mode", (False, True))
def test_bits_of_the_step_in_place(dtype: torch.dtype, grad_mode: bool) -> None:
    cases: list[tuple[Any, dict[str, Any], Callable[..., Any]]] = [
        (optim.Adam, {"lr": 0.1, "weight_decay": 0.1, "amsgrad": True}, lambda p, g, s: adam_step(
            p, g, s["exp_avg"], s["exp_avg_sq"], s["max_exp_avg_sq"], step=s["step"] + 1, lr=0.1, weight_decay=0.1)),
        (optim.RMSprop, {"lr": 0.1, "momentum": 0.9, "centered": True}, lambda p, g, s: rmsprop_step(
            p, g, s["square_avg"], s["momentum_buffer"], s["grad_avg"], lr=0.1, momentum=0.9)),
        (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, lambda p, g, s: sgd_step(
            p, g, s["momentum_buffer"], lr=0.1, momentum=0.9, nesterov=True)),
    ]  # fmt: skip
    for cls, kwargs, step in cases:
        for count in (1, 17, 1025, 40_000):
            p = torch.nn.Parameter(vector(1, count, dtype).detach())
            optimizer = cls([p], **kwargs)
            p.grad = vector(2, count, dtype).detach()
            optimizer.step()
            p.grad = vector(3, count, dtype).detach()
            state = {k: v.clone() for k, v in optimizer.state[p].items()}
            before = p.detach().clone().requires_grad_(grad_mode)
            new, *_ = step(before, p.grad, state)
            assert torch.equal(before.detach(), p.detach())
            optimizer.step()
            assert torch.equal(new, p) and new.requires_grad == grad_mode


@pytest.mark.parametrize("amsgrad", (False, True))
@pytest.mark.parametrize("count", (0, 1, 17, 600, 40_000))
@pytest.mark.parametrize(
    "switches", ({}, {"decoupled_weight_decay": True, "maximize": True}, {"eps_inside_sqrt": True})
)
def test_adams_fused_backward_is_the_references(count: int, amsgrad: bool, switches: dict[str, bool]) -> None:
    """At ties of amsgrad, where the average is zero, over several chunks, and with some upstream gradients only."""
    states = [vector(3, count), vector(4, count, least=0.0)]
    values = [vector(1, count), vector(2, count), *states]
    with torch.no_grad():
        for t in (values[1], states[0], states[1]):
            t[::3] = 0.0
    if amsgrad:
        values.append((states[1].detach() * 0.9 + 0.1 * values[1].detach() ** 2).requires_grad_())
        with torch.no_grad():
            values[-1][1::2] *= 1.5
            values[-1][::2] *= 0.5  # the ties are where both are 0
    numbers = [scalar(x) for x in (0.1, 0.8, 0.9, 0.01, 0.0 if switches else 0.2)]
    for upstream in ((True,) * (4 if amsgrad else 3), (True, False, False), (False, True, False), (False, False, True)):
        found = []
        for backend in ("native", "eager"):
            outputs = adam_step(
                *values, step=3, lr=numbers[0], betas=(numbers[1], numbers[2]), eps=numbers[3],
                weight_decay=numbers[4], backend=backend, **switches,
            )  # fmt: skip
            pairs = [(y, vector(7 + i, count).detach()) for i, (y, u) in enumerate(zip(outputs, upstream)) if u]  # noqa: B905
            found.append(
                torch.autograd.grad(
                    [y for y, _ in pairs], [*values, *numbers], [dy for _, dy in pairs], materialize_grads=True
                )
            )
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)


def test_the_first_step_of_sgd() -> None:
    p, g = vector(1), vector(2)
    for lerp in (False, True):
        optimizer_param = torch.nn.Parameter(p.detach().clone())
        optimizer_param.grad = g.detach()
        optimizer = optim.SGD([optimizer_param], lr=0.1, momentum=0.9, lerp=lerp)
        optimizer.step()
        new, buffer = sgd_step(p, g, lr=0.1, momentum=0.9, lerp=lerp)
        assert torch.equal(new, optimizer_param)
        assert torch.equal(buffer, optimizer.state[optimizer_param]["momentum_buffer"])


@pytest.mark.parametrize("second", (False, True))
def test_derivatives_are_finite_where_the_average_is_zero(second: bool) -> None:
    for eps in (1e-8, 0.0):
        p, g = torch.ones(4, requires_grad=True), torch.tensor([0.0, 0.0, 1.0, -2.0], requires_grad=True)
        m, v = (torch.zeros(4, requires_grad=True) for _ in range(2))
        for outputs in (adam_step(p, g, m, v, step=1, eps=eps + 1e-8), rmsprop_step(p, g, v, eps=eps + 1e-8)):
            grads = torch.autograd.grad(outputs[0].sum(), [p, g, v], create_graph=second)
            assert all(t.isfinite().all() for t in grads)
            if second:
                again = torch.autograd.grad(sum(t.square().sum() for t in grads), [g, v], allow_unused=True)
                assert all(t is None or t.isfinite().all() for t in again)


@pytest.mark.parametrize("create_graph", (False, True))
def test_one_tensor_as_parameter_and_gradient(create_graph: bool) -> None:
    results = []
    for backend in ("native", "eager"):
        p = vector(1)
        m, v = vector(2), vector(3, least=0.1)
        new, *_ = adam_step(p, p, m, v, step=2, lr=0.1, weight_decay=0.1, backend=backend)
        (dp,) = torch.autograd.grad(new.sum(), p, create_graph=create_graph)
        results.append((dp, *(torch.autograd.grad(dp.square().sum(), [p, m]) if create_graph else ())))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_strides_and_complex_numbers() -> None:
    base = vector(1, 48, torch.float32).detach().view(2, 4, 3, 2)
    grad = vector(2, 48, torch.float32).detach().view(2, 4, 3, 2)
    wanted = adam_step(base, grad, torch.zeros_like(base), torch.zeros_like(base), step=1)
    last = base.contiguous(memory_format=torch.channels_last)
    got = adam_step(last, grad, torch.zeros_like(grad), torch.zeros_like(last), step=1)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    z, dz = torch.randn(5, dtype=torch.complex128), torch.randn(5, dtype=torch.complex128)
    new, m, _ = adam_step(z, dz, torch.zeros_like(z), torch.zeros_like(z), step=1, lr=0.1)
    real = adam_step(
        *(torch.view_as_real(t) for t in (z, dz, torch.zeros_like(z), torch.zeros_like(z))), step=1, lr=0.1
    )
    assert torch.equal(torch.view_as_real(new), real[0]) and m.is_complex()


def test_learning_the_learning_rate() -> None:
    """Through five steps of Adam on a quadratic, the gradient with respect to lr is a finite difference's."""

    def after(lr: Tensor) -> Tensor:
        p = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
        m, v = torch.zeros_like(p), torch.zeros_like(p)
        q: Tensor = p
        for step in range(1, 6):
            (g,) = torch.autograd.grad((q**2).sum(), q, create_graph=True)
            q, m, v = adam_step(q, g, m, v, step=step, lr=lr)
        return (q**2).sum()

    lr = scalar(0.05)
    (got,) = torch.autograd.grad(after(lr), lr)
    h = 1e-6
    wanted = (after(lr.detach() + h) - after(lr.detach() - h)) / (2 * h)
    torch.testing.assert_close(got, wanted.detach(), rtol=1e-6, atol=0)


def test_what_is_refused() -> None:
    p, g = torch.zeros(3), torch.zeros(3)
    with pytest.raises(ValueError, match="step must be at least 1"):
        adam_step(p, g, p, p, step=0)
    with pytest.raises(ValueError, match=r"grad must have param's shape \(3,\), got \(4,\)"):
        adam_step(p, torch.zeros(4), p, p, step=1)
    with pytest.raises(ValueError, match=r"exp_avg_sq must have param's shape"):
        adam_step(p, g, p, torch.zeros(2), step=1)
    with pytest.raises(TypeError, match="exp_avg must be a Tensor, got NoneType"):
        adam_step(p, g, None, p, step=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"param must be dense, of fp64.*got torch\.int32"):
        adam_step(p.int(), g, p, p, step=1)  # it gave a step rounded to integers
    with pytest.raises(ValueError, match="param must be dense"):
        sgd_step(p.int(), g, momentum=0.9)
    with pytest.raises(ValueError, match=r"grad must be dense.*torch\.sparse_coo"):
        rmsprop_step(p, g.to_sparse(), p)
    with pytest.raises(ValueError, match="grad must be on param's device cpu, got meta"):
        sgd_step(p, g.to("meta"))
    with pytest.raises(ValueError, match=r"grad must be real or complex as param \(torch.float32\) is"):
        sgd_step(p, g.to(torch.complex64))
    with pytest.raises(ValueError, match="momentum and momentum_buffer"):
        rmsprop_step(p, g, p, momentum=0.9)
    with pytest.raises(ValueError, match="momentum is 0"):
        sgd_step(p, g, p)
    with pytest.raises(ValueError, match="lr given as a tensor must have one element"):
        sgd_step(p, g, lr=torch.zeros(2))
