"""Optimizer steps on a device: a table of pointers that lies there from step to step, and who launches over it.

One launch for all parameters of one combination of dtypes. What has not changed is not uploaded again, so that a step
can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fastnorm.ops.optim_plans import chunk_length, chunk_table

Dtypes = tuple[torch.dtype, torch.dtype, torch.dtype, torch.dtype | None]
CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}  # as Dtype in csrc/op/tensor.h


@dataclass(frozen=True)
class OptimForm:
    """What the rows of one launch have in common. dtypes: of parameter, gradient, states and rounded copy.

    aligned: every address divides by 16.
    """

    states: int
    centered: bool
    dtypes: Dtypes
    aligned: bool


@dataclass(frozen=True)
class Clip:
    """squares: partial sums of the squares of all gradients, on the device."""

    squares: Tensor
    max_norm: float


class OptimLauncher(Protocol):
    """Who launches the kernels. clips: whether they can clip, in the launch that updates."""

    clips: bool

    def numbers_dtype(self, param: torch.dtype) -> torch.dtype: ...

    def step(
        self, kind: int, form: OptimForm, chunk: int, table: Tensor, chunks: Tensor, numbers: Tensor,
        factor: Tensor | None, found_inf: Tensor | None, clip: Clip | None,
    ) -> None: ...  # fmt: skip

    def squares(self, form: OptimForm, chunk: int, table: Tensor, chunks: Tensor) -> Tensor: ...


class TritonLauncher:
    """kernels: a function that imports them."""

    clips = False

    def __init__(self, kernels: Callable[[], Any]) -> None:
        self.kernels = kernels

    def numbers_dtype(self, param: torch.dtype) -> torch.dtype:
        return torch.float64 if param == torch.float64 else torch.float32

    def step(
        self, kind: int, form: OptimForm, chunk: int, table: Tensor, chunks: Tensor, numbers: Tensor,
        factor: Tensor | None, found_inf: Tensor | None, clip: Clip | None,
    ) -> None:  # fmt: skip
        assert clip is None
        self.kernels().optim_step(
            table, chunks, numbers, factor, found_inf, kind=kind, states=form.states, centered=form.centered,
            dtypes=form.dtypes, aligned=form.aligned, chunk=chunk,
        )  # fmt: skip

    def squares(self, form: OptimForm, chunk: int, table: Tensor, chunks: Tensor) -> Tensor:
        raise NotImplementedError


class NativeLauncher:
    """The kernels of csrc/cuda. namespace: of the ops."""

    clips = True

    def __init__(self, namespace: str) -> None:
        self.ops = getattr(torch.ops, namespace)

    def numbers_dtype(self, param: torch.dtype) -> torch.dtype:
        return torch.float64

    def step(
        self, kind: int, form: OptimForm, chunk: int, table: Tensor, chunks: Tensor, numbers: Tensor,
        factor: Tensor | None, found_inf: Tensor | None, clip: Clip | None,
    ) -> None:  # fmt: skip
        squares, max_norm = (None, 0.0) if clip is None else (clip.squares, clip.max_norm)
        self.ops.optim_update.default(
            table, chunks, numbers, factor, found_inf, squares, max_norm, self._form(kind, form, chunk)
        )

    def squares(self, form: OptimForm, chunk: int, table: Tensor, chunks: Tensor) -> Tensor:
        return self.ops.optim_squares.default(table, chunks, self._form(0, form, chunk))

    def _form(self, kind: int, form: OptimForm, chunk: int) -> list[int]:
        param, grad, state, rounded = form.dtypes
        codes = [CODES[dtype] for dtype in (param, grad, state, param if rounded is None else rounded)]
        return [kind, form.states, form.centered, *codes, form.aligned, chunk]


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

    def form(self, grad: Tensor) -> OptimForm:
        state = self.states[0].dtype if self.states else self.param.dtype
        rounded = None if self.rounded is None else self.rounded.dtype
        aligned = all(pointer % 16 == 0 for pointer in self.pointers(grad))
        return OptimForm(len(self.states), self.centered, (self.param.dtype, grad.dtype, state, rounded), aligned)


@dataclass
class OptimPart:
    """The rows of one launch. lines: of the table, but for each row's set of numbers, which stands last."""

    members: list[int]
    form: OptimForm
    chunk: int
    chunks: Tensor  # on the device
    lines: list[list[int]]
    sets: list[int] = field(default_factory=list)
    table: Tensor | None = None  # on the device

    def uploaded(self, sets: Sequence[int]) -> Tensor:
        """The table on the device; what lies there already stays."""
        own = [sets[i] for i in self.members]
        if self.table is None or own != self.sets:
            values = [[*line, number_set] for line, number_set in zip(self.lines, own, strict=True)]
            self.sets, self.table = own, on_device(torch.tensor(values, dtype=torch.int64), self.chunks.device)
        return self.table


