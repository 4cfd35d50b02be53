"""Triton kernels and their launchers, which take their ops' schemas. Imports torch and triton only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .activation_stats import activation_stats_fwd
from .batch_norm_bwd import batch_norm_bwd
from .batch_norm_fwd import batch_norm_fwd
from .general_relu import general_relu_bwd, general_relu_fwd
from .optim import optim_step
from .row_norm_bwd import row_norm_bwd
from .row_norm_fwd import row_norm_fwd

LAUNCHERS: dict[str, Callable[..., Any]] = {
    "general_relu_fwd": general_relu_fwd,
    "general_relu_bwd": general_relu_bwd,
    "batch_norm_fwd": batch_norm_fwd,
    "batch_norm_bwd": batch_norm_bwd,
    "row_norm_fwd": row_norm_fwd,
    "row_norm_bwd": row_norm_bwd,
    "activation_stats_fwd": activation_stats_fwd,
}

__all__ = [
    "LAUNCHERS",
    "activation_stats_fwd",
    "batch_norm_bwd",
    "batch_norm_fwd",
    "general_relu_bwd",
    "general_relu_fwd",
    "optim_step",
    "row_norm_bwd",
    "row_norm_fwd",
]
