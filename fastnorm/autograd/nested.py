"""Nested tensors: torch's own norms, and what is fused elsewhere behind them. No kernel here reads ragged rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fastnorm.eager.general_relu import activate

Act = tuple[bool, float | None, float | None, float | None, float | None]


def layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    act: Act,
    residual: Tensor | None,
) -> Tensor:
    return _followed(F.layer_norm(x, list(shape), weight, bias, eps), act, residual)


def rms_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    act: Act,
    residual: Tensor | None,
) -> Tensor:
    return _followed(F.rms_norm(x, list(shape), weight, eps), act, residual)


def _followed(y: Tensor, act: Act, residual: Tensor | None) -> Tensor:
    z = y if residual is None else y + residual
    active, *numbers = act
    return activate(z, *numbers) if active else z
