"""RMSprop as PyTorch, TensorFlow or the lessons have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastnorm.eager.rmsprop import rmsprop_step
from fastnorm.ops.optim import RMSPROP
from fastnorm.optim.fused import FusedOptimizer, check_options
from fastnorm.optim.rule import Group, Rule

INITS = ("zeros", "first_grad", "ones")


class RmspropRule(Rule):
    kind = RMSPROP
    sparse_message = "RMSprop does not support sparse gradients"
    hyper_keys = (
        "lr", "alpha", "eps", "weight_decay", "momentum", "centered", "eps_inside_sqrt", "decoupled_weight_decay",
        "lr_in_momentum", "init", "maximize",
    )  # fmt: skip
    words: ClassVar[dict[str, float]] = {name: float(name == "first_grad") for name in INITS}
    form_keys = ("momentum", "centered")

    def states(self, group: Group) -> tuple[str, ...]:
        names = ["square_avg"]
        if group["momentum"] > 0:
            names.append("momentum_buffer")
        if group["centered"]:
            names.append("grad_avg")
        return tuple(names)

    def centered(self, group: Group) -> bool:
        return group["centered"]

    def form(self, group: Group) -> Any:
        return group["momentum"] > 0, group["centered"]

    def numbers(self, hyper: list[Any], step: Any, first: bool) -> list[Any]:
        lr, alpha, eps, decay, momentum, _, inside, decoupled, early_lr, first_grad, maximize = hyper
        return [
            -1 if maximize else 1, 1 - lr * decay if decoupled else 1, 0 if decoupled else decay, alpha, 1 - alpha,
            eps if inside else 0, 0 if inside else eps, momentum, lr if early_lr else 1,
            1 if early_lr and momentum > 0 else lr, step == 1 if first_grad else 0,
        ]  # fmt: skip

    def initial(self, group: Group, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        if name == "square_avg" and group["init"] == "ones":
            ones = torch.ones_like(like, dtype=dtype, memory_format=torch.preserve_format)
            return ones * (1 + 1j) if like.is_complex() else ones  # a complex number counts as two real ones
        return super().initial(group, name, like, dtype)

    def reference(
        self, group: Group, param: Tensor, grad: Tensor, states: list[Tensor], step: Any, first: bool
    ) -> tuple[Tensor, ...]:
        rest = iter(states[1:])
        return rmsprop_step(
            param, grad, states[0],
            next(rest) if group["momentum"] > 0 else None, next(rest) if group["centered"] else None,
            lr=group["lr"], alpha=group["alpha"], eps=group["eps"], weight_decay=group["weight_decay"],
            momentum=group["momentum"], eps_inside=group["eps_inside_sqrt"],
            decoupled=group["decoupled_weight_decay"], lr_in_momentum=group["lr_in_momentum"],
            first_grad=group["init"] == "first_grad" and bool(step == 1), maximize=group["maximize"],
        )  # fmt: skip


class RMSprop(FusedOptimizer, torch.optim.RMSprop):
    r"""RMSprop in one fused pass over all parameters: `torch.optim.RMSprop` and more.

    Formula, with g the gradient (negated with `maximize`):

        g = g + weight_decay * p                   or, decoupled:  p = p * (1 - lr * weight_decay)
        v = alpha * v + (1 - alpha) * g^2          v starts at `init`: 0, 1, or the first g^2
        u = v - avg^2                              centered, with avg = alpha * avg + (1 - alpha) * g; else u = v
        d = g / (sqrt(u) + eps)                    eps_inside_sqrt:  g / sqrt(u + eps)
        p = p - lr * d                             without momentum
        buf = momentum * buf + d;       p = p - lr * buf
        buf = momentum * buf + lr * d;  p = p - buf    with lr_in_momentum

    The other arguments are those of `torch.optim.RMSprop`.

    Args:
        foreach: accepted and without meaning; the step is always fused.
        fused: as foreach.
        init: "zeros" (PyTorch), "first_grad" (the lessons: the average starts at the first squared gradient and is
            lerped from that step on) or "ones" (TensorFlow).
        eps_inside_sqrt: see the formula.
        decoupled_weight_decay: see the formula.
        lr_in_momentum: see the formula.
        max_norm: clip all gradients together to this norm, inside the step; None for no clipping.
        master_weights: None or "fp32": keep an fp32 copy of each 16-bit parameter in the state ("master_param").
        stochastic_rounding: round 16-bit parameters at random, by `seed`, step, parameter and element alone.
        seed: of the stochastic rounding.

    Dtypes: fp64, fp32, bf16, fp16 and complex parameters; the state of a 16-bit parameter is fp32. Any strides.

    Raises:
        ValueError: for invalid numbers.
        RuntimeError: for sparse gradients.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.RMSprop.html; lesson: fast.ai course 2022,
    part 2.
    """

    rule = RmspropRule()

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        fused: bool | None = None,
        init: str = "zeros",
        eps_inside_sqrt: bool = False,
        decoupled_weight_decay: bool = False,
        lr_in_momentum: bool = False,
        max_norm: float | None = None,
        master_weights: str | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        if init not in INITS:
            raise ValueError(f"init must be one of {', '.join(map(repr, INITS))}; got {init!r}")
        self.extra_defaults = check_options(
            max_norm, master_weights, stochastic_rounding, seed,
            init=init, eps_inside_sqrt=eps_inside_sqrt, decoupled_weight_decay=decoupled_weight_decay,
            lr_in_momentum=lr_in_momentum,
        )  # fmt: skip
        torch.optim.RMSprop.__init__(
            self, params, lr, alpha, eps, weight_decay, momentum, centered, capturable, foreach, maximize,
            differentiable,
        )  # fmt: skip

    @classmethod
    def lesson(
        cls, params: Any, lr: float | Tensor, wd: float = 0.0, sqr_mom: float = 0.99, eps: float = 1e-5
    ) -> RMSprop:
        """The lessons' RMSprop: `p *= 1 - lr * wd`, the average starts at the first gradient squared and is lerped
        from that step on, `p -= lr * g / (sqrt(v) + eps)`.
        """
        return cls(params, lr, sqr_mom, eps, wd, init="first_grad", decoupled_weight_decay=True)

    @classmethod
    def tensorflow(
        cls,
        params: Any,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.9,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> RMSprop:
        """TensorFlow's RMSprop: the average starts at one, eps lies inside the root, lr goes into the momentum."""
        return cls(
            params, lr, alpha, eps, weight_decay, momentum, centered,
            init="ones", eps_inside_sqrt=True, lr_in_momentum=True,
        )  # fmt: skip

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient. closure: evaluates the model again, returns the loss."""
        return self.fused_step(closure)
