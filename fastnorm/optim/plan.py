"""Between two steps: which tensors an optimizer updates, in which way, and whether that still holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastnorm.ops import optim as ops
from fastnorm.ops.backend import resolve
from fastnorm.optim.rule import HALF, Group, Rule, State

PLAIN = (Tensor, torch.nn.Parameter)  # a subclass may not lie where its data_ptr says


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
            wide = param.detach().float() if param.dtype in HALF else param
            state[name] = wide.clone() if name == "master_param" else rule.initial(group, name, wide)


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


def is_native(param: Tensor) -> bool:
    """Whether the compiled kernels update this parameter."""
    if type(param) not in PLAIN or not param.is_cpu or param.layout != torch.strided:
        return False
    return resolve(torch.view_as_real(param.detach()) if param.is_complex() else param) == "native"


def real(t: Tensor) -> Tensor:
    """A complex tensor as its pairs of real numbers."""
    return torch.view_as_real(t) if t.is_complex() else t


def native_plan(rule: Rule, entries: Sequence[Entry]) -> ops.Plan:
    rows = []
    for e in entries:
        tensors = [e.param.detach() if e.param.is_complex() else e.param]
        parts = ops.FIRST * e.first | ops.STOCHASTIC * e.stochastic | ops.CENTERED * rule.centered(e.group)
        if e.master is not None:
            tensors.append(e.master)
            parts |= ops.MASTER
        tensors = [real(t) for t in (*tensors, *e.states)]
        if e.step is not None:
            tensors.append(e.step)
            parts |= ops.STEP
        rows.append(ops.Row(e.at, e.parameter, tensors, len(e.states), parts))
    return ops.Plan(rule.kind, rows)


def form(rule: Rule, groups: list[Group]) -> list[tuple[Any, ...]]:
    """What a plan depends on besides tensors."""
    return [
        (len(g["params"]), rule.form(g), g["master_weights"], g["stochastic_rounding"], g.get("capturable"))
        for g in groups
    ]


class StepPlan:
    """All that a step can take over from the last one, if `fits` says that nothing has changed."""

    def __init__(self, rule: Rule, groups: list[Group], states: Any, choice: str | None, graph: bool) -> None:
        """graph: the step is to be differentiated, which only the reference can."""
        entries = make_entries(rule, groups, states)
        mine = [e for e in entries if not graph and is_native(e.param)]
        self.others = [e for e in entries if graph or not is_native(e.param)]
        self.new = [e for e in entries if e.first]
        self.params = [e.param for e in mine]
        self.native = native_plan(rule, mine) if mine else None
        self.complex = any(p.is_complex() for p in self.params)
        self.lasting = self.native is not None and not self.others and not self.complex
        self.choice = choice
        self.form = form(rule, groups)
        self.snapshot = list(states.values())
        self.dicts = [e.state for e in mine]
        self.values = [value for state in self.dicts for value in state.values()]
        states_of = [t for e in mine for t in (*e.states, *([e.master] if e.master is not None else []))]
        self.written = [t for t in (*self.params, *states_of) if not t.is_inference()]

    def fits(self, rule: Rule, groups: list[Group], states: Any, active: list[Tensor], choice: str | None) -> bool:
        return (
            self.lasting
            and self.choice == choice
            and ops.same_objects(active, self.params)
            and ops.same_objects(list(states.values()), self.snapshot)
            and ops.same_values(self.dicts, self.values)
            and self.form == form(rule, groups)
        )

    def grads(self) -> list[Tensor]:
        """Of the parameters that the compiled kernels update."""
        found = ops.grads_of(self.params)
        return [real(g) for g in found] if self.complex else found
