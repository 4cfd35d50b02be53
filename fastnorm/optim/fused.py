"""The step that all optimizers share: one compiled call for all parameters, plain PyTorch for what it cannot serve."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fastnorm.eager.optim import random_key, rounded_at_random
from fastnorm.ops.backend import chosen
from fastnorm.ops.optim import Plan, TensorMoved, grads_of
from fastnorm.ops.optim_watch import Watch
from fastnorm.optim.device import DeviceStep
from fastnorm.optim.entry import Entry
from fastnorm.optim.hooks import P, R, hooked
from fastnorm.optim.plan import StepPlan, read_real, real
from fastnorm.optim.rule import HALF, Rule, number


def check_options(
    max_norm: float | None, master_weights: str | None, stochastic_rounding: bool, seed: int, **own: Any
) -> dict[str, Any]:
    """The defaults that torch.optim's classes do not know. ValueError where they make no sense."""
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"max_norm must be None or greater than 0, got {max_norm}")
    if master_weights not in (None, "fp32"):
        raise ValueError(f"master_weights must be None or 'fp32', got {master_weights!r}")
    if master_weights and stochastic_rounding:
        raise ValueError("stochastic_rounding makes no sense with master_weights: choose one of them")
    if not -(1 << 63) <= seed < 1 << 63:
        raise ValueError(f"seed must fit into 64 bits, got {seed}")
    return {
        "max_norm": max_norm, "master_weights": master_weights, "stochastic_rounding": stochastic_rounding,
        "seed": seed, **own,
    }  # fmt: skip


