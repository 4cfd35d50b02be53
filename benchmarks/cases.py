"""The benchmark's cases: which op, in which direction, over which tensors."""

from __future__ import annotations

import dataclasses
import math

from fastnorm.testing.cases import ACTS, NormCase, ReluCase
from fastnorm.testing.cases import DTYPES as TORCH_DTYPES

DTYPES = {name: TORCH_DTYPES[name] for name in ("fp32", "bf16")}
LAYOUTS = ("contiguous", "channels_last")

TINY = (8, 3, 32, 32)
IMAGES = (32, 3, 224, 224)
FRESH_PAGES = (64, 128, 56, 56)  # 103 MB of fp32: the allocator maps and unmaps it on every call
CPU_SHAPES = ((32, 64, 56, 56), (32, 256, 14, 14), (256, 64, 8, 8), TINY, IMAGES, FRESH_PAGES)

FEW_CHANNELS = (256, 3, 224, 224)  # 154 MB of fp32 in three channels: fewer than there are multiprocessors
CUDA_SHAPES = ((256, 128, 56, 56), (32, 64, 56, 56), FEW_CHANNELS, (256, 256, 28, 28), TINY)

ACT = "full"  # leak, sub and maxv
LEAK, SUB, MAXV = (number for number in ACTS[ACT].numbers if number is not None)
MOMENTUM, EPS = 0.1, 1e-5


@dataclasses.dataclass(frozen=True)
class Op:
    """What an op name of the benchmark computes: `act(norm(x) + residual)`, through functions or modules."""

    column: str  # the file name that the op has in every folder
    norm: bool = True
    act: bool = False
    residual: bool = False
    training: bool = True
    module: bool = False

    @property
    def directions(self) -> tuple[str, ...]:
        if self.module:
            return ("fwd+bwd",)
        return ("fwd", "bwd") if self.training else ("fwd",)


OPS = {
    "batch_norm": Op("batch_norm"),
    "batch_norm_act": Op("batch_norm", act=True),
    "batch_norm_residual_act": Op("batch_norm", act=True, residual=True),
    "batch_norm_eval": Op("batch_norm", training=False),
    "batch_norm_module": Op("batch_norm", module=True),
    "batch_norm_act_module": Op("batch_norm", act=True, module=True),
    "general_relu": Op("general_relu", norm=False, act=True),
    "general_relu_module": Op("general_relu", norm=False, act=True, module=True),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One measured situation; `name` is what `--case` matches and what the results file calls it."""

    op: str
    direction: str
    shape: tuple[int, ...]
    layout: str
    dtype: str
    device: str = "cpu"

    @property
    def spec(self) -> Op:
        return OPS[self.op]

    @property
    def name(self) -> str:
        size = "x".join(str(n) for n in self.shape)
        return f"{self.op}/{self.direction}/{size}/{self.layout}/{self.dtype}"

    @property
    def distinct_channels(self) -> int:
        """The most channels, at most 8, that divide C: solving all 100 MB in float64 would take minutes."""
        return max(count for count in range(1, 9) if self.shape[1] % count == 0)

    @property
    def problem(self) -> NormCase | ReluCase:
        """The conformance case whose tensors and answers, repeated along the channels, are this one's."""
        shape = (self.shape[0], self.distinct_channels, *self.shape[2:])
        if not self.spec.norm:
            return ReluCase(shape, self.layout, self.dtype, ACT)
        return NormCase(
            shape,
            self.layout,
            self.dtype,
            act=ACT if self.spec.act else None,
            residual="same" if self.spec.residual else None,
            training=self.spec.training,
            momentum=MOMENTUM,
            eps=EPS,
        )

    @property
    def tensor_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def traffic(self) -> tuple[tuple[int, int], ...]:
        """(tensors read, tensors written) of each pass when every tensor is touched once: the floor."""
        fwd = (2, 1) if self.spec.residual else (1, 1)
        bwd = ((2, 1), (1, 1)) if self.spec.residual else ((2, 1),)
        return {"fwd": (fwd,), "bwd": bwd, "fwd+bwd": (fwd, *bwd)}[self.direction]


def all_cases(device: str = "cpu") -> list[Case]:
    """Every case of a device, shape after shape: a run that is cut short has seen every op."""
    shapes = CPU_SHAPES if device == "cpu" else CUDA_SHAPES
    return [
        Case(op, direction, shape, layout, dtype, device)
        for shape in shapes
        for dtype in DTYPES
        for layout in LAYOUTS
        for op, spec in OPS.items()
        if not spec.module or shape == TINY
        for direction in spec.directions
    ]


def select(
    cases: list[Case],
    *,
    columns: list[str] | None = None,
    substrings: list[str] | None = None,
    dtypes: list[str] | None = None,
    layouts: list[str] | None = None,
) -> list[Case]:
    """The cases of the named columns, dtypes and layouts whose name contains one of the substrings."""
    return [
        case
        for case in cases
        if (not columns or case.spec.column in columns or case.op in columns)
        and (not substrings or any(part in case.name for part in substrings))
        and (not dtypes or case.dtype in dtypes)
        and (not layouts or case.layout in layouts)
    ]
