"""The step on CUDA tensors (and under Triton's interpreter): one launch, its numbers on the device, no waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastnorm.ops.optim import TensorMoved
from fastnorm.ops.optim_table import Clip, OptimLauncher, OptimRow, OptimTable
from fastnorm.optim.entry import Entry
from fastnorm.optim.rule import Rule, number


def is_dense(t: Tensor) -> bool:
    """Whether the elements fill one piece of memory, in any order of dims."""
    reach = 1
    for stride, size in sorted((t.stride(d), t.shape[d]) for d in range(t.dim()) if t.shape[d] != 1):
        if stride != reach:
            return t.numel() == 0
        reach *= size
    return True


def fits_kernel(entry: Entry) -> bool:
    """Whether the kernels take it: dense, its states in its own order and of one dtype; fp64 for fp64 alone."""
    tensors = [entry.param, *entry.states, *([] if entry.master is None else [entry.master])]
    alike = all(t.stride() == entry.param.stride() and not t.is_complex() for t in tensors)
    wide = {t.dtype == torch.float64 for t in tensors}
    dtypes = {t.dtype for t in entry.states}
    return alike and is_dense(entry.param) and not entry.stochastic and len(dtypes) <= 1 and len(wide) == 1


class DeviceStep:
    """All parameters of one device that one backend's kernels update."""

    def __init__(self, rule: Rule, entries: Sequence[Entry], launcher: OptimLauncher) -> None:
        self.rule, self.entries, self.clips = rule, entries, launcher.clips
        self.device = entries[0].param.device
        self.forms = [(e.param.shape, e.param.stride()) for e in entries]
        self.steps = [e.step for e in entries if e.step is not None]
        # With found_inf on the device, steps on the host can only be counted by waiting for it.
        self.waits = any(step.device != self.device for step in self.steps)
        rows = [
            OptimRow(e.param, e.states, None, rule.centered(e.group))
            if e.master is None
            else OptimRow(e.master, e.states, e.param, rule.centered(e.group))
            for e in entries
        ]
        self.table = OptimTable(rows, launcher)

    def grads(self) -> list[Tensor]:
        """In their parameters' order. Raises TensorMoved."""
        found = []
        for entry, (shape, stride) in zip(self.entries, self.forms, strict=True):
            param, grad = entry.param, entry.param.grad
            if grad is None or grad.layout != torch.strided or (param.shape, param.stride()) != (shape, stride):
                raise TensorMoved
            if grad.dtype != param.dtype and torch.float64 in (grad.dtype, param.dtype):
                grad = grad.to(param.dtype)
            if grad.stride() != stride:
                grad = torch.empty_like(param, dtype=grad.dtype).copy_(grad)
            found.append(grad)
        return found

    def squares(self, grads: list[Tensor]) -> Tensor:
        """The sum of the squares of all gradients, on the device."""
        norms = torch._foreach_norm([g.float() if g.element_size() == 2 else g for g in grads])
        return torch.stack([norm.double() for norm in norms]).square().sum()

    def step(
        self, grads: list[Tensor], factor: Tensor | None, found_inf: Tensor | None, max_norm: float | None = None
    ) -> None:
        """Updates everything. factor: of all gradients. Where found_inf is not 0, nothing changes.

        max_norm: clips them together after that, where `clips` says that the kernels can.
        """
        if self.steps:
            torch._foreach_add_(self.steps, 1)
            if found_inf is not None:
                torch._foreach_sub_(self.steps, [found_inf.to(step.device) for step in self.steps])
        on_device = not self.waits and (self.steps or self.capturing())
        numbers, sets = self._device_numbers() if on_device else self._host_numbers()
        clip = None if max_norm is None else Clip(self.table.squares(grads, sets), max_norm)
        self.table.step(self.rule.kind, grads, sets, numbers, factor, found_inf, clip)
        for entry in self.entries:
            entry.first = False

    def capturing(self) -> bool:
        """Whether a CUDA graph is being made, which would upload at each replay what then lies in the host's memory."""
        return self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _host_numbers(self) -> tuple[Tensor, list[int]]:
        """A set for each group and count of steps, on the host."""
        known: dict[tuple[int, float, bool], int] = {}
        values: list[list[float]] = []
        sets = []
        for entry in self.entries:
            count = 0.0 if entry.step is None else entry.step.item()
            key = (entry.at, count, entry.first)
            if key not in known:
                known[key] = len(values)
                hyper = [number(value) for value in self.rule.hyper(entry.group)]
                values.append([float(v) for v in self.rule.numbers(hyper, count, entry.first)])
            sets.append(known[key])
        return torch.tensor(values, dtype=torch.float64), sets

    def _device_numbers(self) -> tuple[Tensor, list[int]]:
        """A set for each parameter, computed where the steps and perhaps the learning rate are, a group at a time."""
        blocks: dict[tuple[int, bool], list[int]] = {}
        for i, entry in enumerate(self.entries):
            blocks.setdefault((entry.at, entry.first), []).append(i)
        sets = [0] * len(self.entries)
        tables: list[Tensor] = []
        done = 0
        for (_, first), members in blocks.items():
            for i in members:
                sets[i] = done
                done += 1
            given = self.rule.hyper(self.entries[members[0]].group)
            hyper = [v.to(self.device) if isinstance(v, Tensor) else float(v) for v in given]
            counted = [step for i in members if (step := self.entries[i].step) is not None]
            steps = torch.stack(counted).double() if counted else 0.0  # [n]
            values: list[Any] = self.rule.numbers(hyper, steps, first)
            tables.append(torch.stack([self._column(value, len(members)) for value in values], dim=1))
        return torch.cat(tables), sets

    def _column(self, value: Tensor | float, count: int) -> Tensor:
        """As float64 [count]; a number is filled in there and not uploaded, which a capture would not allow."""
        if isinstance(value, Tensor):
            return value.to(torch.float64).expand(count)
        return torch.full((count,), float(value), dtype=torch.float64, device=self.device)