class FusedOptimizer(torch.optim.Optimizer):
    """Base of the fused optimizers: a class of torch.optim, its arguments and its state, with another step."""

    rule: Rule
    extra_defaults: dict[str, Any]
    _plan: StepPlan | None = None
    _loading: dict[str, Any] | None = None
    _step_supports_amp_scaling = True

    @staticmethod
    def profile_hook_step(func: Callable[P, R]) -> Callable[P, R]:
        return hooked(func)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.defaults.update(self.extra_defaults)
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "extra_defaults": self.extra_defaults}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if self._loading is not None:
            self._keep_dtypes(state, self._loading)
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.extra_defaults.items():
                group.setdefault(name, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch.optim's, but the state keeps the dtypes that it was saved with (fp32 of a bf16 parameter, say)."""

        def remember(_: Any, loaded: dict[str, Any]) -> None:
            self._loading = loaded

        handle = self.register_load_state_dict_pre_hook(remember)  # the last one: it sees what the others made
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = None

    def _keep_dtypes(self, state: dict[str, Any], saved: dict[str, Any]) -> None:
        keys = chain.from_iterable(group["params"] for group in saved["param_groups"])
        params = chain.from_iterable(group["params"] for group in state["param_groups"])
        for key, param in zip(keys, params, strict=True):
            for name, value in saved["state"].get(key, {}).items():
                if name != "step" and isinstance(value, Tensor) and value.dtype != state["state"][param][name].dtype:
                    state["state"][param][name] = value.to(device=param.device)

    def fused_step(self, closure: Callable[[], Any] | None) -> Any:
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(self.defaults["differentiable"])
        try:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            self._update()
        finally:
            torch.set_grad_enabled(before)
        return loss

    @torch._disable_dynamo
    def _update(self) -> None:
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        groups, plan, choice = self.param_groups, self._plan, chosen()
        if plan is not None and plan.takes_all(groups, self.state, choice):
            self._apply(plan, plan.watch, [], grad_scale, found_inf)
            return
        lists = [group["params"] for group in groups]
        params = lists[0] if len(lists) == 1 else list(chain.from_iterable(lists))
        grads = grads_of(params)
        if not grads:
            return
        active = params if len(grads) == len(params) else [p for p in params if p.grad is not None]
        if plan is None or not plan.fits(groups, lists, self.state, active, choice):
            if found_inf is not None and number(found_inf) != 0:  # before a state is made
                return
            plan = self._new_plan()
        try:
            watched = plan.watch_over(groups, params) and plan.takes_all(groups, self.state, choice)
            self._apply(plan, plan.watch if watched else plan.native, grads, grad_scale, found_inf)
        except TensorMoved:
            plan = self._new_plan()
            self._apply(plan, plan.native, grads, grad_scale, found_inf)

    def _new_plan(self) -> StepPlan:
        plan = StepPlan(self.rule, self.param_groups, self.state, chosen(), self.defaults["differentiable"])
        self._plan = plan if plan.lasting else None
        return plan

    def _apply(
        self, plan: StepPlan, native: Plan | Watch | None, grads: list[Tensor], grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:  # fmt: skip
        """native: what calls the compiled step; a watch has taken the gradients already."""
        if plan.devices and "capturable" in self.defaults:
            self._accelerator_graph_capture_health_check()
        scaled = found_inf is not None or grad_scale is not None
        if plan.sole is not None and not (plan.sole.waits and scaled):
            self._apply_without_waiting(plan, plan.sole, grad_scale, found_inf)
            return
        if found_inf is not None and number(found_inf) != 0:
            self._undo(plan)
            return
        unscale = 1.0 if grad_scale is None else 1 / number(grad_scale)
        check = found_inf is None and grad_scale is not None
        try:
            own, on_devices = plan.divided(grads)  # before anything is written: it may find that a tensor has moved
            multiplier = self._multiplier(plan, native, own, on_devices, unscale, check)
            if multiplier is None:
                self._undo(plan)
                return
            if native is not None:
                hyper: list[float] = []
                if not native.take_hyper(self.param_groups, self.rule.hyper_keys, self.rule.words):
                    hyper = [number(value) for group in self.param_groups for value in self.rule.hyper(group)]
                native.step(own, hyper, multiplier, self.param_groups[0]["seed"])
            for device, found in zip(plan.devices, on_devices, strict=True):
                factor = None
                if multiplier != 1:
                    factor = torch.full((), multiplier, dtype=torch.float64, device=device.device)
                device.step(found, factor, None)
            if plan.written and not isinstance(native, Watch):  # which has done so itself
                torch.autograd.graph.increment_version(plan.written)
            for entry in plan.others:
                self._reference_step(entry, multiplier)
                entry.first = False
        except Exception:
            self._undo(plan)
            raise
        plan.new.clear()

    def _apply_without_waiting(
        self, plan: StepPlan, device: DeviceStep, grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        """Where everything lies on one device, the clipping, the loss scale and found_inf stay there too."""
        own = device.grads()
        factor = None if grad_scale is None else 1 / grad_scale.to(device.device).double()
        max_norm = self.param_groups[0]["max_norm"]
        check = grad_scale is not None and found_inf is None
        if device.clips and not check:
            device.step(own, factor, found_inf, max_norm)
        else:
            device.step(own, *self._scaled(device, own, max_norm, factor, found_inf, check))
        torch.autograd.graph.increment_version(plan.written)
        plan.new.clear()

    @staticmethod
    def _scaled(
        device: DeviceStep, own: list[Tensor], max_norm: float | None, factor: Tensor | None, found_inf: Tensor | None,
        check: bool,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        """(factor, found_inf) of all gradients, clipped; check: whether they are finite has to be seen here."""
        if max_norm is not None or check:
            norm = device.squares(own).sqrt() * (1 if factor is None else factor.abs())
            if check:
                found_inf = (~norm.isfinite()).float()
            if max_norm is not None:
                clip = (max_norm / (norm + 1e-6)).clamp(max=1.0)
                factor = clip if factor is None else factor * clip
        return factor, found_inf

    def _undo(self, plan: StepPlan) -> None:
        """A buffer that was made for this step holds nothing: it must not be found by the next one."""
        for entry in plan.new:
            for name in entry.names:
                entry.state.pop(name, None)
        if plan.new:
            self._plan = None

    def _multiplier(
        self, plan: StepPlan, native: Plan | Watch | None, own: list[Tensor], on_devices: list[list[Tensor]],
        unscale: float, check: bool,
    ) -> float | None:  # fmt: skip
        """What gradients are multiplied with: unscaled, and clipped to max_norm. None: not finite, skip the step."""
        max_norm = self.param_groups[0]["max_norm"]
        if max_norm is None and not check:
            return unscale
        squares = native.grad_norm(own) ** 2 if native is not None else 0.0
        for device, found in zip(plan.devices, on_devices, strict=True):
            squares += device.squares(found).item()
        for entry in plan.others:
            assert entry.param.grad is not None
            squares += float(torch.linalg.vector_norm(read_real(entry.param.grad.detach()).double())) ** 2
        norm = math.sqrt(squares) * abs(unscale)
        if check and not math.isfinite(norm):
            return None
        if max_norm is None:
            return unscale
        clip = max_norm / (norm + 1e-6)  # as torch.nn.utils.clip_grad_norm_
        return unscale * (1.0 if clip > 1 else clip)

    def _reference_step(self, entry: Entry, multiplier: float) -> None:
        """One parameter through the plain PyTorch reference."""
        param, group = entry.param, entry.group
        target = param if entry.master is None else entry.master
        own_graph = self.defaults["differentiable"]
        inputs = [real(t.clone() if own_graph else t) for t in (target, *entry.states)]
        grad = param.grad
        assert grad is not None
        step: Any = 0
        if entry.step is not None:
            entry.step.add_(1)
            step = entry.step if group.get("capturable") else entry.step.item()
        if param.dtype in HALF and (multiplier != 1 or entry.stochastic):
            grad = grad.float()
        if entry.stochastic:
            inputs[0] = inputs[0].float()
        if multiplier != 1:
            grad = grad * multiplier
        new = self.rule.reference(group, inputs[0], read_real(grad), inputs[1:], step, entry.first)
        if entry.stochastic:
            key = random_key(group["seed"], int(step), entry.parameter)
            new = (rounded_at_random(new[0], param, key), *new[1:])
        for old, value in zip((target, *entry.states), new, strict=True):
            old.copy_(torch.view_as_complex(value) if old.is_complex() else value)
        if entry.master is not None:
            param.copy_(entry.master)
