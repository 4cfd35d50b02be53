"""Forward of the row family (layer, group, instance, RMS norm): statistics of every set, then y.

A set that one program can hold is read once, in one launch. A longer one takes three, like batch norm:
partial statistics from a grid sized by the number of SMs, their merge, the apply pass. Formulas: docs/math.md
R1-R4.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch, row_norm_plans
from .batch_norm_tiles import program_tile
from .general_relu import activate
from .row_norm_layout import arrange
from .row_norm_programs import RowView
from .row_norm_stats import row_norm_stats_finish_kernel, row_norm_stats_kernel
from .row_norm_tiles import (
    SIZES,
    affine,
    held_statistics,
    held_tile,
    load_mean,
    load_parameter,
    load_tile,
    sample_tile,
    store_tile,
)


@triton.jit
def store_output(
    x, mean, rstd, weight_ptr, bias_ptr, residual_ptr, y_ptr, c, s, C, S, start, steps, mask,
    leak, sub, maxv, max_leak, ACT: tl.constexpr, ALONG: tl.constexpr,
):  # fmt: skip
    """y of a tile x of the lines c and positions s."""
    ACC: tl.constexpr = x.dtype
    weight = load_parameter(weight_ptr, c, s, C, S, 1.0, ACC, ALONG)
    bias = load_parameter(bias_ptr, c, s, C, S, 0.0, ACC, ALONG)
    residual = None
    if residual_ptr is not None:
        residual = load_tile(residual_ptr, start, steps, mask, ACC)
    y = affine(x - mean[:, None], rstd, weight, bias, residual, ALONG)
    if ACT:
        y = activate(y, leak, sub, maxv, max_leak)
    store_tile(y_ptr, start, steps, mask, y)


@triton.jit(do_not_specialize=SIZES)
def row_norm_fwd_held_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr, mean_ptr, rstd_ptr,
    channels, size, c_blocks, eps, leak, sub, maxv, max_leak,
    UNBIASED: tl.constexpr, ACT: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALONG: tl.constexpr, D: tl.constexpr,
    C_VEC: tl.constexpr, S_VEC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program per block of sets of one sample, which it holds in registers from statistics to output."""
    ACC: tl.constexpr = rstd_ptr.dtype.element_ty
    C = channels.to(tl.int64) * C_VEC
    S = size.to(tl.int64) * S_VEC
    sample = (tl.program_id(0) // c_blocks).to(tl.int64)
    block = (tl.program_id(0) % c_blocks).to(tl.int64)
    c, sets, exists, start, steps = held_tile(sample, block, C, S, D, CHANNELS_LAST, BLOCK_C, BLOCK_S, BLOCK_D)
    s = tl.arange(0, BLOCK_S)
    mask = exists[:, None] & (s < S)[None, :]
    x = load_tile(x_ptr, start, steps, mask, ACC)

    mean, rstd = held_statistics(x, mask, (S * D).to(ACC), eps, mean_ptr is None, UNBIASED, BLOCK_D)
    leads = exists & (tl.arange(0, BLOCK_C) % BLOCK_D == 0)  # the first line of its set
    if mean_ptr is not None:
        tl.store(mean_ptr + sets, mean, mask=leads)
    tl.store(rstd_ptr + sets, rstd, mask=leads)

    store_output(
        x, mean, rstd, weight_ptr, bias_ptr, residual_ptr, y_ptr, c, s, C, S, start, steps, mask,
        leak, sub, maxv, max_leak, ACT, ALONG,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def row_norm_apply_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr, mean_ptr, rstd_ptr,
    channels, size, c_blocks, s_blocks, leak, sub, maxv, max_leak,
    ACT: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALONG: tl.constexpr, D: tl.constexpr,
    C_VEC: tl.constexpr, S_VEC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program per tile, the last one first."""
    ACC: tl.constexpr = rstd_ptr.dtype.element_ty
    C = channels.to(tl.int64) * C_VEC
    S = size.to(tl.int64) * S_VEC
    block, tile = program_tile(c_blocks, s_blocks, CHANNELS_LAST)
    sample = tile // s_blocks
    c, s, mask, start, steps = sample_tile(
        sample, block, tile % s_blocks, s_blocks, C, S, BLOCK_C, BLOCK_S, CHANNELS_LAST
    )  # fmt: skip
    x = load_tile(x_ptr, start, steps, mask, ACC)

    sets = sample.to(tl.int64) * (C // D) + c // D
    mean = load_mean(mean_ptr, sets, c < C, ACC)
    rstd = tl.load(rstd_ptr + sets, mask=c < C, other=0.0)
    store_output(
        x, mean, rstd, weight_ptr, bias_ptr, residual_ptr, y_ptr, c, s, C, S, start, steps, mask,
        leak, sub, maxv, max_leak, ACT, ALONG,
    )  # fmt: skip


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
    leak: float | None,
    sub: float | None,
    maxv: float | None,
    max_leak: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y = act((x - mean) * rstd * weight + bias + residual), with the statistics of sets inside one sample.

    Args:
        x, residual: fp64, fp32, bf16 or fp16, any strides; row_norm_layout says what is read as it lies.
        dims, groups: the trailing dims are a set; or, if dims = 0, of x [N, C, *] one sample's C / groups
            channels; or, if groups = 0 too, the channels of one position.
        weight, bias: of x's trailing dims' shape or [C], any of these dtypes, any stride.
        rms: leave the mean out; unbiased: normalise with the variance over n - 1.

    Returns:
        y, like x (channels_last stays); mean ([0] for rms) and rstd, one of each set, fp32 (fp64 for fp64 x).
    """
    layout = arrange(x, dims, groups)
    y = layout.empty(x)
    rstd = x.new_empty(layout.sets, dtype=launch.acc_dtype(x))
    mean = rstd.new_empty(0) if rms else torch.empty_like(rstd)
    if x.numel() == 0:
        return layout.result(y), mean.zero_(), rstd.zero_()
    tensors = (
        layout.dense(x), layout.parameter(weight), layout.parameter(bias),
        None if residual is None else layout.dense(residual), y, None if rms else mean, rstd,
    )  # fmt: skip
    activation = launch.scalars(x.dtype, *((leak, sub, maxv, max_leak) if act else [None] * 4))
    with launch.device_guard(x):
        normalize(tensors, layout.view, eps, unbiased, act, activation)
    return layout.result(y), mean, rstd


def normalize(
    tensors: tuple[Tensor | None, ...],
    view: RowView,
    eps: float,
    unbiased: bool,
    act: bool,
    activation: list[launch.Scalar],
) -> None:
    """One launch where a program holds its sets, else partial statistics, their merge, y."""
    x, _, _, _, _, mean, rstd = tensors
    assert x is not None and rstd is not None
    plan = row_norm_plans.forward_plan(x, view)
    scalar_eps = launch.scalars(x.dtype, eps)
    if plan.held:
        row_norm_fwd_held_kernel[plan.forward_grid](
            *tensors, *plan.sizes, plan.c_blocks, *scalar_eps, *activation,
            UNBIASED=unbiased, ACT=act, **launch.register_limit(plan.registers), **plan.held_arguments,
        )  # fmt: skip
        return
    partials = rstd.new_empty((4, plan.splits, view.lines))
    row_norm_stats_kernel[plan.reduce_grid](
        x, partials, *plan.sizes, view.n, plan.c_blocks, plan.s_blocks,
        RMS=mean is None, EVEN_S=plan.even_s, **launch.register_limit(plan.registers), **plan.tile_arguments,
    )  # fmt: skip
    row_norm_stats_finish_kernel[plan.finish_grid](
        partials, mean, rstd, plan.splits, view.lines, view.s, *scalar_eps,
        UNBIASED=unbiased, **plan.finish_arguments,
    )  # fmt: skip
    row_norm_apply_kernel[plan.apply_grid](
        *tensors, *plan.sizes, plan.c_blocks, plan.s_blocks, *activation, ACT=act, **plan.set_arguments,
    )  # fmt: skip
