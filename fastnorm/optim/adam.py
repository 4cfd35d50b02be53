"""Adam and AdamW as PyTorch or the lessons have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnorm.eager.adam import adam_step
from fastnorm.ops.optim import ADAM
from fastnorm.optim.fused import FusedOptimizer, check_options
from fastnorm.optim.rule import Group, Rule


class AdamRule(Rule):
    kind = ADAM
    sparse_message = "Adam does not support sparse gradients, please consider SparseAdam instead"
    hyper_keys = ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", "eps_inside_sqrt", "maximize")
    form_keys = ("amsgrad",)

    def states(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    def form(self, group: Group) -> Any:
        return group["amsgrad"]

    def numbers(self, hyper: list[Any], step: Any, first: bool) -> list[Any]:
        lr, beta1, beta2, eps, decay, decoupled, inside, maximize = hyper
        return [
            -1 if maximize else 1, 1 - lr * decay if decoupled else 1, 0 if decoupled else decay, 1 - beta1, beta2,
            1 - beta2, lr / (1 - beta1**step), 1 / (1 - beta2**step), eps if inside else 0, 0 if inside else eps,
        ]  # fmt: skip

    def reference(
        self, group: Group, param: Tensor, grad: Tensor, states: list[Tensor], step: Any, first: bool
    ) -> tuple[Tensor, ...]:
        beta1, beta2 = group["betas"]
        return adam_step(
            param, grad, states[0], states[1], states[2] if group["amsgrad"] else None,
            step=step, lr=group["lr"], beta1=beta1, beta2=beta2, eps=group["eps"],
            weight_decay=group["weight_decay"], decoupled=group["decoupled_weight_decay"],
            eps_inside=group["eps_inside_sqrt"], maximize=group["maximize"],
        )  # fmt: skip


class Adam(FusedOptimizer, torch.optim.Adam):
    r"""Adam in one fused pass over all parameters: `torch.optim.Adam` and more.

    Formula, with g the gradient (negated with `maximize`) and t the parameter's own count of steps:

        g = g + weight_decay * p                   or, decoupled:  p = p * (1 - lr * weight_decay)
        m = m + (1 - beta1) * (g - m)              m_hat = m / (1 - beta1^t)
        v = beta2 * v + (1 - beta2) * g^2          v_hat = v / (1 - beta2^t)
        p = p - lr * m_hat / (sqrt(v_hat) + eps)   eps_inside_sqrt:  lr * m_hat / sqrt(v_hat + eps)

    With `amsgrad` the largest v so far takes the place of v in v_hat. The other arguments are those of
    `torch.optim.Adam`.

    Args:
        foreach: accepted and without meaning; the step is always fused.
        fused: as foreach.
        eps_inside_sqrt: see the formula.
        max_norm: clip all gradients together to this norm, inside the step; None for no clipping.
        master_weights: None or "fp32": keep an fp32 copy of each 16-bit parameter in the state ("master_param").
        stochastic_rounding: round 16-bit parameters at random, by `seed`, step, parameter and element alone.
        seed: of the stochastic rounding.

    Dtypes: fp64, fp32, bf16, fp16 and complex parameters; the state of a 16-bit parameter is fp32. Any strides.

    Raises:
        ValueError: for invalid numbers.
        RuntimeError: for sparse gradients.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html; lesson: fast.ai course 2022, part 2.
    """

    rule = AdamRule()

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        eps_inside_sqrt: bool = False,
        max_norm: float | None = None,
        master_weights: str | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        self.extra_defaults = check_options(
            max_norm, master_weights, stochastic_rounding, seed, eps_inside_sqrt=eps_inside_sqrt
        )
        torch.optim.Adam.__init__(
            self, params, lr, betas, eps, weight_decay, amsgrad,
            foreach=foreach, maximize=maximize, capturable=capturable, differentiable=differentiable, fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )  # fmt: skip

    @classmethod
    def lesson(
        cls,
        params: Any,
        lr: float | Tensor,
        wd: float = 0.0,
        beta1: float = 0.9,
        beta2: float = 0.99,
        eps: float = 1e-5,
    ) -> Adam:
        """The lessons' Adam: `p *= 1 - lr * wd` before the step, both averages de-biased,
        `p -= lr * m_hat / sqrt(v_hat + eps)`.
        """
        made = cls(params, lr, (beta1, beta2), eps, wd, eps_inside_sqrt=True)
        for group in (made.defaults, *made.param_groups):
            group["decoupled_weight_decay"] = True
        return made

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient. closure: evaluates the model again, returns the loss."""
        return self.fused_step(closure)


class AdamW(Adam, torch.optim.AdamW):
    r"""`Adam` with decoupled weight decay, `p = p * (1 - lr * weight_decay)` before the step: `torch.optim.AdamW`.

    Arguments, options, dtypes and errors are those of `Adam`.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        eps_inside_sqrt: bool = False,
        max_norm: float | None = None,
        master_weights: str | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        Adam.__init__(
            self, params, lr, betas, eps, weight_decay, amsgrad,
            foreach=foreach, maximize=maximize, capturable=capturable, differentiable=differentiable, fused=fused,
            decoupled_weight_decay=True, eps_inside_sqrt=eps_inside_sqrt, max_norm=max_norm,
            master_weights=master_weights, stochastic_rounding=stochastic_rounding, seed=seed,
        )  # fmt: skip
