"""What a case is: which op, over which tensors, with which options. The table of all cases is tables.py."""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, fields, replace
from typing import Any, ClassVar, Protocol

import torch

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Act:
    """GeneralRelu's numbers; the oracle and the library's ops read the same four."""

    leak: float | None = None
    sub: float | None = None
    maxv: float | None = None
    max_leak: float | None = None

    @property
    def numbers(self) -> tuple[float | None, float | None, float | None, float | None]:
        return (self.leak, self.sub, self.maxv, self.max_leak)


# low_max and negative_leak clamp where z < 0: "above maxv" must not be taken to mean "z > 0".
ACTS = {
    "relu": Act(),
    "relu6": Act(maxv=1.5),
    "relu_sub": Act(sub=0.4),
    "leaky": Act(0.1),
    "leaky_sub": Act(0.1, 0.4),
    "full": Act(0.1, 0.4, 0.7),
    "max_leak": Act(0.1, 0.4, 0.7, 0.05),
    "relu_max_leak": Act(None, None, 0.9, 0.25),
    "low_max": Act(0.5, 0.4, -0.9),
    "low_max_leak": Act(0.5, 0.4, -0.9, 0.2),
    "negative_leak": Act(-0.3, -0.2, 0.6),
    "zero_leak": Act(0.0, 0.0, 1.0, 0.0),
    "steep": Act(1.5, 0.25, 0.5, 2.0),
}


@dataclass(frozen=True)
class ReluCase:
    """general_relu over one tensor."""

    column: ClassVar[str] = "general_relu"
    shape: tuple[int, ...]
    layout: str = "contiguous"
    dtype: str = "fp32"
    act: str = "full"
    data: str = "normal"
    dy: str = "same"
    seed: int = 0

    @property
    def name(self) -> str:
        return case_name(self, ReluCase((1,)))


@dataclass(frozen=True)
class NormCase:
    """batch_norm over one tensor: act(norm(x) + residual)."""

    column: ClassVar[str] = "batch_norm"
    shape: tuple[int, ...]
    layout: str = "contiguous"
    dtype: str = "fp32"
    weight: str | None = "fp32"  # the dtype of each, None where it is missing
    bias: str | None = "fp32"
    stats: str | None = "fp32"
    act: str | None = None
    residual: str | None = None  # the layout of the residual; "same" for x's
    training: bool = True
    momentum: float = 0.1
    eps: float = 1e-5
    unbiased: bool = False
    detach_stats: bool = False
    data: str = "normal"
    dy: str = "same"  # the layout of the upstream gradient; see problems.UPSTREAM
    vectors: str = "contiguous"  # the layout of the per-channel tensors
    seed: int = 0

    @property
    def name(self) -> str:
        return case_name(self, NormCase((1,)))

    def but(self, **changes: object) -> NormCase:
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class RowCase:
    """A norm whose statistics lie inside one sample: act(norm(x) + residual)."""

    column: ClassVar[str] = "row_norm"
    shape: tuple[int, ...]
    kind: str  # layer, rms: over the last `size` dims; group: `size` groups; instance; position: over C at each
    size: int = 1
    layout: str = "contiguous"
    dtype: str = "fp32"
    weight: str | None = "fp32"
    bias: str | None = "fp32"
    act: str | None = None
    residual: str | None = None
    eps: float = 1e-5
    unbiased: bool = False
    data: str = "normal"
    dy: str = "same"
    vectors: str = "contiguous"  # the layout of weight and bias
    seed: int = 0

    @property
    def dims(self) -> int:
        """How many trailing dims a set spans; 0 where it goes by channels."""
        return self.size if self.kind in ("layer", "rms") else 0

    @property
    def groups(self) -> int:
        """How many sets share out a sample's channels; 0 where a set is not made of whole channels."""
        return {"group": self.size, "instance": self.shape[1 % len(self.shape)]}.get(self.kind, 0)

    @property
    def rms(self) -> bool:
        return self.kind == "rms"

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return self.shape[-self.dims :] if self.dims else (self.shape[1],)

    @property
    def name(self) -> str:
        return case_name(self, RowCase((1,), "", bias=None if self.rms else "fp32"))

    def but(self, **changes: object) -> RowCase:
        return replace(self, **changes)  # type: ignore[arg-type]


class Named(Protocol):
    """What every case has, those without gradients too."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    column: ClassVar[str]

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def data(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...


Case = ReluCase | NormCase | RowCase


def case_name(case: Named, default: Named) -> str:
    """What differs from the default: "5x7x3x11-channels_last-bf16-act=full"."""
    parts = ["x".join(map(str, case.shape))]
    for field in fields(case):
        value = getattr(case, field.name)
        if field.name != "shape" and value != getattr(default, field.name):
            plain = field.name in ("kind", "layout", "dtype", "data")
            parts.append(str(value) if plain else f"{field.name}={value}")
    return "-".join(parts)


# Odd primes where a shape has no reason of its own to be otherwise.
SHAPES: dict[tuple[int, ...], str] = {
    (5, 7, 3, 11): "odd everything",
    (11, 13): "rank 2",
    (3, 5, 29): "rank 3",
    (2, 3, 5, 7, 3): "rank 5",
    (4, 1, 7, 5): "one channel",
    (13, 1): "one channel, one position",
    (7, 19, 1, 1): "one position, C past a vector of 16",
    (2, 3, 17, 19): "three channels, odd rows",
    (3, 16, 4, 4): "whole vectors",
    (2, 17, 8, 8): "a vector and one channel",
    (1, 5, 13, 1): "one sample",
    (2, 1, 1, 1): "two values",
}
LARGE_SHAPES: dict[tuple[int, ...], str] = {
    (131, 67): "rank 2, many rows",
    (3, 257, 3, 3): "many channels, few values",
    (2, 3, 101, 103): "large images, few channels",
    (17, 33, 13, 11): "more than one block in every direction",
    (5, 64, 28, 28): "whole vectors",
    (3, 31, 211): "rank 3",
    (2, 5, 7, 31, 17): "rank 5",
    (1021, 2): "two channels in long columns",
}
LAYOUTS = (
    "contiguous",
    "channels_last",
    "offset",
    "channels_last_offset",
    "channel_slice",
    "channels_last_slice",
    "padded_rows",
    "batch_slice",
    "every_second",
    "transposed",
    "channel_first",
    "expanded",
    "expanded_channel",
)
PLAIN_LAYOUTS = ("contiguous", "channels_last")


def fits(shape: tuple[int, ...], layout: str) -> bool:
    """Channels last asks for images or volumes, most others for a dim of channels."""
    if len(shape) < 2:
        return layout in ("contiguous", "offset", "every_second")
    return "channels_last" not in layout or len(shape) in (4, 5)


def tiny(case: Named) -> bool:
    """Small enough for Triton's interpreter, which takes milliseconds a program."""
    return math.prod(case.shape) <= 2048
