"""Optimizer steps under autograd: a fused step out of place, differentiated through the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastnorm.autograd.route import below_autograd, transforms_active, wants_grad
from fastnorm.ops import native
from fastnorm.ops.optim import step_out

Value: TypeAlias = Tensor | float
_libraries: list[torch.library.Library] = []  # a Library unregisters its kernels when it is collected


@dataclass(frozen=True)
class StepSpec:
    """One kind of step. Inputs are its tensors (parameter, gradient, states), then its hyper-parameters.

    reference(tensors, values): the new parameter and states in differentiable PyTorch.
    hyper(numbers): the kernel's numbers from the hyper-parameters'.
    step: counted from 1; a tensor where a compiler traces the call, which takes the reference then.
    fused_backward(tensors, upstream, hyper, step): the gradients of all inputs in one pass, for fp32 and fp64.
    """

    kind: int
    tensors: int
    reference: Callable[[Sequence[Tensor], Sequence[Value]], tuple[Tensor, ...]]
    hyper: Callable[[Sequence[float]], list[float]]
    step: float | Tensor = 0.0
    first: bool = False
    fused_backward: Callable[[Sequence[Tensor], list[Tensor], list[float], float], Sequence[Tensor]] | None = None


def _number(value: Value) -> float:
    return value.item() if isinstance(value, Tensor) else float(value)


def _numbers(spec: StepSpec, inputs: Sequence[Value]) -> list[float]:
    return spec.hyper([_number(value) for value in inputs[spec.tensors :]])


class OptimStepFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spec: StepSpec, *inputs: Value) -> tuple[Tensor, ...]:
        ctx.spec = spec
        ctx.numbers = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
        ctx.set_materialize_grads(False)
        return _fused(spec, inputs)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, create_graph = iter(ctx.saved_tensors), torch.is_grad_enabled()
        inputs = [next(saved) if number is None else number for number in ctx.numbers]
        if not create_graph and ctx.spec.fused_backward is not None:
            fused = _fused_backward(ctx.spec, inputs, dys)
            if fused is not None:
                return None, *(
                    grad.to(value.dtype).reshape(value.shape) if need else None
                    for grad, value, need in zip(fused, inputs, ctx.needs_input_grad[1:], strict=True)
                )
        with torch.enable_grad():
            # Through a view of its own each, so that one tensor passed twice gets its two gradients apart.
            own = [
                (value.view_as(value) if create_graph else value.detach().requires_grad_()) if need else value
                for value, need in zip(inputs, ctx.needs_input_grad[1:], strict=True)
            ]
            wanted = [value for value, need in zip(own, ctx.needs_input_grad[1:], strict=True) if need]
            outputs = ctx.spec.reference(own[: ctx.spec.tensors], own[ctx.spec.tensors :])
            pairs = [
                (y, dy) for y, dy in zip(outputs, dys, strict=True) if dy is not None and y.requires_grad
            ]  # fmt: skip
            found = iter(
                torch.autograd.grad(
                    [y for y, _ in pairs], wanted, [dy for _, dy in pairs],
                    create_graph=create_graph, allow_unused=True,
                )
            )  # fmt: skip
        return None, *(next(found) if need else None for need in ctx.needs_input_grad[1:])


def _fused(spec: StepSpec, inputs: Sequence[Value]) -> tuple[Tensor, ...]:
    tensors = [t for t in inputs[: spec.tensors] if isinstance(t, Tensor)]
    numbers, step = _numbers(spec, inputs), _number(spec.step)
    return tuple(below_autograd(step_out, spec.kind, tensors, numbers, step, spec.first))


def _fused_backward(spec: StepSpec, inputs: Sequence[Any], dys: Sequence[Tensor | None]) -> Sequence[Tensor] | None:
    """None where the tensors are not all of one dtype that there is a kernel for."""
    tensors = inputs[: spec.tensors]
    if tensors[0].dtype not in (torch.float32, torch.float64) or any(t.dtype != tensors[0].dtype for t in tensors):
        return None
    assert spec.fused_backward is not None
    upstream = [tensors[0].new_empty(0) if dy is None else dy for dy in dys]  # nothing stands for zeros
    return spec.fused_backward(tensors, upstream, _numbers(spec, inputs), _number(spec.step))


def _left_to_the_compiler(spec: StepSpec, inputs: Sequence[Value]) -> bool:
    """Whether a compiler is at work, and the call has derivatives, which it takes itself, or numbers in tensors, for
    which it could not wait.
    """
    if not torch.compiler.is_compiling():
        return False
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    return isinstance(spec.step, Tensor) or len(tensors) > spec.tensors or wants_grad(*tensors)


def optim_step(spec: StepSpec, inputs: Sequence[Value], backend: str) -> tuple[Tensor, ...]:
    """The new parameter and states; differentiable in every tensor among the inputs."""
    if transforms_active() or backend != "native" or _left_to_the_compiler(spec, inputs):
        return spec.reference([t for t in inputs[: spec.tensors] if isinstance(t, Tensor)], inputs[spec.tensors :])
    if wants_grad(*(value for value in inputs if isinstance(value, Tensor))):
        return OptimStepFunction.apply(spec, *inputs)
    return _fused(spec, inputs)


def _without_derivative(kind: int, tensors: list[Tensor], *rest: Any) -> list[Tensor]:
    """The op itself, as an exported graph holds it: there it was traced for tensors that wanted no gradient."""
    if wants_grad(*tensors):
        raise RuntimeError(
            "fastnorm_optim::step_out has no derivative, and a tensor requires one: export or compile the step with "
            "tensors that require gradients, or call it under torch.no_grad()"
        )
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.fastnorm_optim.step_out.default(kind, tensors, *rest)


if native.available() is not None:
    _libraries.append(torch.library.Library("fastnorm_optim", "IMPL"))
    _libraries[-1].impl("step_out", _without_derivative, "Autograd")
