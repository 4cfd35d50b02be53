"""The benchmark's cases: which op, in which direction, over which tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from fastnorm.testing.cases import ACTS, NormCase, ReluCase, RowCase
from fastnorm.testing.cases import DTYPES as TORCH_DTYPES
from fastnorm.testing.stats import StatsCase

Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape, ...]]  # by device

DTYPES = {name: TORCH_DTYPES[name] for name in ("fp32", "bf16")}
LAYOUTS = ("contiguous", "channels_last")

TINY = (8, 3, 32, 32)
IMAGES = (32, 3, 224, 224)
FRESH_PAGES = (64, 128, 56, 56)  # 103 MB of fp32: the allocator maps and unmaps it on every call
CPU_SHAPES = ((32, 64, 56, 56), (32, 256, 14, 14), (256, 64, 8, 8), TINY, IMAGES, FRESH_PAGES)

FEW_CHANNELS = (256, 3, 224, 224)  # 154 MB of fp32 in three channels: fewer than there are multiprocessors
CUDA_SHAPES = ((256, 128, 56, 56), (32, 64, 56, 56), FEW_CHANNELS, (256, 256, 28, 28), TINY)

TINY_ROWS = (64, 128)
FRESH_ROWS = (32768, 768)  # 101 MB of fp32
FEW_IMAGES = (8, 64, 56, 56)
ROWS: Shapes = {"cpu": ((4096, 768), (512, 4096), FRESH_ROWS), "cuda": ((16384, 4096), (1024, 12288), (32768, 768))}
IMAGES_OF_ROWS: Shapes = {"cpu": (FEW_IMAGES,), "cuda": ((256, 64, 56, 56),)}
GROUPED: Shapes = {
    "cpu": ((8, 256, 32, 32), (32, 64, 56, 56), FRESH_PAGES),
    "cuda": ((32, 256, 64, 64), (256, 64, 56, 56)),
}
INSTANCES: Shapes = {"cpu": (FEW_IMAGES, FRESH_PAGES), "cuda": ((256, 64, 56, 56), (8, 64, 512, 512))}
POSITIONS: Shapes = {"cpu": ((8, 96, 56, 56), (8, 384, 14, 14)), "cuda": ((256, 96, 56, 56), (256, 384, 14, 14))}

# The lessons' first layer at their batch size, a large activation, a tiny one.
STATS: Shapes = {
    "cpu": ((1024, 8, 14, 14), (32, 64, 56, 56), TINY),
    "cuda": ((1024, 8, 14, 14), (256, 64, 56, 56), TINY),
}

ACT = "full"  # leak, sub and maxv
LEAK, SUB, MAXV = (number for number in ACTS[ACT].numbers if number is not None)
MOMENTUM, EPS, GROUPS = 0.1, 1e-5, 32
# Elements of a row problem; with fewer, equal numbers are added up so often that peers with bf16 sums go wrong.
SOLVED = 2**22


@dataclasses.dataclass(frozen=True)
class Op:
    """What an op name of the benchmark computes: `act(norm(x) + residual)`, through functions or modules."""

    column: str  # the file name that the op has in every folder
    kind: str = "batch"  # which norm; "none" for the activation alone, "stats" for activation_stats
    act: bool = False
    residual: bool = False
    training: bool = True
    module: bool = False
    both: bool = False  # forward and backward are measured together
    shapes: Shapes = dataclasses.field(default_factory=lambda: {"cpu": CPU_SHAPES, "cuda": CUDA_SHAPES}, hash=False)

    @property
    def directions(self) -> tuple[str, ...]:
        if self.module or self.both:
            return ("fwd+bwd",)
        return ("fwd", "bwd") if self.training else ("fwd",)


def at(*shapes: Shape) -> Shapes:
    return {device: shapes for device in ("cpu", "cuda")}


def joined(*parts: Shapes) -> Shapes:
    return {device: tuple(shape for part in parts for shape in part[device]) for device in ("cpu", "cuda")}


LAYERS = joined(ROWS, IMAGES_OF_ROWS)
OPS = {
    "batch_norm": Op("batch_norm"),
    "batch_norm_act": Op("batch_norm", act=True),
    "batch_norm_residual_act": Op("batch_norm", act=True, residual=True),
    "batch_norm_eval": Op("batch_norm", training=False),
    "batch_norm_module": Op("batch_norm", module=True, shapes=at(TINY)),
    "batch_norm_act_module": Op("batch_norm", act=True, module=True, shapes=at(TINY)),
    "general_relu": Op("general_relu", "none", act=True),
    "general_relu_module": Op("general_relu", "none", act=True, module=True, shapes=at(TINY)),
    "layer_norm": Op("row_norm", "layer", shapes=LAYERS),
    "layer_norm_residual_act": Op("row_norm", "layer", act=True, residual=True, both=True, shapes=LAYERS),
    "layer_norm_module": Op("row_norm", "layer", module=True, shapes=at(TINY_ROWS)),
    "rms_norm": Op("row_norm", "rms", both=True, shapes=ROWS),
    "group_norm": Op("row_norm", "group", shapes=GROUPED),
    "group_norm_act": Op("row_norm", "group", act=True, both=True, shapes=GROUPED),
    "group_norm_act_module": Op("row_norm", "group", act=True, module=True, shapes=at(TINY)),
    "instance_norm": Op("row_norm", "instance", shapes=INSTANCES),
    "layer_norm_2d": Op("row_norm", "position", shapes=POSITIONS),
    "activation_stats": Op("activation_stats", "stats", training=False, shapes=STATS),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One measured situation; `name` is what `--case` matches and what the results file calls it."""

    op: str
    direction: str
    shape: Shape
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
    def groups(self) -> int:
        """Of group norm: 32, or as many of them as divide the channels."""
        return math.gcd(GROUPS, self.shape[1])

    @property
    def repeated_dim(self) -> int:
        """The dim along which a small problem is repeated: statistics lie in one channel, or in one sample."""
        return 0 if self.spec.column in ("row_norm", "activation_stats") else 1

    @property
    def distinct(self) -> int:
        """How many channels or samples are solved: solving all 100 MB in float64 would take minutes.

        At most 8 channels, or samples of 4 million elements, and so many that they divide all.
        """
        size = self.shape[self.repeated_dim]
        if self.spec.kind == "stats":  # of all values together
            return size
        most = 8 if self.repeated_dim else max(1, SOLVED // math.prod(self.shape[1:]))
        return max(count for count in range(1, min(most, size) + 1) if size % count == 0)

    @property
    def problem(self) -> NormCase | ReluCase | RowCase | StatsCase:
        """The conformance case whose tensors and answers, repeated, are this one's."""
        if self.spec.kind == "stats":
            return StatsCase(self.shape, self.layout, self.dtype)
        act, residual = ACT if self.spec.act else None, "same" if self.spec.residual else None
        if self.repeated_dim == 0:
            size = {"group": self.groups, "layer": len(self.shape) - 1, "rms": len(self.shape) - 1}
            rms = self.spec.kind == "rms"  # torch's own has no fast path for a weight of another dtype
            return RowCase(
                (self.distinct, *self.shape[1:]),
                self.spec.kind,
                size.get(self.spec.kind, 1),
                self.layout,
                self.dtype,
                weight=self.dtype if rms else "fp32",
                bias=None if rms else "fp32",
                act=act,
                residual=residual,
                eps=EPS,
            )
        shape = (self.shape[0], self.distinct, *self.shape[2:])
        if self.spec.kind == "none":
            return ReluCase(shape, self.layout, self.dtype, ACT)
        return NormCase(
            shape,
            self.layout,
            self.dtype,
            act=act,
            residual=residual,
            training=self.spec.training,
            momentum=MOMENTUM,
            eps=EPS,
        )

    @property
    def tensor_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def traffic(self) -> tuple[tuple[int, int], ...]:
        """(tensors read, tensors written) of each pass when every tensor is touched once: the floor.

        A "call" is a module's forward on a GPU in host time: what the device does meanwhile does not count. Statistics
        write nothing: no floor here only reads.
        """
        if self.spec.kind == "stats":
            return ()
        fwd = (2, 1) if self.spec.residual else (1, 1)
        bwd = ((2, 1), (1, 1)) if self.spec.residual else ((2, 1),)
        return {"fwd": (fwd,), "call": (), "bwd": bwd, "fwd+bwd": (fwd, *bwd)}[self.direction]


def all_cases(device: str = "cpu") -> list[Case]:
    """Every case of a device, each op's first shape before any second: a run cut short has seen every op."""
    most = max(len(spec.shapes[device]) for spec in OPS.values())
    return [
        Case(op, direction, spec.shapes[device][place], layout, dtype, device)
        for place in range(most)
        for dtype in DTYPES
        for layout in LAYOUTS
        for op, spec in OPS.items()
        if place < len(spec.shapes[device]) and (layout == "contiguous" or len(spec.shapes[device][place]) == 4)
        for direction in (*spec.directions, *(("call",) if spec.module and device == "cuda" else ()))
    ]


class Selectable(Protocol):
    """What `select` asks of a case."""

    @property
    def op(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> Any: ...


Chosen = TypeVar("Chosen", bound=Selectable)


def select(
    cases: list[Chosen],
    *,
    columns: list[str] | None = None,
    substrings: list[str] | None = None,
    dtypes: list[str] | None = None,
    layouts: list[str] | None = None,
) -> list[Chosen]:
    """The cases of the named columns, dtypes and layouts whose name contains one of the substrings."""
    return [
        case
        for case in cases
        if (not columns or case.spec.column in columns or case.op in columns)
        and (not substrings or any(part in case.name for part in substrings))
        and (not dtypes or case.dtype in dtypes)
        and (not layouts or case.layout in layouts)
    ]
