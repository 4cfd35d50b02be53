"""Synchronised batch norm: the eager formulas around differentiable all-reduces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnorm.eager import batch_norm as eager
from fastnorm.eager.general_relu import activate
from fastnorm.eager.layout import acc_dtype, memory_format_of


def synchronized_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    factor: Tensor | None,
    momentum: float,
    eps: float,
    unbiased: bool,
    group: Any,
    act: tuple[bool, float | None, float | None, float | None, float | None],
) -> Tensor:
    from torch.distributed.nn.functional import all_reduce  # not every torch is built with it

    dims = [d for d in range(x.dim()) if d != 1]
    xs = x.to(acc_dtype(x))
    count = xs.new_tensor([x.numel() // max(x.shape[1], 1)])
    totals = all_reduce(torch.cat([xs.sum(dims), count]), group=group)
    n = int(totals[-1])
    if n == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape} in all")
    if n == 0:
        return eager.batch_norm(x, weight, bias, residual, None, eps, False, True, *act)
    mean = totals[:-1] / n
    var = all_reduce((xs - eager.per_channel(mean, x)).square().sum(dims), group=group) / n
    with torch.no_grad():
        eager.move_running(running_mean, running_var, mean.detach(), var.detach(), n, momentum, factor)
    z = eager.normalize(x, mean, eager.inverse_std(var, n, eps, unbiased), weight, bias, residual)
    y = (activate(z, *act[1:]) if act[0] else z).to(x.dtype)
    return y.contiguous(memory_format=memory_format_of(x))
