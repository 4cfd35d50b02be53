"""Optimizer steps out of place, with exact derivatives of any order: for learned optimizers and learned rates.

Each takes a parameter, its gradient and its states and returns the new parameter and states; nothing is changed. One
fused kernel does it on the CPU, with the bits of the optimizer classes' own step. Derivatives exist with respect to
every tensor argument, hyper-parameters given as tensors included, and are finite where a squared average is 0 (there
the root counts as having the derivative 0). vmap, jvp and the other transforms work, through the plain PyTorch
reference.

Tensors: any one shape, fp64, fp32, bf16, fp16 or complex; the states of a 16-bit parameter may be fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnorm.autograd.optim import StepSpec, Value, optim_step
from fastnorm.eager.adam import adam_step as reference_adam
from fastnorm.eager.rmsprop import rmsprop_step as reference_rmsprop
from fastnorm.eager.sgd import sgd_step as reference_sgd
from fastnorm.ops import optim as ops
from fastnorm.ops.backend import resolve
from fastnorm.optim.arguments import check_number, check_tensor


def _run(spec: StepSpec, named: dict[str, Tensor], hyper: dict[str, Value], backend: str | None) -> tuple[Tensor, ...]:
    param, tensors, values = named["param"], named.values(), hyper.values()
    for name, t in named.items():
        check_tensor(name, t, param)
    for name, value in hyper.items():
        check_number(name, value)
    if not param.is_complex():
        return optim_step(spec, [*tensors, *values], resolve(param, backend, "optim_out"))
    pairs = [torch.view_as_real(t.resolve_conj()) for t in tensors]
    new = optim_step(spec, [*pairs, *values], resolve(pairs[0], backend, "optim_out"))
    return tuple(torch.view_as_complex(t) for t in new)


def sgd_step(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None = None,
    *,
    lr: Value = 1e-3,
    momentum: Value = 0.0,
    dampening: Value = 0.0,
    weight_decay: Value = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    lerp: bool = False,
    decoupled_weight_decay: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """One step of `fastnorm.optim.SGD`, out of place, with derivatives in every tensor.

    Formula, numbers and switches are those of `SGD`.

    Args:
        param: any shape, fp64, fp32, bf16, fp16 or complex.
        grad: its gradient, of the same shape.
        momentum_buffer: None at the first step, where the buffer becomes the gradient (with lerp it starts at zero).
        backend: "eager", "native", "triton", "auto"; None leaves the choice to `use_backend`.

    Returns:
        `(param,)`, or `(param, momentum_buffer)` with momentum: new tensors.

    Raises:
        TypeError: for what is no tensor.
        ValueError: for shapes, devices or kinds of dtype that differ, for integers and sparse tensors, and for a buffer
            without momentum.

    Source: docs/math.md, O1 and O2.
    """
    moving = isinstance(momentum, Tensor) or momentum != 0
    if not moving and momentum_buffer is not None:
        raise ValueError("momentum_buffer was given, but momentum is 0")
    first = moving and momentum_buffer is None
    named = {"param": param, "grad": grad}
    if first:
        check_tensor("param", param, param)
        half = param.dtype in (torch.bfloat16, torch.float16)
        momentum_buffer = torch.zeros_like(param, dtype=torch.float32 if half else None, requires_grad=False)
    if momentum_buffer is not None:
        named["momentum_buffer"] = momentum_buffer

    def reference(tensors: Sequence[Tensor], values: Sequence[Value]) -> tuple[Tensor, ...]:
        lr, momentum, dampening, weight_decay = values
        return reference_sgd(
            tensors[0], tensors[1], tensors[2] if moving else None, lr=lr, momentum=momentum, dampening=dampening,
            weight_decay=weight_decay, decoupled=decoupled_weight_decay, nesterov=nesterov, lerp=lerp,
            maximize=maximize, first=first,
        )  # fmt: skip

    def hyper(numbers: Sequence[float]) -> list[float]:
        return [*numbers, float(decoupled_weight_decay), float(nesterov), float(lerp), float(maximize)]

    spec = StepSpec(ops.SGD, len(named), reference, hyper, first=first)
    values = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
    return _run(spec, named, values, backend)


def rmsprop_step(
    param: Tensor,
    grad: Tensor,
    square_avg: Tensor,
    momentum_buffer: Tensor | None = None,
    grad_avg: Tensor | None = None,
    *,
    lr: Value = 1e-2,
    alpha: Value = 0.99,
    eps: Value = 1e-8,
    weight_decay: Value = 0.0,
    momentum: Value = 0.0,
    maximize: bool = False,
    first_grad: bool = False,
    eps_inside_sqrt: bool = False,
    decoupled_weight_decay: bool = False,
    lr_in_momentum: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """One step of `fastnorm.optim.RMSprop`, out of place, with derivatives in every tensor.

    Formula, numbers and switches are those of `RMSprop`.

    Args:
        param: any shape, fp64, fp32, bf16, fp16 or complex.
        grad: its gradient, of the same shape.
        square_avg: the average of the squared gradients.
        momentum_buffer: given with momentum.
        grad_avg: given for the centered form.
        first_grad: the squared average starts at this gradient's square instead of at `square_avg`.
        backend: "eager", "native", "triton", "auto"; None leaves the choice to `use_backend`.

    Returns:
        `(param, square_avg)`, then what was given of `momentum_buffer` and `grad_avg`: new tensors.

    Raises:
        TypeError: for what is no tensor.
        ValueError: for shapes, devices or kinds of dtype that differ, for integers and sparse tensors, and for momentum
            without a buffer or the reverse.

    Source: docs/math.md, O1 and O3.
    """
    moving = isinstance(momentum, Tensor) or momentum != 0
    if moving != (momentum_buffer is not None):
        raise ValueError("momentum and momentum_buffer must be given together")
    named = {"param": param, "grad": grad, "square_avg": square_avg}
    if momentum_buffer is not None:
        named["momentum_buffer"] = momentum_buffer
    if grad_avg is not None:
        named["grad_avg"] = grad_avg

    def reference(tensors: Sequence[Tensor], values: Sequence[Value]) -> tuple[Tensor, ...]:
        lr, alpha, eps, weight_decay, momentum = values
        rest = iter(tensors[3:])
        return reference_rmsprop(
            tensors[0], tensors[1], tensors[2], next(rest) if moving else None,
            next(rest) if grad_avg is not None else None, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay,
            momentum=momentum, eps_inside=eps_inside_sqrt, decoupled=decoupled_weight_decay,
            lr_in_momentum=lr_in_momentum, first_grad=first_grad, maximize=maximize,
        )  # fmt: skip

    def hyper(numbers: Sequence[float]) -> list[float]:
        switches = (grad_avg is not None, eps_inside_sqrt, decoupled_weight_decay, lr_in_momentum, first_grad, maximize)
        return [*numbers, *map(float, switches)]

    spec = StepSpec(ops.RMSPROP, len(named), reference, hyper, step=1.0 if first_grad else 2.0)
    values = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
    return _run(spec, named, values, backend)


def _count(step: int | float | Tensor) -> float | Tensor:
    """step as a number, for which a compiler could not wait: it keeps the tensor, and is not told of one below 1."""
    if isinstance(step, Tensor) and torch.compiler.is_compiling():
        return step.double()  # as exact as the number
    count = step.item() if isinstance(step, Tensor) else float(step)
    if not count >= 1:
        raise ValueError(f"step must be at least 1 (it is counted from 1), got {count:g}")
    return count


def _adam_backward(
    tensors: Sequence[Tensor], upstream: list[Tensor], hyper: list[float], step: float
) -> Sequence[Tensor]:
    """O6: of the tensors, then of lr, the betas, eps and weight_decay."""
    grads, sums = ops.adam_bwd(list(tensors), upstream, hyper, step)
    lr, beta1, beta2, _, weight_decay, decoupled, *_ = hyper
    move, param, avg, square, unbias, eps, decay = sums.tolist()
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    values = (
        -move / correction1 - (weight_decay * param if decoupled else 0),
        avg - move * lr * step * beta1 ** (step - 1) / correction1**2,
        square + unbias * step * beta2 ** (step - 1) / correction2**2,
        eps,
        -lr * param if decoupled else decay,
    )
    return [*grads, *(torch.tensor(value, dtype=torch.float64) for value in values)]


def adam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None = None,
    *,
    step: int | float | Tensor,
    lr: Value = 1e-3,
    betas: tuple[Value, Value] = (0.9, 0.999),
    eps: Value = 1e-8,
    weight_decay: Value = 0.0,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    eps_inside_sqrt: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """One step of `fastnorm.optim.Adam`, out of place, with derivatives in every tensor.

    Formula, numbers and switches are those of `Adam`; AdamW is `decoupled_weight_decay=True`. On the CPU in fp32 and
    fp64 the first derivative is a fused kernel too.

    Args:
        param: any shape, fp64, fp32, bf16, fp16 or complex.
        grad: its gradient, of the same shape.
        exp_avg: the average of the gradients.
        exp_avg_sq: the average of their squares.
        max_exp_avg_sq: given for amsgrad.
        step: which step of this parameter it is, counted from 1; it has no derivative.
        backend: "eager", "native", "triton", "auto"; None leaves the choice to `use_backend`.

    Returns:
        `(param, exp_avg, exp_avg_sq)` and, if given, `max_exp_avg_sq`: new tensors.

    Raises:
        TypeError: for what is no tensor.
        ValueError: for shapes, devices or kinds of dtype that differ, for integers and sparse tensors, and for a step
            below 1.

    Source: docs/math.md, O1, O4 and O6.
    """
    count = _count(step)
    named = {"param": param, "grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if max_exp_avg_sq is not None:
        named["max_exp_avg_sq"] = max_exp_avg_sq

    def reference(tensors: Sequence[Tensor], values: Sequence[Value]) -> tuple[Tensor, ...]:
        lr, beta1, beta2, eps, weight_decay = values
        return reference_adam(
            tensors[0], tensors[1], tensors[2], tensors[3], tensors[4] if max_exp_avg_sq is not None else None,
            step=count, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
            decoupled=decoupled_weight_decay, eps_inside=eps_inside_sqrt, maximize=maximize,
        )  # fmt: skip

    def hyper(numbers: Sequence[float]) -> list[float]:
        return [*numbers, float(decoupled_weight_decay), float(eps_inside_sqrt), float(maximize)]

    spec = StepSpec(ops.ADAM, len(named), reference, hyper, step=count, fused_backward=_adam_backward)
    values = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps, "weight_decay": weight_decay}
    return _run(spec, named, values, backend)
