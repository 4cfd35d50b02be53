"""What the real Triton launchers would launch for the GPU's cases, on tensors without memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from benchmarks.cases import Case, all_cases
from benchmarks.optim_cases import OptimCase, optim_cases
from fastnorm.ops import optim, optim_table, triton
from fastnorm.testing import triton_cases
from fastnorm.testing.cases import DTYPES, RowCase

H200 = 132  # SMs: what the GPU targets are for
KINDS = {"sgd": optim.SGD, "rmsprop": optim.RMSPROP, "adam": optim.ADAM}


@dataclasses.dataclass(frozen=True)
class Planned:
    """One launch as data: of which op which kernel, how many programs, of what blocks, over which tensors.

    tensors: elements and bytes of every tensor argument, and "rows" for all that an optimizer's table points at.
    partials: bytes of those that hold partial results. walk: of a reduction whose programs walk through tiles, into how
    many shares the tiles of each column are dealt: (columns, shares, tiles of a column).
    """

    op: str
    kernel: str
    grid: tuple[int, ...]
    warps: int
    blocks: dict[str, int]
    tensors: dict[str, tuple[int, int]]
    walk: tuple[int, int, int] | None = None

    @property
    def programs(self) -> int:
        return math.prod(self.grid)

    @property
    def bytes(self) -> int:
        """What the launch moves, where every tensor is read or written once."""
        return sum(size for _, size in self.tensors.values())

    @property
    def partials(self) -> int:
        return sum(size for name, (_, size) in self.tensors.items() if "partials" in name)

    def __str__(self) -> str:
        blocks = " ".join(f"{name}={value}" for name, value in self.blocks.items())
        told = [f"{self.kernel}{list(self.grid)} {self.warps} warps", blocks, f"{self.bytes / 1e6:.2f} MB"]
        told += [f"{self.partials / 1e3:.1f} kB of partial results"] if self.partials else []
        return ", ".join(filter(None, told))


def plan_lines(columns: Collection[str] = ()) -> list[str]:
    """One line a distinct set of tensors, with every launch of forward and backward and what they move together.

    columns: of these op columns only; none means all. Raises RuntimeError where the kernels cannot be imported.
    """
    reason = triton.missing()
    if reason is not None:
        raise RuntimeError(reason)
    every: list[Case | OptimCase] = [*all_cases("cuda"), *optim_cases("cuda")]
    chosen = [case for case in every if not columns or case.spec.column in columns]
    cases = dict.fromkeys(launched(case) for case in chosen)
    lines = []
    for case in cases:
        planned = launches(case)
        moved = sum(one.bytes for one in planned) / case.elements
        lines.append(f"{describe(case)}, {moved:.1f} bytes an element: {'; '.join(map(str, planned))}")
    return lines


def launched(case: Case | OptimCase) -> triton_cases.Case:
    """The tensors and options that a case gives to the launchers."""
    if isinstance(case, OptimCase):
        sizes = tuple(math.prod(shape) for shape in case.shapes)
        centered = bool(case.spec.options.get("centered"))
        return triton_cases.OptimCase(
            case.shape, case.dtype, kind=KINDS[case.spec.column], states=case.spec.states, centered=centered,
            sizes=sizes,
        )  # fmt: skip
    spec, channels_last = case.spec, case.layout == "channels_last"
    if spec.kind == "stats":
        return triton_cases.StatsCase(case.shape, case.dtype, channels_last)
    options = (case.shape, case.dtype, channels_last, spec.act, spec.residual, spec.training)
    problem = case.problem
    if not isinstance(problem, RowCase):
        return triton_cases.Case(*options)
    groups = case.shape[1] if spec.kind == "instance" else problem.groups
    return triton_cases.RowCase(*options, problem.dims, groups, problem.rms)


def describe(case: triton_cases.Case) -> str:
    if isinstance(case, triton_cases.OptimCase):
        parts = [f"{len(case.sizes) or 1} parameters", f"{case.elements} elements", case.dtype]
        parts += [f"{name}={getattr(case, name)}" for name in ("kind", "states", "centered", "master")]
        return " ".join(parts)
    parts = [
        "x".join(map(str, case.shape)),
        case.dtype,
        "channels_last" if case.channels_last else "contiguous",
    ]
    if isinstance(case, triton_cases.RowCase):
        parts += [f"rows of {case.dims} dims"] if case.dims else [f"{case.groups or 'no'} groups"]
        parts += ["rms"] * case.rms
    parts += [name for name in ("act", "residual") if getattr(case, name)]
    return " ".join([*parts, "training" if case.training else "eval"])


def launches(case: triton_cases.Case, sms: int = H200) -> list[Planned]:
    with recording(sms) as recorded:
        triton_cases.launch(case)
    if isinstance(case, triton_cases.OptimCase):
        rows = case.elements, case.elements * element_bytes(case)
        return [dataclasses.replace(one, tensors={**one.tensors, "rows": rows}) for one in recorded]
    return recorded


def element_bytes(case: triton_cases.OptimCase) -> int:
    """What a step moves of a parameter's number: parameter and states there and back, the gradient, a rounded copy."""
    stored = DTYPES[case.dtype].itemsize
    wide = max(4, stored)
    param = 2 * wide + stored if case.master else 2 * stored
    return param + stored + 2 * wide * case.states


@contextmanager
def recording(sms: int = H200) -> Iterator[list[Planned]]:
    """While this is open, every kernel launch, interpreted or not, is written down instead of made."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    kernels = triton._import_kernels()
    recorded: list[Planned] = []
    calls: list[str] = []

    def record(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **named: Any) -> None:
        op = calls[-1] if calls else self.fn.__name__.removesuffix("_kernel")  # launched by no op of the table
        recorded.append(planned(op, self, args, tuple(grid), named))

    def named_call(op: str, launcher: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(op)
            try:
                return launcher(*args)
            finally:
                calls.pop()

        return call

    with ExitStack() as stack:
        named = {op: named_call(op, launcher) for op, launcher in kernels.LAUNCHERS.items()}
        stack.enter_context(mock.patch.dict(kernels.LAUNCHERS, named))
        for kind in (JITFunction, InterpretedFunction):
            stack.enter_context(mock.patch.object(kind, "run", record))
        for module in (kernels.launch, optim_table):
            stack.enter_context(mock.patch.object(module, "sm_count", lambda x: sms))
        yield recorded


def planned(op: str, kernel: Any, args: tuple[Any, ...], grid: tuple[int, ...], named: dict[str, Any]) -> Planned:
    values = dict(zip(kernel.arg_names, args, strict=False)) | named
    return Planned(
        op=op,
        kernel=kernel.fn.__name__,
        grid=grid,
        warps=named.get("num_warps", 4),
        blocks={name: value for name, value in named.items() if name.startswith("BLOCK")},
        tensors={
            name: (value.numel(), value.numel() * value.element_size())
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        },
        walk=walk_of(grid, values),
    )


def walk_of(grid: tuple[int, ...], values: dict[str, Any]) -> tuple[int, int, int] | None:
    """As the kernels that walk name their arguments; the others have a grid of one dim and no sweeps."""
    if "sweeps" in values:
        return values["s_blocks"], values["sweeps"], values["samples"] * values["c_blocks"]
    if len(grid) == 2:
        return grid[0], grid[1], values["tiles"] if "tiles" in values else values["s_blocks"]
    return None
