"""Layer, group, instance and RMS norm in plain PyTorch: the specification, forward and backward (docs/math.md, R1-R6).

Statistics are taken per set: the trailing `dims` dims of x [*, *normalized_shape]; or, with dims = 0, of x [N, C, *],
one sample's C / groups neighbouring channels at all positions; or, with groups = 0 too, all channels at one position.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastnorm.eager.batch_norm import inverse_std
from fastnorm.eager.general_relu import activate, activation_grad
from fastnorm.eager.layout import acc_dtype, memory_format_of


def split_groups(x: Tensor, groups: int) -> Tensor:
    """A view of x [N, C, *] as [N, groups, C / groups, *]; x itself for sets that are whole dims."""
    return x.unflatten(1, (groups, x.shape[1] // groups)) if groups else x


def set_dims(x: Tensor, dims: int, groups: int) -> list[int]:
    """The dims of split_groups(x) that a set spans (R1)."""
    if dims:
        return list(range(x.dim() - dims, x.dim()))
    return list(range(2, x.dim() + 1)) if groups else [1]


def statistics_shape(x: Tensor, dims: int, groups: int) -> list[int]:
    """The shape of split_groups(x) with every dim of a set reduced to 1."""
    shape = list(split_groups(x, groups).shape)
    for d in set_dims(x, dims, groups):
        shape[d] = 1
    return shape


def elements_per_set(x: Tensor, dims: int, groups: int) -> int:
    shape = split_groups(x, groups).shape
    return math.prod(shape[d] for d in set_dims(x, dims, groups))


def number_of_sets(x: Tensor, dims: int, groups: int) -> int:
    return math.prod(statistics_shape(x, dims, groups))


def per_element(v: Tensor, x: Tensor, dims: int, groups: int) -> Tensor:
    """A weight or bias in the arithmetic's dtype, shaped to broadcast over split_groups(x)."""
    v = v.to(acc_dtype(x))
    if dims:
        return v
    v = v.reshape(-1, *([1] * (x.dim() - 2)))
    return v.unflatten(0, (groups, x.shape[1] // groups)) if groups else v


def row_statistics(
    x: Tensor, dims: int, groups: int, eps: float, rms: bool, unbiased: bool
) -> tuple[Tensor | None, Tensor]:
    """Mean (None for rms) and rstd of every set, shaped by statistics_shape; sums in fp64 (R2, R3)."""
    acc, over = acc_dtype(x), set_dims(x, dims, groups)
    xs = split_groups(x, groups).to(acc)
    mean = None if rms else xs.mean(over, keepdim=True, dtype=torch.float64).to(acc)
    centred = xs if mean is None else xs - mean
    var = centred.square().mean(over, keepdim=True, dtype=torch.float64)
    return mean, inverse_std(var, elements_per_set(x, dims, groups), eps, unbiased).to(acc)


def normalized_rows(x: Tensor, mean: Tensor | None, rstd: Tensor, groups: int) -> Tensor:
    """x_hat = (x - mean) * rstd, shaped like split_groups(x)."""
    xs = split_groups(x, groups).to(rstd.dtype)
    return (xs if mean is None else xs - mean) * rstd


def scale_and_shift(
    x: Tensor,
    x_hat: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dims: int,
    groups: int,
) -> Tensor:
    """z = x_hat * weight + bias + residual, in the arithmetic's dtype and x's shape (R4)."""
    z = x_hat
    if weight is not None:
        z = z * per_element(weight, x, dims, groups)
    if bias is not None:
        z = z + per_element(bias, x, dims, groups)
    z = z.reshape(x.shape)
    return z if residual is None else z + residual.to(z.dtype)


def instance_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every sample's channels, [N, C] each, in the arithmetic's dtype; sums in fp64."""
    acc, over = acc_dtype(x), list(range(2, x.dim()))
    xs = x.to(acc)
    mean = xs.mean(over, keepdim=True, dtype=torch.float64).to(acc)
    var = (xs - mean).square().mean(over, dtype=torch.float64).to(acc)
    return mean.reshape(x.shape[:2]), var


def row_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dims: int,
    groups: int,
    eps: float,
    rms: bool,
    unbiased: bool,
    act: bool,
    *activation: float | None,
) -> Tensor:
    """act(norm(x) + residual), differentiable to any order and under every functorch transform."""
    mean, rstd = row_statistics(x, dims, groups, eps, rms, unbiased)
    z = scale_and_shift(x, normalized_rows(x, mean, rstd, groups), weight, bias, residual, dims, groups)
    return (activate(z, *activation) if act else z).to(x.dtype)


def row_norm_fwd(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dims: int,
    groups: int,
    eps: float,
    rms: bool,
    unbiased: bool,
    act: bool,
    *activation: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    if x.numel() == 0:
        rstd = x.new_zeros(number_of_sets(x, dims, groups), dtype=acc_dtype(x))
        y = torch.empty_like(x, memory_format=memory_format_of(x))
        return y, rstd.new_empty(0) if rms else torch.zeros_like(rstd), rstd
    mean, rstd = row_statistics(x, dims, groups, eps, rms, unbiased)
    z = scale_and_shift(x, normalized_rows(x, mean, rstd, groups), weight, bias, residual, dims, groups)
    y = (activate(z, *activation) if act else z).to(x.dtype)
    y = y.contiguous(memory_format=memory_format_of(x))
    return y, rstd.new_empty(0) if mean is None else mean.reshape(-1), rstd.reshape(-1)


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
    acc, layout = acc_dtype(x), memory_format_of(x)
    shape = statistics_shape(x, dims, groups)
    x_hat = normalized_rows(x, None if rms else mean.reshape(shape), rstd.reshape(shape), groups)
    dz = dy.to(acc)
    if act:
        z = scale_and_shift(x, x_hat, weight, bias, residual, dims, groups)
        dz = activation_grad(dz, z, *activation)
    dx, dresidual = x.new_empty(0), x.new_empty(0)
    if act and residual is not None:
        dresidual = dz.to(x.dtype).contiguous(memory_format=layout)

    dz = split_groups(dz, groups)
    dweight = _sum_like(weight, dz * x_hat, x, dims, groups)  # R5
    dbias = _sum_like(bias, dz, x, dims, groups)
    if need_dx:
        g = dz if weight is None else dz * per_element(weight, x, dims, groups)
        dx = _input_grad(g, x_hat, rstd.reshape(shape), set_dims(x, dims, groups), rms, unbiased)
        dx = dx.reshape(x.shape).to(x.dtype).contiguous(memory_format=layout)
    return dx, dweight, dbias, dresidual


def _sum_like(parameter: Tensor | None, summands: Tensor, x: Tensor, dims: int, groups: int) -> Tensor:
    """The sum of all that share an element of the parameter, in its shape and dtype; nothing without a parameter."""
    if parameter is None:
        return summands.new_empty(0)
    if dims:
        over = list(range(x.dim() - dims))
    else:
        over = [d for d in range(summands.dim()) if d not in ((1, 2) if groups else (1,))]
    total = summands.sum(over, dtype=torch.float64) if over else summands.clone()
    return total.reshape(parameter.shape).to(parameter.dtype).contiguous()


def _input_grad(g: Tensor, x_hat: Tensor, rstd: Tensor, over: list[int], rms: bool, unbiased: bool) -> Tensor:
    """dx = rstd * (g - avg(g) - x_hat * sum(g * x_hat) / d) (R6); rms has no mean to differentiate through."""
    if g.numel() == 0:
        return torch.empty_like(g)
    n = math.prod(g.shape[d] for d in over)
    projected = (g * x_hat).sum(over, keepdim=True) / (n - unbiased)
    inner = g if rms else g - g.sum(over, keepdim=True) / n
    return rstd * (inner - x_hat * projected)
