"""Optimizer steps on a GPU: one launch for all parameters of one combination of dtypes, over a table of pointers.

Table and chunks lie in device memory, and so do the numbers (learning rate, bias corrections, ...), the clipping factor
and found_inf: nothing is read back, and a captured graph replays with whatever they hold then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import triton.language as tl
from torch import Tensor

from . import launch
from .optim_plans import OptimPlan, chunk_table, optim_plan
from .optim_step import optim_step_kernel

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass
class OptimRow:
    """One parameter: `param` is updated, `rounded` (with master weights) only written. All dense in one order."""

    param: Tensor
    states: Sequence[Tensor]
    rounded: Tensor | None = None
    centered: bool = False

    def pointers(self, grad: Tensor) -> list[int]:
        """As the table's columns stand."""
        states = [t.data_ptr() for t in self.states]
        rounded = 0 if self.rounded is None else self.rounded.data_ptr()
        return [self.param.data_ptr(), grad.data_ptr(), *states, *([0] * (3 - len(states))), rounded]

    def alike(self, grad: Tensor) -> tuple[object, ...]:
        """What rows of one launch have in common."""
        aligned = all(pointer % 16 == 0 for pointer in self.pointers(grad))
        state = self.states[0].dtype if self.states else self.param.dtype
        rounded = None if self.rounded is None else self.rounded.dtype
        return self.param.dtype, grad.dtype, state, rounded, len(self.states), self.centered, aligned


@dataclass
class OptimPart:
    """The rows of one launch. lines: of the table, but for each row's set of numbers, which stands last."""

    members: list[int]
    first: OptimRow
    grad: torch.dtype
    aligned: bool
    plan: OptimPlan
    chunks: Tensor  # on the device
    lines: list[list[int]]
    sets: list[int] = field(default_factory=list)
    table: Tensor | None = None  # on the device

    def upload(self, sets: Sequence[int], device: torch.device) -> Tensor:
        """The table on the device; what lies there already stays, so that a captured step uploads nothing."""
        own = [sets[i] for i in self.members]
        if self.table is None or own != self.sets:
            values = [[*line, number_set] for line, number_set in zip(self.lines, own, strict=True)]
            self.sets, self.table = own, on_device(torch.tensor(values, dtype=torch.int64), device)
        return self.table


def on_device(host: Tensor, device: torch.device) -> Tensor:
    """Uploaded without waiting: from pinned memory, which the allocator keeps until the copy is done."""
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


@dataclass
class OptimTable:
    """The pointers of many rows on their device, uploaded anew only where one has changed."""

    rows: Sequence[OptimRow]
    parts: list[OptimPart] = field(default_factory=list)
    _seen: list[tuple[int, torch.dtype]] = field(default_factory=list)
    _chunks: dict[tuple[int, ...], tuple[OptimPlan, Tensor]] = field(default_factory=dict)

    def step(
        self,
        kind: int,
        grads: Sequence[Tensor],
        sets: Sequence[int],
        numbers: Tensor,
        factor: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> int:
        """Updates every row with its gradient and its set of `numbers` [sets, N]; returns the number of launches.

        numbers: float64, as the fields of SgdNumbers, RmspropNumbers, AdamNumbers in csrc/math stand; on the host or on
        the device. factor multiplies every gradient; where found_inf is not 0, nothing is written. Both are one-element
        tensors on the device.
        """
        seen = [(grad.data_ptr(), grad.dtype) for grad in grads]
        if seen != self._seen:
            self._divide(grads)
            self._seen = seen
        for part in self.parts:
            self._launch(kind, part, sets, numbers, factor, found_inf)
        return len(self.parts)

    def _divide(self, grads: Sequence[Tensor]) -> None:
        """One part for each combination of dtypes, states and alignment."""
        alike: dict[tuple[object, ...], list[int]] = {}
        for i, (row, grad) in enumerate(zip(self.rows, grads, strict=True)):
            if row.param.numel() > 0:
                alike.setdefault(row.alike(grad), []).append(i)
        self.parts = []
        for key, members in alike.items():
            first = self.rows[members[0]]
            sizes = tuple(self.rows[i].param.numel() for i in members)
            lines = [[*self.rows[i].pointers(grads[i]), size] for i, size in zip(members, sizes, strict=True)]
            grad = grads[members[0]].dtype
            self.parts.append(OptimPart(members, first, grad, bool(key[-1]), *self._cut(first.param, sizes), lines))

    def _cut(self, like: Tensor, sizes: tuple[int, ...]) -> tuple[OptimPlan, Tensor]:
        if sizes not in self._chunks:
            plan = optim_plan(sizes, launch.sm_count(like))
            self._chunks[sizes] = plan, on_device(chunk_table(sizes, plan.chunk), like.device)
        return self._chunks[sizes]

    def _launch(
        self, kind: int, part: OptimPart, sets: Sequence[int], numbers: Tensor, factor: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:  # fmt: skip
        first, plan = part.first, part.plan
        device = first.param.device
        numbers = numbers.to(launch.acc_dtype(first.param))
        if numbers.device != device:
            numbers = on_device(numbers, device)
        with launch.device_guard(first.param):
            optim_step_kernel[plan.grid](
                part.upload(sets, device), part.chunks, numbers, factor, found_inf,
                PARAM=TYPES[first.param.dtype], GRAD=TYPES[part.grad],
                STATE=TYPES[first.states[0].dtype if first.states else first.param.dtype],
                ROUNDED=None if first.rounded is None else TYPES[first.rounded.dtype], ALIGNED=part.aligned, KIND=kind,
                STATES=len(first.states), CENTERED=int(first.centered), NUMBERS=numbers.shape[1], CHUNK=plan.chunk,
                BLOCK=plan.block, num_warps=plan.num_warps, enable_fp_fusion=False,
            )  # fmt: skip
