"""Cases for the Triton launchers, and their calls on tensors without memory."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from fastnorm.ops import optim_table
from fastnorm.ops import triton as triton_ops
from fastnorm.testing.cases import DTYPES

ACTIVATION = (0.1, 0.4, 2.0, None)
Activation = tuple[float | None, float | None, float | None, float | None]


@dataclasses.dataclass(frozen=True)
class Case:
    """A forward and a backward of batch norm with fp32 parameters, and of general_relu where act is set."""

    shape: tuple[int, ...]
    dtype: str = "fp32"
    channels_last: bool = False
    act: bool = False
    residual: bool = False
    training: bool = True

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class RowCase(Case):
    """A forward and a backward of row_norm, with fp32 parameters; rms goes without a bias."""

    dims: int = 0
    groups: int = 0
    rms: bool = False


@dataclasses.dataclass(frozen=True)
class OptimCase(Case):
    """A step of an optimizer; the states are fp32, the parameter has an fp32 master where `master` is set.

    shape: (elements,) of the one parameter; or (parameters, all their elements), with the elements of each in `sizes`.
    """

    kind: int = 0  # SGD, RMSprop, Adam
    states: int = 0
    centered: bool = False
    master: bool = False
    sizes: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        return sum(self.sizes) or math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class StatsCase(Case):
    """activation_stats, and nothing else."""

    bins: int = 40


def launch(case: Case) -> None:
    """Calls the launchers of one case on meta tensors."""
    if isinstance(case, OptimCase):
        launch_optim(case)
        return
    x = torch.empty(case.shape, dtype=DTYPES[case.dtype], device="meta")
    if case.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    residual = torch.empty_like(x) if case.residual else None
    numbers: Activation = ACTIVATION if case.act else (None, None, None, None)
    if isinstance(case, StatsCase):
        triton_ops._import_kernels().LAUNCHERS["activation_stats_fwd"](x, case.bins, 0.0, 10.0)
    elif isinstance(case, RowCase):
        launch_row_norm(case, x, residual, numbers)
    else:
        launch_batch_norm(case, x, residual, numbers)


def launch_batch_norm(case: Case, x: Tensor, residual: Tensor | None, numbers: Activation) -> None:
    call = triton_ops._import_kernels().LAUNCHERS
    channel = torch.empty(case.shape[1], device="meta")
    _, mean, rstd = call["batch_norm_fwd"](
        x, channel, channel, residual, channel, channel, None,
        case.training, 0.1, 1e-5, False, False, case.act, *numbers,
    )  # fmt: skip
    call["batch_norm_bwd"](x, x, channel, channel, residual, mean, rstd, case.training, False, True, case.act, *numbers)
    if case.act:
        call["general_relu_fwd"](x, *numbers)
        call["general_relu_bwd"](x, x, *numbers)


def launch_row_norm(case: RowCase, x: Tensor, residual: Tensor | None, numbers: Activation) -> None:
    call = triton_ops._import_kernels().LAUNCHERS
    shape = case.shape[-case.dims :] if case.dims else case.shape[1:2]
    weight = torch.empty(shape, device="meta")
    bias = None if case.rms else weight
    sets = (case.dims, case.groups)
    _, mean, rstd = call["row_norm_fwd"](
        x, weight, bias, residual, *sets, 1e-5, case.rms, False, case.act, *numbers
    )  # fmt: skip
    call["row_norm_bwd"](x, x, weight, bias, residual, mean, rstd, *sets, case.rms, False, True, case.act, *numbers)


def launch_optim(case: OptimCase) -> None:
    state_dtype = torch.float64 if case.dtype == "fp64" else torch.float32
    rows, grads = [], []
    for size in case.sizes or case.shape:
        x = torch.empty(size, dtype=DTYPES[case.dtype], device="meta")
        state = torch.empty(size, dtype=state_dtype, device="meta")
        param, rounded = (state, x) if case.master else (x, None)
        rows.append(optim_table.OptimRow(param, [state] * case.states, rounded, case.centered))
        grads.append(x)
    numbers = torch.empty(1, 11, dtype=torch.float64, device="meta")
    scalar = torch.empty((), dtype=torch.float64, device="meta")
    table = optim_table.OptimTable(rows, optim_table.TritonLauncher(triton_ops._import_kernels))
    table.step(case.kind, grads, [0] * len(rows), numbers, scalar, torch.empty((), device="meta"))


def case_from(fields: dict[str, Any]) -> Case:
    """The case of which dataclasses.asdict made these fields."""
    named = {"master": OptimCase, "dims": RowCase, "bins": StatsCase}
    kind = next((own for name, own in named.items() if name in fields), Case)
    lists: dict[str, Any] = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return kind(**{**fields, **lists})
