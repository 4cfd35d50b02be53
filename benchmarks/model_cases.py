"""The whole models that are timed, in which layout, and what is promised of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from fastnorm.testing.zoo import ZOO, Size, ZooModel

CONTIGUOUS, CHANNELS_LAST = LAYOUTS = ("contiguous", "channels_last")
CONVERTED, RECOMPUTING = "fastnorm", "fastnorm_recompute"  # candidates
CEILING = "without_norms"  # no candidate: what would be left if norms and activations took no time


@dataclasses.dataclass(frozen=True)
class ModelOp:
    column: Literal["model"] = "model"


@dataclasses.dataclass(frozen=True)
class ModelCase:
    """A training step (forward, loss, backward) of a model of the zoo."""

    model: str
    layout: str
    size: Size = "bench"
    dtype: str = "fp32"
    device: str = "cpu"
    op: str = "model"
    direction: str = "step"
    spec: ModelOp = ModelOp()

    @property
    def name(self) -> str:
        return f"{self.model}/{self.layout}/{self.size}"

    @property
    def entry(self) -> ZooModel:
        return ZOO[self.model]

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples, and the side of an image or the length of a text."""
        scale = self.entry.scale(self.size)
        return (scale.batch, scale.length)


def model_cases(size: Size = "bench") -> list[ModelCase]:
    """Images in both layouts, texts in the only one."""
    return [
        ModelCase(name, layout, size)
        for name, entry in ZOO.items()
        for layout in (LAYOUTS if entry.images else LAYOUTS[:1])
    ]


def select(cases: Sequence[ModelCase], substrings: Sequence[str]) -> list[ModelCase]:
    """Those whose name contains one of the strings; all for none."""
    return [case for case in cases if not substrings or any(part in case.name for part in substrings)]


@dataclasses.dataclass(frozen=True)
class ModelTarget:
    """At least so many times as fast as eager, in the better of the layouts or in every one; at most so many bytes.

    candidate: whose numbers count; what recomputation saves in bytes it pays for in time.
    """

    name: str
    model: str = ""  # every model
    eager: float | None = None
    better_layout: bool = False
    saved: float | None = None  # of eager's bytes
    candidate: str = CONVERTED


RESNET18 = "torchvision.resnet18"
MODEL_TARGETS = (
    ModelTarget("ResNet-18, 32 x 64 x 64, the better layout", RESNET18, eager=1.25, better_layout=True),
    ModelTarget("ResNet-18, bytes kept for backward", RESNET18, saved=0.75),
    ModelTarget("the same with fastnorm.recompute", RESNET18, saved=0.75, candidate=RECOMPUTING),
    ModelTarget("no model slower by more than 2 %", eager=1 / 1.02),
)
