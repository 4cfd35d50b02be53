"""Inputs with mean 0 and std 1: the training set's two numbers, as a transform and as a hook on batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Normalize:
    """Inputs with the training set's mean and std taken out: (x - mean) / std.

    `transform(x)` takes a tensor of any shape and floating dtype; `transform.batch((x, y))` normalises what comes first
    in a batch and leaves the rest alone.

    Args:
        mean: the training set's mean.
        std: its standard deviation.

    Raises:
        ValueError: for a std that is not positive, or numbers that are not finite.

    Source: fast.ai's `_norm` and BatchTransformCB.
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"mean and std must be finite, std above 0; got {self.mean} and {self.std}")

    @classmethod
    def of(cls, inputs: Tensor | Iterable[Tensor | tuple[Any, ...] | list[Any]]) -> Normalize:
        """The numbers of a training set: one tensor, or batches (tensors, or (x, ...)) that are read once.

        Over all values, in float64; the std is the unbiased one, as `Tensor.std`'s. Batches are merged by their counts.

        Raises:
            ValueError: for a training set of fewer than two values.
        """
        count, mean, squares = 0, 0.0, 0.0  # squares: the sum of squared distances from the mean
        for batch in [inputs] if isinstance(inputs, Tensor) else inputs:
            values = (batch if isinstance(batch, Tensor) else batch[0]).detach().to(torch.float64)
            if values.numel() == 0:
                continue
            own = float(values.mean())
            apart, added = own - mean, values.numel()
            squares += float((values - own).square().sum()) + apart**2 * count * added / (count + added)
            count += added
            mean += apart * added / count
        if count < 2:
            raise ValueError(f"a training set of {count} values has no std")
        return cls(mean, math.sqrt(squares / (count - 1)))

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def batch(self, batch: tuple[Any, ...] | list[Any]) -> tuple[Any, ...]:
        """(x, *rest) with x normalised."""
        return self(batch[0]), *batch[1:]
