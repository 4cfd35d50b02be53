"""Between two steps: which tensors an optimizer updates, in which way, and whether that still holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastnorm.ops import optim as ops
from fastnorm.ops import triton
from fastnorm.ops.backend import resolve
from fastnorm.ops.optim_table import NativeLauncher, OptimLauncher, TritonLauncher
from fastnorm.ops.optim_watch import MOVED, OTHER, REFORMED, TAKEN, Watch, can_watch
from fastnorm.optim.device import DeviceStep, fits_kernel
from fastnorm.optim.entry import Entry, make_entries
from fastnorm.optim.rule import Group, Rule

PLAIN = (Tensor, torch.nn.Parameter)  # a subclass may not lie where its data_ptr says


def read_as_stored(t: Tensor) -> bool:
    """Whether the numbers of a tensor are those in its memory: not a view that negates what it reads."""
    return type(t) in PLAIN and t.layout == torch.strided and not t.is_neg()


def backend_of(entry: Entry) -> str:
    """What updates this parameter; `eager` is the reference, one parameter after the other."""
    param = entry.param
    if not all(map(read_as_stored, (param, *entry.states, *([] if entry.master is None else [entry.master])))):
        return "eager"
    backend = resolve(torch.view_as_real(param.detach()) if param.is_complex() else param, None, "optim")
    return "eager" if launches(backend, param) and not fits_kernel(entry) else backend


def launches(backend: str, param: Tensor) -> bool:
    """Whether kernels are launched on a device, and not called on the CPU."""
    return backend != "eager" and not (backend == "native" and param.is_cpu)


def launcher_of(backend: str) -> OptimLauncher:
    """Of a backend that launches kernels."""
    return TritonLauncher(triton._import_kernels) if backend == "triton" else NativeLauncher(f"fastnorm_{backend}")


def real(t: Tensor) -> Tensor:
    """A complex tensor as its pairs of real numbers, to be written."""
    return torch.view_as_real(t) if t.is_complex() else t


def read_real(t: Tensor) -> Tensor:
    """The same only to be read: of a conjugate that has not been worked out, a copy."""
    return real(t.resolve_conj())


def where(t: Tensor) -> tuple[Any, ...]:
    return t.data_ptr(), t.shape, t.stride()


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


OPTIONS = ("master_weights", "stochastic_rounding", "capturable")


class Form:
    """What a plan depends on besides tensors."""

    def __init__(self, rule: Rule, groups: list[Group]) -> None:
        self.rule = rule
        self.keys = (*OPTIONS, *rule.form_keys)
        self.counts = [len(g["params"]) for g in groups]
        self.meaning = self._meaning(groups)
        self._see(groups)

    def _meaning(self, groups: list[Group]) -> list[tuple[Any, ...]]:
        return [(self.rule.form(g), *map(g.get, OPTIONS)) for g in groups]

    def _see(self, groups: list[Group]) -> None:
        self.seen = [g.get(key) for g in groups for key in self.keys]

    def is_of(self, groups: list[Group], lists: list[list[Tensor]]) -> bool:
        """lists: the groups' parameters."""
        if self.counts != list(map(len, lists)):
            return False
        if ops.same_items(groups, self.keys, self.seen):
            return True
        same = self.meaning == self._meaning(groups)
        if same:  # a momentum that follows a schedule, say: other objects that mean the same
            self._see(groups)
        return same


class StepPlan:
    """All that a step can take over from the last one, if `fits` says that nothing has changed."""

    def __init__(self, rule: Rule, groups: list[Group], states: Any, choice: str | None, graph: bool) -> None:
        """graph: the step is to be differentiated, which only the reference can."""
        entries = make_entries(rule, groups, states)
        served = ["eager" if graph else backend_of(e) for e in entries]
        on_device = [(b, e) for e, b in zip(entries, served, strict=True) if launches(b, e.param)]
        self.mine = [i for i, e in enumerate(entries) if served[i] == "native" and not launches("native", e.param)]
        mine = [entries[i] for i in self.mine]
        self.others = [e for e, backend in zip(entries, served, strict=True) if backend == "eager"]
        self.new = [e for e in entries if e.first]
        places = dict.fromkeys((backend, e.param.device) for backend, e in on_device)
        self.devices = [
            DeviceStep(
                rule, [e for b, e in on_device if (b, e.param.device) == (backend, device)], launcher_of(backend)
            )
            for backend, device in places
        ]
        self.native = native_plan(rule, mine) if mine else None
        self.watch: Watch | None = None
        self.lasting = not graph
        # All on one device: the step need not wait for it.
        self.sole = self.devices[0] if len(places) == 1 and not mine and not self.others else None
        self.all_params = [e.param for e in entries]
        self.choice = choice
        self.form = Form(rule, groups)
        self.snapshot = list(states.values())
        self.dicts = [e.state for e in entries]
        self.values = [value for state in self.dicts for value in state.values()]
        updated = [*mine, *(e for _, e in on_device)]
        states_of = [t for e in updated for t in (*e.states, *([e.master] if e.master is not None else []))]
        # The native plan holds complex tensors as views, which stay where they are when the tensors move.
        tensors = [t for e in mine for t in (e.param, *e.states) if t.is_complex()]
        self.viewed = [(t, where(t)) for t in tensors]
        self.all_plain = len(mine) == len(entries) and not tensors
        self.written = [t for t in (*(e.param for e in updated), *states_of) if not t.is_inference()]

    def fits(
        self, groups: list[Group], lists: list[list[Tensor]], states: Any, active: list[Tensor], choice: str | None
    ) -> bool:
        """lists: the groups' parameters; active: those that have a gradient."""
        return (
            self.lasting
            and self.choice == choice
            and ops.same_objects(active, self.all_params)
            and ops.same_values([states], self.snapshot)
            and ops.same_values(self.dicts, self.values)
            and self.form.is_of(groups, lists)
            and all(where(t) == place for t, place in self.viewed)
        )

    def watch_over(self, groups: list[Group], params: list[Tensor]) -> bool:
        """Lets the compiled nodes look after everything, where they can and do not yet. params: of all groups.

        Raises TensorMoved.
        """
        if self.watch is not None or not (self.lasting and self.all_plain and can_watch(self.native)):
            return False
        assert self.native is not None
        rule, keys = self.form.rule, self.form.keys
        self.watch = Watch(
            self.native, params, groups, self.snapshot, self.dicts, rule.hyper_keys, keys, rule.words
        )  # fmt: skip
        return True

    def takes_all(self, groups: list[Group], states: Any, choice: str | None) -> bool:
        """Whether the watch has found all as it was and has this step's gradients: nothing else need be asked."""
        if self.watch is None or self.choice != choice:
            return False
        answer = self.watch.take(groups, states)
        if answer == MOVED:
            self.lasting = False
        elif answer == OTHER:
            self.watch = None
        return answer == TAKEN or (answer == REFORMED and self.form.is_of(groups, [g["params"] for g in groups]))

    def divided(self, grads: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """All gradients as the native step takes its own, and as each device does. Raises TensorMoved."""
        if self.all_plain:
            return grads, []
        if any(e.param.grad is None or e.param.grad.layout != torch.strided for e in self.others):
            raise ops.TensorMoved
        return [read_real(grads[i]) for i in self.mine], [device.grads() for device in self.devices]
