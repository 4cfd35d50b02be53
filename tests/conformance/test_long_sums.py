"""Two million values of U[0, 1) that share statistics (S3): the mean and the variance are off by 3e-7 at most."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastnorm.ops import OPS

from .backends import DEVICE, Backend, each_backend

BOUND = 3e-7
COUNT = 2_000_000
EPS = 1e-5
LINEAR = (False, None, None, None, None)
BATCH = {"rows": (COUNT, 3), "one column": (COUNT, 1), "images": (2, 3, 1000, 1000), "small images": (8000, 3, 14, 18)}
ROWS = {  # the shape; dims and groups of the op
    "layer": ((2, COUNT), 1, 0),
    "layer over images": ((2, 5, 500, 800), 3, 0),
    "group": ((1, 6, 1000, 1000), 0, 3),
    "instance": ((1, 3, 1000, 2000), 0, 3),
}


def each(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> pytest.MarkDecorator:
    """Over names; images in both memory formats."""
    pairs = [(name, last) for name, shape in shapes for last in (False, True) if len(shape) == 4 or not last]
    return pytest.mark.parametrize("name, last", pairs)


def uniform(shape: tuple[int, ...], last: bool) -> Tensor:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last if last and x.dim() == 4 else torch.contiguous_format)


def check(exact: Tensor, mean: Tensor, rstd: Tensor) -> None:
    """exact: `[sets, values]` in float64."""
    var = rstd.cpu().double().flatten() ** -2 - EPS
    assert float((mean.cpu().double().flatten() - exact.mean(1)).abs().max()) <= BOUND
    assert float((var - exact.var(1, correction=0)).abs().max()) <= BOUND


@pytest.mark.column("batch_norm")
@each(BATCH.items())
@each_backend(fast=True)
def test_channels(name: str, last: bool, backend: Backend) -> None:
    x = uniform(BATCH[name], last)
    arguments: tuple[Any, ...] = (None,) * 6 + (True, 0.1, EPS, False, False, *LINEAR)
    _, mean, rstd = OPS[backend.namespace].batch_norm_fwd(x.to(DEVICE), *arguments)
    check(x.double().transpose(0, 1).flatten(1), mean, rstd)


@pytest.mark.column("row_norm")
@each((name, row[0]) for name, row in ROWS.items())
@each_backend(fast=True)
def test_sets_of_a_sample(name: str, last: bool, backend: Backend) -> None:
    shape, dims, groups = ROWS[name]
    x = uniform(shape, last)
    arguments: tuple[Any, ...] = (None, None, None, dims, groups, EPS, False, False, *LINEAR)
    _, mean, rstd = OPS[backend.namespace].row_norm_fwd(x.to(DEVICE), *arguments)
    check(x.double().reshape(-1, COUNT), mean, rstd)


def test_one_accumulator_is_far_off() -> None:
    """The bound tells sums apart: one fp32 number that takes value after value misses it."""
    x = uniform((COUNT,), False)
    sequential = float(np.add.accumulate(x.numpy())[-1]) / COUNT
    assert abs(sequential - float(x.double().mean())) > 3 * BOUND
