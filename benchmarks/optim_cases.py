"""The optimizers' cases: which optimizer, over which list of parameters."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.cases import DTYPES, Shape

Numbers = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class OptimOp:
    """An optimizer with its options. passes: what a step reads and writes at least, in copies and triads."""

    column: str
    torch_class: str
    options: Numbers = dataclasses.field(hash=False)
    passes: tuple[tuple[int, int], ...]
    states: int
    clip: bool = False  # gradients come scaled, and are unscaled and clipped on the way


SGD = {"lr": 0.01, "momentum": 0.9}
COPY, TRIAD = (1, 1), (2, 1)
OPTIM_OPS = {
    "sgd": OptimOp("sgd", "SGD", {"lr": 0.01}, (TRIAD,), 0),
    "sgd_momentum": OptimOp("sgd", "SGD", SGD, (COPY, TRIAD), 1),
    "rmsprop": OptimOp("rmsprop", "RMSprop", {"lr": 0.001}, (COPY, TRIAD), 1),
    "rmsprop_centered_momentum": OptimOp(
        "rmsprop", "RMSprop", {"lr": 0.001, "momentum": 0.9, "centered": True}, (TRIAD, TRIAD, TRIAD), 3
    ),
    "adam": OptimOp("adam", "Adam", {"lr": 0.001}, (COPY, COPY, TRIAD), 2),
    "adamw": OptimOp("adam", "AdamW", {"lr": 0.001, "weight_decay": 0.01}, (COPY, COPY, TRIAD), 2),
    "adam_clip": OptimOp("adam", "Adam", {"lr": 0.001}, (COPY, COPY, COPY, COPY), 2, clip=True),
}


@functools.cache
def resnet18() -> tuple[Shape, ...]:
    """The 62 parameters of a ResNet-18, 11.7 million numbers."""
    found: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    before = 64
    for width in (64, 128, 256, 512):
        for _ in range(2):
            found += [(width, before, 3, 3), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            if width != before:
                found += [(width, before, 1, 1), (width,), (width,)]
            before = width
    return (*found, (1000, 512), (1000,))


LISTS: dict[str, Callable[[], tuple[Shape, ...]]] = {
    "resnet18": resnet18,
    "1000x64": lambda: ((64,),) * 1000,
    "1000x1000": lambda: ((1000,),) * 1000,
    "400groups": lambda: ((1000,),) * 400,
    "160x160k": lambda: ((160_000,),) * 160,
    "25m": lambda: ((25_000_000,),),
    "50m": lambda: ((50_000_000,),),
}


@dataclasses.dataclass(frozen=True)
class OptimCase:
    """One optimizer over one list; it has what the reports ask of a `Case`.

    direction: "step"; or "call", the same on a GPU in host time, until the step returns.
    """

    op: str
    parameters: str
    dtype: str
    device: str = "cpu"
    direction: str = "step"
    layout: str = "contiguous"

    @property
    def spec(self) -> OptimOp:
        return OPTIM_OPS[self.op]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return LISTS[self.parameters]()

    @property
    def shape(self) -> Shape:
        """How many parameters, and how many numbers in all."""
        return (len(self.shapes), sum(math.prod(shape) for shape in self.shapes))

    @property
    def name(self) -> str:
        return f"{self.op}/{self.direction}/{self.parameters}/{self.dtype}"

    @property
    def traffic(self) -> tuple[tuple[int, int], ...]:
        return () if self.direction == "call" else self.spec.passes

    @property
    def tensor_bytes(self) -> int:
        """Of each tensor of the floor's passes. In bf16 parameter and gradient are narrower, the state is not."""
        units = sum(read + written for read, written in self.spec.passes)
        states = 2 * self.spec.states
        return self.shape[1] * ((units - states) * DTYPES[self.dtype].itemsize + states * 4) // units


def optim_cases(device: str = "cpu") -> list[OptimCase]:
    cases = [OptimCase(op, name, dtype, device) for name in LISTS for dtype in DTYPES for op in OPTIM_OPS]
    if device == "cuda":
        plain = [op for op, spec in OPTIM_OPS.items() if not spec.clip]
        cases += [OptimCase(op, "1000x64", dtype, device, "call") for dtype in DTYPES for op in plain]
    return cases
