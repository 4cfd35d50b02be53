"""What the kernels of batch norm share: where a tile lies, and the per-channel arithmetic.

A tile is [BLOCK_C, BLOCK_S] of the tensor [N, C, S] (see launch.View). It is addressed by the 64-bit offset
of its first element and 32-bit steps from there, which batch_norm_plan keeps in range. Per-channel
vectors are [BLOCK_C] and grow their second axis where they meet a tile: loaded as [BLOCK_C, 1], every thread
would load each of them several times.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .general_relu import activate_grad

# Not specialised on: a new batch size must not compile again. What the compiler must know is in C_VEC and
# S_VEC.
SIZES = ["N", "tiles", "channels", "size", "splits", "count"]


@triton.jit
def steps_in_tile(C, S, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """[BLOCK_C, BLOCK_S] distances of a tile's elements from its first."""
    return steps_of(tl.arange(0, BLOCK_C), C, S, BLOCK_S, CHANNELS_LAST)


@triton.jit
def steps_of(channels, C, S, BLOCK_S: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """[len(channels), BLOCK_S] distances of the first positions of these channels from channel 0's first."""
    s = tl.arange(0, BLOCK_S)[None, :]
    if CHANNELS_LAST:
        return s * C.to(tl.int32) + channels[:, None]
    else:
        return channels[:, None] * S.to(tl.int32) + s


@triton.jit
def tile_start(block, tile, s_blocks, C, S, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Offset of the first element of a block's tile number `tile`, and how many positions are left in S."""
    tile = tl.full([], tile, tl.int32)  # the interpreter's loops count in Python ints
    c = block.to(tl.int64) * BLOCK_C
    if CHANNELS_LAST:
        s = tile.to(tl.int64) * BLOCK_S
        start = s * C + c
    else:
        n = (tile // s_blocks).to(tl.int64)
        s = (tile % s_blocks).to(tl.int64) * BLOCK_S
        start = (n * C + c) * S + s
    return start, S - s


@triton.jit
def inside(channel_exists, left, BLOCK_S: tl.constexpr):
    """[BLOCK_C, BLOCK_S] mask of a tile with `left` positions."""
    return channel_exists[:, None] & (tl.arange(0, BLOCK_S)[None, :] < left)


@triton.jit
def program_tile(c_blocks, s_blocks, CHANNELS_LAST: tl.constexpr):
    """The block of channels and the tile of a program that owns one tile, the last program first.

    Backwards through memory: the end of the tensor is what the pass before left in the cache.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    if CHANNELS_LAST:
        block = program % c_blocks
        tile = program // c_blocks
    else:
        image = program // s_blocks
        block = image % c_blocks
        tile = image // c_blocks * s_blocks + program % s_blocks
    return block, tile


@triton.jit
def held_offsets(c, C, S, BLOCK_S: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """[BLOCK_C, BLOCK_S] offsets of all values of the channels c, 64-bit: they may span the whole tensor."""
    r = tl.arange(0, BLOCK_S)[None, :]
    if CHANNELS_LAST:
        return r.to(tl.int64) * C + c[:, None]
    else:
        image = r // S.to(tl.int32)
        return (image.to(tl.int64) * C + c[:, None]) * S + r % S.to(tl.int32)


@triton.jit
def channel_numbers(block, BLOCK_C: tl.constexpr):
    return block.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def load_channels(ptr, c, C, missing, ACC: tl.constexpr):
    """A per-channel vector in the arithmetic's dtype, or `missing` everywhere if there is no such tensor."""
    if ptr is None:
        return tl.full(c.shape, missing, ACC)
    else:
        return tl.load(ptr + c, mask=c < C, other=0.0).to(ACC)


@triton.jit
def finite_or_zero(v):
    """v, but 0 for inf and NaN: a shift must not turn the infinite mean of a channel into NaN."""
    return tl.where(tl.abs(v) < float("inf"), v, 0.0)


@triton.jit
def quotient(a, b):
    """a / b correctly rounded: the plain fp32 division of a GPU is not."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def inverse_sqrt(v):
    """1 / sqrt(v), each step correctly rounded."""
    if v.dtype == tl.float64:
        return 1.0 / tl.sqrt(v)
    else:
        return tl.div_rn(tl.full(v.shape, 1.0, tl.float32), tl.sqrt_rn(v))


@triton.jit
def inverse_std(m2, count, eps, UNBIASED: tl.constexpr):
    """1 / sqrt(m2 / count + eps), or m2 / (count - 1); m2 is a vector, count and eps are numbers."""
    ACC: tl.constexpr = m2.dtype
    degrees = count.to(ACC)
    if UNBIASED:
        degrees -= 1.0
    return inverse_sqrt(quotient(m2, tl.full(m2.shape, degrees, ACC)) + tl.full([], eps, ACC))


@triton.jit
def normalized(x, mean, scale, bias, residual):
    """z = (x - mean) * (weight * rstd) + bias (+ residual), the same arithmetic wherever z is needed."""
    z = tl.fma(x - mean[:, None], scale[:, None], bias[:, None])
    if residual is not None:
        z = z + residual
    return z


@triton.jit
def load_numbers(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, C, ACC: tl.constexpr):
    """mean, rstd, weight * rstd and bias of the channels c."""
    mean = load_channels(mean_ptr, c, C, 0.0, ACC)
    rstd = load_channels(rstd_ptr, c, C, 0.0, ACC)
    scale = load_channels(weight_ptr, c, C, 1.0, ACC) * rstd
    bias = load_channels(bias_ptr, c, C, 0.0, ACC)
    return mean, rstd, scale, bias


@triton.jit
def load_dz(
    dy_ptr, residual_ptr, x, mean, scale, bias, offsets, mask, leak, sub, maxv, max_leak,
    ACT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dy times the activation's slope at z, 0 in masked lanes."""
    dz = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(ACC)
    if ACT:
        residual = None
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(ACC)
        dz = activate_grad(dz, normalized(x, mean, scale, bias, residual), leak, sub, maxv, max_leak)
    return dz


@triton.jit
def input_grad(dz, x, mean, rstd, scale, mean_dz, mean_dz_x_hat):
    """dx = weight * rstd * (dz - avg(dz) - x_hat * avg(dz * x_hat))."""
    x_hat = (x - mean[:, None]) * rstd[:, None]
    return scale[:, None] * tl.fma(x_hat, -mean_dz_x_hat[:, None], dz - mean_dz[:, None])
