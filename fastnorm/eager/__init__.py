"""The reference backend: forward and backward of every op in plain PyTorch, any device, any dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastnorm.eager.activation_stats import activation_stats_fwd
from fastnorm.eager.batch_norm import batch_norm_bwd, batch_norm_fwd
from fastnorm.eager.general_relu import general_relu_bwd, general_relu_fwd
from fastnorm.eager.row_norm import row_norm_bwd, row_norm_fwd

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "general_relu_fwd": general_relu_fwd,
    "general_relu_bwd": general_relu_bwd,
    "batch_norm_fwd": batch_norm_fwd,
    "batch_norm_bwd": batch_norm_bwd,
    "row_norm_fwd": row_norm_fwd,
    "row_norm_bwd": row_norm_bwd,
    "activation_stats_fwd": activation_stats_fwd,
}
