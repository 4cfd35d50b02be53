"""Backward of the row family: dx, and in the same sweep partial sums for the gradients of weight and bias.

Nothing is kept from the forward but mean and rstd: dz = dy * act'(z) recomputes z from x with the forward's
own arithmetic. Programs that hold whole sets walk through many of them, as many programs as the SMs take, and
each leaves one row of partial gradients, which a second kernel adds up in a fixed order. Longer sets:
row_norm_bwd_tiled.py. Formulas: docs/math.md R5, R6.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch, row_norm_plans
from .batch_norm_tiles import channel_numbers
from .general_relu import rounded_for
from .row_norm_bwd_tiled import (
    row_norm_bwd_finish_kernel,
    row_norm_bwd_sums_kernel,
    row_norm_bwd_sweep_kernel,
)
from .row_norm_layout import arrange
from .row_norm_programs import RowNormPlan, RowView
from .row_norm_tiles import (
    SIZES,
    average,
    held_tile,
    input_grad,
    load_dz,
    load_mean,
    load_parameter,
    load_tile,
    over_tile,
    set_sums,
    store_tile,
)


@triton.jit(do_not_specialize=SIZES)
def row_norm_bwd_held_kernel(
    dy_ptr, x_ptr, weight_ptr, bias_ptr, residual_ptr, mean_ptr, rstd_ptr, dx_ptr, dresidual_ptr, partials_ptr,
    tiles, channels, size, c_blocks, leak, sub, maxv, max_leak,
    UNBIASED: tl.constexpr, ACT: tl.constexpr, CHANNELS_LAST: tl.constexpr, ALONG: tl.constexpr, D: tl.constexpr,
    C_VEC: tl.constexpr, S_VEC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (block, split) takes every splits-th tile that shares its weights, and holds it from sums to dx.

    Weights along the lines are shared by all tiles; else by the same block of lines of every sample.
    partials [2, splits, S or C]: dz, dz * x_hat.
    """
    ACC: tl.constexpr = rstd_ptr.dtype.element_ty
    C = channels.to(tl.int64) * C_VEC
    S = size.to(tl.int64) * S_VEC
    own_block = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    s = tl.arange(0, BLOCK_S)
    sample = tl.full([], 0, tl.int64)
    own_c, _own_sets, own_exists, _start, _steps = held_tile(
        sample, own_block, C, S, D, CHANNELS_LAST, BLOCK_C, BLOCK_S, BLOCK_D
    )
    if ALONG:
        sum_dz = tl.zeros([BLOCK_C, BLOCK_S], ACC)
    else:
        sum_dz = tl.zeros([BLOCK_C], ACC)
    sum_dz_x_hat = sum_dz

    for tile in range(split, tiles, splits):
        tile = tl.full([], tile, tl.int32)
        if ALONG:
            sample = (tile // c_blocks).to(tl.int64)
            block = (tile % c_blocks).to(tl.int64)
        else:
            sample = tile.to(tl.int64)
            block = own_block
        _, sets, exists, start, steps = held_tile(sample, block, C, S, D, CHANNELS_LAST, BLOCK_C, BLOCK_S, BLOCK_D)
        mask = exists[:, None] & (s < S)[None, :]
        x = load_tile(x_ptr, start, steps, mask, ACC)
        mean = load_mean(mean_ptr, sets, exists, ACC)
        rstd = tl.load(rstd_ptr + sets, mask=exists, other=0.0)
        centred = x - mean[:, None]
        # Always the same ones, but kept in registers from tile to tile they make others spill.
        weight = load_parameter(weight_ptr, own_c, s, C, S, 1.0, ACC, ALONG)
        bias = load_parameter(bias_ptr, own_c, s, C, S, 0.0, ACC, ALONG)
        dz = load_dz(
            dy_ptr, residual_ptr, centred, rstd, weight, bias, start, steps, mask, leak, sub, maxv, max_leak, ACT, ALONG
        )
        if dresidual_ptr is not None:
            store_tile(dresidual_ptr, start, steps, mask, dz)

        x_hat = centred * rstd[:, None]
        g = dz * over_tile(weight, ALONG)
        if ALONG:
            sum_dz += dz
            sum_dz_x_hat = tl.fma(dz, x_hat, sum_dz_x_hat)
            line_g = tl.sum(g, axis=1)
            line_g_x_hat = tl.sum(g * x_hat, axis=1)
        else:
            line_dz = tl.sum(dz, axis=1)
            line_dz_x_hat = tl.sum(dz * x_hat, axis=1)
            sum_dz += line_dz
            sum_dz_x_hat += line_dz_x_hat
            line_g = line_dz * weight
            line_g_x_hat = line_dz_x_hat * weight
        if dx_ptr is not None:
            mean_g = tl.zeros([BLOCK_C], ACC)
            if mean_ptr is not None:
                mean_g = average(set_sums(line_g, BLOCK_D), S, D, False)
            mean_g_x_hat = average(set_sums(line_g_x_hat, BLOCK_D), S, D, UNBIASED)
            dx = input_grad(g, x_hat, rstd, mean_g, mean_g_x_hat)
            store_tile(dx_ptr, start, steps, mask, dx)

    if partials_ptr is not None:
        if ALONG:
            out = partials_ptr + split * S + s
            tl.store(out, tl.sum(sum_dz, axis=0), mask=s < S)
            tl.store(out + splits * S, tl.sum(sum_dz_x_hat, axis=0), mask=s < S)
        else:
            out = partials_ptr + split * C + own_c
            tl.store(out, sum_dz, mask=own_exists)
            tl.store(out + splits * C, sum_dz_x_hat, mask=own_exists)


@triton.jit(do_not_specialize=SIZES)
def row_norm_parameters_kernel(
    partials_ptr, dweight_ptr, dbias_ptr, rows, size, BLOCK: tl.constexpr, BLOCK_ROWS: tl.constexpr
):
    """dweight and dbias [size] from partials [2, rows, size]: dz, dz * x_hat; in a fixed order."""
    ACC: tl.constexpr = partials_ptr.dtype.element_ty
    S = size.to(tl.int64)
    s = channel_numbers(tl.program_id(0), BLOCK)
    sum_dz = tl.zeros([BLOCK, BLOCK_ROWS], ACC)
    sum_dz_x_hat = tl.zeros([BLOCK, BLOCK_ROWS], ACC)
    for start in range(0, rows, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        offsets = row.to(tl.int64)[None, :] * S + s[:, None]
        mask = (s < S)[:, None] & (row < rows)[None, :]
        sum_dz += tl.load(partials_ptr + offsets, mask=mask, other=0.0)
        sum_dz_x_hat += tl.load(partials_ptr + rows * S + offsets, mask=mask, other=0.0)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + s, rounded_for(tl.sum(sum_dz_x_hat, axis=1), dweight_ptr), mask=s < S)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + s, rounded_for(tl.sum(sum_dz, axis=1), dbias_ptr), mask=s < S)


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
    leak: float | None,
    sub: float | None,
    maxv: float | None,
    max_leak: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of row_norm_fwd. dy and residual may have any strides; neither is written.

    Args:
        dy, x, residual: as in the forward; mean, rstd: as the forward returned them.
        need_dx: False leaves dx out.

    Returns:
        dx, in y's layout (shape [0] if not needed); dweight and dbias, like the parameters (shape [0] without);
        dresidual: dz where there are a residual and an activation, else shape [0].
    """
    layout = arrange(x, dims, groups)
    residual = layout.dense(residual) if act and residual is not None else None
    weight, bias = layout.parameter(weight), layout.parameter(bias)
    dx = layout.empty(x) if need_dx else None
    dresidual = None if residual is None else layout.empty(x)
    dweight, dbias = (None if p is None else torch.empty_like(p) for p in (weight, bias))
    if x.numel():
        inputs = (
            layout.dense(dy), layout.dense(x), weight, bias, residual,
            None if rms else mean.contiguous(), rstd.contiguous(),
        )  # fmt: skip
        activation = (leak, sub, maxv, max_leak) if act else (None, None, None, None)
        with launch.device_guard(x):
            partials = differentiate(inputs, (dx, dresidual), layout.view, unbiased, act, activation)
            add_up(partials, dweight, dbias)
    else:
        dweight, dbias = (None if p is None else p.zero_() for p in (dweight, dbias))
    return (
        x.new_empty(0) if dx is None else layout.result(dx),
        rstd.new_empty(0) if dweight is None else layout.parameter_grad(dweight),
        rstd.new_empty(0) if dbias is None else layout.parameter_grad(dbias),
        x.new_empty(0) if dresidual is None else layout.result(dresidual),
    )


def differentiate(
    inputs: tuple[Tensor | None, ...],
    outputs: tuple[Tensor | None, Tensor | None],
    view: RowView,
    unbiased: bool,
    act: bool,
    activation: tuple[float | None, ...],
) -> Tensor:
    """Writes dx and dresidual; returns partial sums [2, rows, size] of dz and dz * x_hat."""
    _, x, _, _, _, _, rstd = inputs
    assert x is not None and rstd is not None
    plan = row_norm_plans.backward_plan(x, view)
    if not plan.held:
        return differentiate_in_tiles(inputs, outputs, plan, unbiased, act, activation)
    partials = rstd.new_empty((2, plan.backward_grid[1], view.s if view.along else view.c))
    row_norm_bwd_held_kernel[plan.backward_grid](
        *inputs, *outputs, partials, plan.backward_tiles, *plan.sizes, plan.c_blocks,
        *launch.scalars(x.dtype, *activation), UNBIASED=unbiased, ACT=act,
        **launch.register_limit(plan.registers), **plan.held_arguments,
    )  # fmt: skip
    return partials


def differentiate_in_tiles(
    inputs: tuple[Tensor | None, ...],
    outputs: tuple[Tensor | None, Tensor | None],
    plan: RowNormPlan,
    unbiased: bool,
    act: bool,
    activation: tuple[float | None, ...],
) -> Tensor:
    """The sums of every line, if dx or, across the lines, the parameters need them; averages; the sweep."""
    _, x, weight, bias, _, mean, rstd = inputs
    dx, dresidual = outputs
    assert x is not None and rstd is not None
    view, along = plan.view, plan.view.along
    numbers = launch.scalars(x.dtype, *activation)
    of_lines = rstd.new_empty((2, plan.splits, view.lines))
    if dx is not None or not along:
        row_norm_bwd_sums_kernel[plan.reduce_grid](
            *inputs, None if along else dresidual, of_lines,
            *plan.sizes, view.n, plan.c_blocks, plan.s_blocks, *numbers, ACT=act,
            **launch.register_limit(plan.registers), **plan.set_arguments,
        )  # fmt: skip
    averages = None if dx is None else rstd.new_empty((2, view.lines // view.d))
    if averages is not None:
        row_norm_bwd_finish_kernel[plan.finish_grid](
            of_lines, None if along else weight, averages, plan.splits, view.lines, view.c, view.s,
            RMS=mean is None, UNBIASED=unbiased, **plan.finish_arguments,
        )  # fmt: skip
    if dx is None and not along:
        return of_lines.view(2, -1, view.c)
    leak, _, _, max_leak = activation
    if dresidual is not None and not along and (x.dtype == rstd.dtype or (leak is None and max_leak is None)):
        # dz was stored and lost nothing by it: read it instead of dy and the residual.
        inputs, act, numbers = (dresidual, x, weight, bias, None, mean, rstd), False, [None] * 4
    of_positions = rstd.new_empty((2, plan.sweeps, view.s)) if along else None
    row_norm_bwd_sweep_kernel[plan.sweep_grid](
        *inputs, averages, dx, dresidual if along else None, of_positions,
        *plan.sizes, view.n, plan.c_blocks, plan.s_blocks, plan.sweeps, *numbers, ACT=act,
        **launch.register_limit(plan.registers), **plan.set_arguments,
    )  # fmt: skip
    return of_lines.view(2, -1, view.c) if of_positions is None else of_positions


def add_up(partials: Tensor, dweight: Tensor | None, dbias: Tensor | None) -> None:
    if dweight is None and dbias is None:
        return
    _, rows, size = partials.shape
    plan = row_norm_plans.parameter_plan(rows, size)
    row_norm_parameters_kernel[plan.grid](partials, dweight, dbias, rows, size, **plan.arguments)