def on_device(host: Tensor, device: torch.device) -> Tensor:
    """Uploaded without waiting: from pinned memory, which the allocator keeps until the copy is done."""
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


@functools.cache
def _cuda_sm_count(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def sm_count(x: Tensor) -> int:
    return _cuda_sm_count(x.get_device()) if x.is_cuda else 1


@dataclass
class OptimTable:
    """The pointers of many rows on their device, uploaded anew only where one has changed."""

    rows: Sequence[OptimRow]
    launcher: OptimLauncher
    parts: list[OptimPart] = field(default_factory=list)
    _seen: list[tuple[int, torch.dtype]] = field(default_factory=list)
    _chunks: dict[tuple[int, ...], tuple[int, Tensor]] = field(default_factory=dict)

    def step(
        self,
        kind: int,
        grads: Sequence[Tensor],
        sets: Sequence[int],
        numbers: Tensor,
        factor: Tensor | None = None,
        found_inf: Tensor | None = None,
        clip: Clip | None = None,
    ) -> int:
        """Updates every row with its gradient and its set of `numbers` [sets, N]; returns the number of launches.

        numbers: float64, as the fields of SgdNumbers, RmspropNumbers, AdamNumbers in csrc/math stand; on the host or on
        the device. factor multiplies every gradient; where found_inf is not 0, nothing is written. Both are one-element
        tensors on the device.
        """
        self.take(grads)
        for part in self.parts:
            table = part.uploaded(sets)
            own = numbers.to(self.launcher.numbers_dtype(part.form.dtypes[0]))
            own = own if own.device == table.device else on_device(own, table.device)
            self.launcher.step(kind, part.form, part.chunk, table, part.chunks, own, factor, found_inf, clip)
        return len(self.parts)

    def squares(self, grads: Sequence[Tensor], sets: Sequence[int]) -> Tensor:
        """Partial sums of the squares of all gradients: one launch for each combination of dtypes."""
        self.take(grads)
        found = [self.launcher.squares(p.form, p.chunk, p.uploaded(sets), p.chunks) for p in self.parts]
        return found[0] if len(found) == 1 else torch.cat(found)

    def take(self, grads: Sequence[Tensor]) -> None:
        """Makes new parts where a gradient lies elsewhere, or has another dtype, than in the last step."""
        seen = [(grad.data_ptr(), grad.dtype) for grad in grads]
        if seen != self._seen:
            self._divide(grads)
            self._seen = seen

    def _divide(self, grads: Sequence[Tensor]) -> None:
        """One part for each combination of dtypes, states and alignment."""
        alike: dict[OptimForm, list[int]] = {}
        for i, (row, grad) in enumerate(zip(self.rows, grads, strict=True)):
            if row.param.numel() > 0:
                alike.setdefault(row.form(grad), []).append(i)
        self.parts = []
        for form, members in alike.items():
            sizes = tuple(self.rows[i].param.numel() for i in members)
            lines = [[*self.rows[i].pointers(grads[i]), size] for i, size in zip(members, sizes, strict=True)]
            self.parts.append(OptimPart(members, form, *self._cut(self.rows[members[0]].param, sizes), lines))

    def _cut(self, like: Tensor, sizes: tuple[int, ...]) -> tuple[int, Tensor]:
        if sizes not in self._chunks:
            chunk = chunk_length(sizes, sm_count(like))
            self._chunks[sizes] = chunk, on_device(chunk_table(sizes, chunk), like.device)
        return self._chunks[sizes]
