"""Fake implementations: shapes, dtypes and strides of every op's outputs, for tracing and compiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnorm.eager.layout import acc_dtype, memory_format_of
from fastnorm.eager.row_norm import number_of_sets


def _output_like(x: Tensor, *others: object) -> Tensor:
    """An output for x. RuntimeError where another tensor lies elsewhere: one meta tensor among others leads here."""
    for other in others:
        if isinstance(other, Tensor) and other.device != x.device:
            raise RuntimeError(f"all tensors must be on x's device {x.device}, one is on {other.device}")
    return torch.empty_like(x, memory_format=memory_format_of(x), requires_grad=False)


def general_relu_fwd(x: Tensor, *activation: float | None) -> Tensor:
    return _output_like(x)


def general_relu_bwd(dy: Tensor, x: Tensor, *activation: float | None) -> Tensor:
    return _output_like(x, dy)


def batch_norm_fwd(x: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[1], dtype=acc_dtype(x))
    return _output_like(x, *rest), mean, torch.empty_like(mean)


def batch_norm_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    batch_stats: bool,
    unbiased: bool,
    need_dx: bool,
    act: bool,
    *activation: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like_x = _output_like(x, dy, weight, bias, residual, mean, rstd)
    dx = like_x if need_dx else x.new_empty(0)
    dresidual = _output_like(x) if act and residual is not None else x.new_empty(0)
    dweight = mean.new_empty(mean.shape, dtype=mean.dtype if weight is None else weight.dtype)
    dbias = mean.new_empty(mean.shape, dtype=mean.dtype if bias is None else bias.dtype)
    return dx, dweight, dbias, dresidual


def row_norm_fwd(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dims: int,
    groups: int,
    eps: float,
    rms: bool,
    *rest: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    rstd = x.new_empty(number_of_sets(x, dims, groups), dtype=acc_dtype(x))
    return _output_like(x, weight, bias, residual), rstd.new_empty(0) if rms else torch.empty_like(rstd), rstd


def row_norm_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    dims: int,
    groups: int,
    rms: bool,
    unbiased: bool,
    need_dx: bool,
    act: bool,
    *activation: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like_x = _output_like(x, dy, weight, bias, residual, mean, rstd)
    dx = like_x if need_dx else x.new_empty(0)
    dresidual = _output_like(x) if act and residual is not None else x.new_empty(0)
    dweight, dbias = (rstd.new_empty(0) if p is None else p.new_empty(p.shape) for p in (weight, bias))
    return dx, dweight, dbias, dresidual


def activation_stats_fwd(x: Tensor, bins: int, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty((), dtype=acc_dtype(x))
    return mean, torch.empty_like(mean), x.new_empty(bins, dtype=torch.int64)


FAKES: dict[str, Callable[..., Any]] = {
    "general_relu_fwd": general_relu_fwd,
    "general_relu_bwd": general_relu_bwd,
    "batch_norm_fwd": batch_norm_fwd,
    "batch_norm_bwd": batch_norm_bwd,
    "row_norm_fwd": row_norm_fwd,
    "row_norm_bwd": row_norm_bwd,
    "activation_stats_fwd": activation_stats_fwd,
}
