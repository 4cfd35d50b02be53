"""Batch norm in plain PyTorch: the specification, forward and backward (docs/math.md, N1-N6)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnorm.eager.general_relu import activate, activation_grad
from fastnorm.eager.layout import acc_dtype, memory_format_of


def per_channel(v: Tensor, x: Tensor) -> Tensor:
    """[C] in the arithmetic's dtype, shaped to broadcast over x [N, C, *]."""
    return v.to(acc_dtype(x)).reshape(1, -1, *([1] * (x.dim() - 2)))


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel, [C] each, in the arithmetic's dtype; sums in fp64 (N1)."""
    dims = [d for d in range(x.dim()) if d != 1]
    acc = acc_dtype(x)
    x = x.to(acc)
    mean = x.mean(dims, dtype=torch.float64).to(acc)
    return mean, (x - per_channel(mean, x)).square().mean(dims, dtype=torch.float64).to(acc)


def elements_per_channel(x: Tensor) -> int:
    return x.numel() // max(x.shape[1], 1)


def inverse_std(var: Tensor, n: int, eps: float, unbiased: bool) -> Tensor:
    """1 / sqrt(var + eps), of the unbiased variance n / (n - 1) * var if asked for (N2)."""
    return torch.rsqrt((var * (n / (n - 1)) if unbiased else var) + eps)


def normalize(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """z = (x - mean) * (rstd * weight) + bias + residual, in the arithmetic's dtype (N3)."""
    scale = rstd if weight is None else rstd * weight.to(rstd.dtype)
    z = (x.to(acc_dtype(x)) - per_channel(mean, x)) * per_channel(scale, x)
    if bias is not None:
        z = z + per_channel(bias, x)
    return z if residual is None else z + residual.to(z.dtype)


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    fixed_stats: tuple[Tensor, Tensor] | None,
    eps: float,
    unbiased: bool,
    detach_stats: bool,
    act: bool,
    *activation: float | None,
) -> Tensor:
    """act(batch norm(x) + residual), differentiable to any order and under every functorch transform.

    fixed_stats are (mean, rstd) of evaluation mode; without them the batch's own are used, through which gradients
    flow unless detach_stats.
    """
    if fixed_stats is not None:
        mean, rstd = fixed_stats
    else:
        mean, var = batch_statistics(x.detach() if detach_stats else x)
        rstd = inverse_std(var, elements_per_channel(x), eps, unbiased)
    z = normalize(x, mean, rstd, weight, bias, residual)
    return (activate(z, *activation) if act else z).to(x.dtype)


def move_running(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    var: Tensor,
    n: int,
    momentum: float,
    factor: Tensor | None,
) -> None:
    """running = lerp(running, batch statistic, momentum or factor), in place, of n / (n - 1) * var (N4)."""
    lerp = momentum if factor is None else factor.to(mean.dtype)
    for running, stat in ((running_mean, mean), (running_var, var * (n / max(n - 1, 1)))):
        if running is not None:
            running.copy_(running.to(stat.dtype) * (1 - lerp) + stat * lerp)


def batch_norm_fwd(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    factor: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    unbiased: bool,
    detach_stats: bool,
    act: bool,
    *activation: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    n = elements_per_channel(x) if x.numel() else 0
    if not training:
        assert running_mean is not None and running_var is not None
        mean = running_mean.to(acc_dtype(x), copy=True)
        rstd = torch.rsqrt(running_var.to(mean.dtype) + eps)
    elif n == 0:
        mean = x.new_zeros(x.shape[1], dtype=acc_dtype(x))
        rstd = torch.zeros_like(mean)
    else:
        mean, var = batch_statistics(x)
        rstd = inverse_std(var, n, eps, unbiased)
        move_running(running_mean, running_var, mean, var, n, momentum, factor)
    z = normalize(x, mean, rstd, weight, bias, residual)
    y = (activate(z, *activation) if act else z).to(x.dtype)
    return y.contiguous(memory_format=memory_format_of(x)), mean, rstd


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
    acc, layout = acc_dtype(x), memory_format_of(x)
    dims = [d for d in range(x.dim()) if d != 1]
    dz = dy.to(acc)
    if act:
        dz = activation_grad(dz, normalize(x, mean, rstd, weight, bias, residual), *activation)
    x_hat = (x.to(acc) - per_channel(mean, x)) * per_channel(rstd, x)
    dweight, dbias = (dz * x_hat).sum(dims), dz.sum(dims)  # N5

    dx, dresidual = x.new_empty(0), x.new_empty(0)
    if need_dx:
        scale = rstd if weight is None else rstd * weight.to(acc)
        g = dz
        if batch_stats and x.numel():  # N6
            n = elements_per_channel(x)
            g = dz - per_channel(dbias / n, x) - x_hat * per_channel(dweight / (n - unbiased), x)
        dx = (g * per_channel(scale, x)).to(x.dtype).contiguous(memory_format=layout)
    if act and residual is not None:
        dresidual = dz.to(x.dtype).contiguous(memory_format=layout)
    dweight = dweight.to(acc if weight is None else weight.dtype)
    dbias = dbias.to(acc if bias is None else bias.dtype)
    return dx, dweight, dbias, dresidual
