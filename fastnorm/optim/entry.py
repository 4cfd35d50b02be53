"""One parameter that has a gradient, with its state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastnorm.optim.rule import HALF, Group, Rule, State


@dataclass
class Entry:
    """One parameter that has a gradient, with its state complete."""

    parameter: int  # its place among the parameters of all groups
    at: int  # of its group
    group: Group
    param: Tensor
    state: State
    states: list[Tensor]
    names: tuple[str, ...]
    master: Tensor | None
    first: bool  # SGD: its buffer is new

    @property
    def step(self) -> Tensor | None:
        return self.state.get("step")

    @property
    def stochastic(self) -> bool:
        return self.group["stochastic_rounding"] and self.param.dtype in HALF


def complete_state(rule: Rule, group: Group, param: Tensor, state: State) -> None:
    """Add what a parameter's state lacks; what is there stays as it is."""
    if rule.counts_steps(group):
        step = state.get("step")
        if step is None:
            on = param.device if group.get("capturable") or group.get("fused") else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=on)
        elif not isinstance(step, Tensor) or step.dtype not in (torch.float32, torch.float64):
            state["step"] = torch.tensor(float(step), dtype=torch.float32)
    names = rule.states(group)
    if group["master_weights"] and param.dtype in HALF:
        names = (*names, "master_param")
    for name in names:
        if state.get(name) is None:
            wide = torch.float32 if param.dtype in HALF else param.dtype
            master = name == "master_param"
            state[name] = param.detach().to(wide) if master else rule.initial(group, name, param, wide)


def make_entries(rule: Rule, groups: list[Group], states: Any) -> list[Entry]:
    """Every parameter with a gradient. RuntimeError for a sparse gradient."""
    entries, index, new = [], -1, set()
    for at, group in enumerate(groups):
        for param in group["params"]:
            index += 1
            if param.grad is None:
                continue
            if param.grad.layout != torch.strided:
                raise RuntimeError(rule.sparse_message)
            if group.get("capturable") and param.device.type == "cpu" and not torch.compiler.is_compiling():
                raise AssertionError(
                    "If capturable=True, params and state_steps must be on supported devices: a CUDA or other "
                    f"accelerator, not cpu (parameter {index})"
                )
            names = rule.states(group)
            known = states.get(param) or {}
            # torch.optim.SGD starts a parameter that is listed twice twice.
            first = id(param) in new or any(known.get(name) is None for name in names)
            if first:
                new.add(id(param))
            if names or rule.counts_steps(group) or (group["master_weights"] and param.dtype in HALF):
                state = states[param]
                complete_state(rule, group, param, state)
            else:
                state = {}
            tensors = [state[name] for name in names]
            wide_copy = state["master_param"] if group["master_weights"] and param.dtype in HALF else None
            entries.append(Entry(index, at, group, param, state, tensors, names, wide_copy, first))
    return entries
