"""SGD, with momentum as PyTorch or as the lessons have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnorm.eager.sgd import sgd_step
from fastnorm.ops.optim import SGD as KIND
from fastnorm.optim.fused import FusedOptimizer, check_options
from fastnorm.optim.rule import Group, Rule


class SgdRule(Rule):
    kind = KIND
    sparse_message = "SGD does not support sparse gradients here, please consider torch.optim.SGD instead"
    hyper_keys = (
        "lr", "momentum", "dampening", "weight_decay", "decoupled_weight_decay", "nesterov", "lerp", "maximize",
    )  # fmt: skip
    form_keys = ("momentum",)

    def states(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def counts_steps(self, group: Group) -> bool:
        return group["stochastic_rounding"]

    def form(self, group: Group) -> Any:
        return group["momentum"] != 0

    def numbers(self, hyper: list[Any], step: Any, first: bool) -> list[Any]:
        lr, momentum, dampening, decay, decoupled, nesterov, lerp, maximize = hyper
        return [
            -1 if maximize else 1, 1 - lr * decay if decoupled else 1, 0 if decoupled else decay, momentum,
            1 - (momentum if lerp else dampening), momentum if nesterov else 0, lr, first and not lerp,
        ]  # fmt: skip

    def reference(
        self, group: Group, param: Tensor, grad: Tensor, states: list[Tensor], step: Any, first: bool
    ) -> tuple[Tensor, ...]:
        return sgd_step(
            param, grad, states[0] if states else None,
            lr=group["lr"], momentum=group["momentum"], dampening=group["dampening"],
            weight_decay=group["weight_decay"], decoupled=group["decoupled_weight_decay"],
            nesterov=group["nesterov"], lerp=group["lerp"], maximize=group["maximize"], first=first,
        )  # fmt: skip


class SGD(FusedOptimizer, torch.optim.SGD):
    r"""Stochastic gradient descent in one fused pass over all parameters: `torch.optim.SGD` and more.

    Formula, with g the gradient (negated with `maximize`):

        g   = g + weight_decay * p                 or, decoupled:  p = p * (1 - lr * weight_decay)
        buf = momentum * buf + (1 - dampening) * g     the first time  buf = g
        buf = momentum * buf + (1 - momentum) * g      with lerp; buf starts at zero
        p   = p - lr * buf                             nesterov:  p - lr * (g + momentum * buf)

    The other arguments are those of `torch.optim.SGD`.

    Args:
        foreach: accepted and without meaning; the step is always fused.
        fused: as foreach.
        lerp: the lessons' momentum, an average that starts at zero.
        decoupled_weight_decay: decay the parameter before the step instead of adding to the gradient.
        max_norm: clip all gradients together to this norm, inside the step; None for no clipping.
        master_weights: None or "fp32": keep an fp32 copy of each 16-bit parameter in the state ("master_param").
        stochastic_rounding: round 16-bit parameters at random, by `seed`, step, parameter and element alone.
        seed: of the stochastic rounding.

    Dtypes: fp64, fp32, bf16, fp16 and complex parameters; the buffer of a 16-bit parameter is fp32. Any strides.

    Raises:
        ValueError: for invalid numbers.
        RuntimeError: for sparse gradients.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html; lesson: fast.ai course 2022, part 2.
    """

    rule = SgdRule()

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        lerp: bool = False,
        decoupled_weight_decay: bool = False,
        max_norm: float | None = None,
        master_weights: str | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        if lerp and dampening != 0:
            raise ValueError(f"lerp has its own dampening, 1 - momentum; dampening must be 0, got {dampening}")
        self.extra_defaults = check_options(
            max_norm, master_weights, stochastic_rounding, seed,
            lerp=lerp, decoupled_weight_decay=decoupled_weight_decay,
        )  # fmt: skip
        torch.optim.SGD.__init__(
            self, params, lr, momentum, dampening, weight_decay, nesterov,
            maximize=maximize, foreach=foreach, differentiable=differentiable, fused=fused,
        )  # fmt: skip

    @classmethod
    def lesson(cls, params: Any, lr: float | Tensor, wd: float = 0.0, mom: float = 0.9) -> SGD:
        """The lessons' Momentum: `p *= 1 - lr * wd; buf = mom * buf + (1 - mom) * g; p -= lr * buf`, buf from zero."""
        return cls(params, lr, mom, weight_decay=wd, lerp=True, decoupled_weight_decay=True)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient. closure: evaluates the model again, returns the loss."""
        return self.fused_step(closure)
