"""GeneralRelu on a GPU: one elementwise kernel forward, one backward.

The two scalar formulas, `activate` and `activate_grad`, are also what the batch norm kernels fuse, so that a
fused layer and the activation alone agree. A number that is None is absent, and its step is not compiled.
Formulas: docs/math.md G1, G2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch


@triton.jit
def rounded_for(value, ptr):
    """value in the dtype that ptr stores; fp64 goes to 16 bits by way of fp32, for the interpreter."""
    if ptr.dtype.element_ty.primitive_bitwidth == 16:
        value = value.to(tl.float32)
    return value.to(ptr.dtype.element_ty)


@triton.jit
def shifted_leaky(z, leak, sub):
    """leaky_relu(z) - sub, before the clamp; NaN and the sign of -0.0 pass through."""
    if leak is None:
        u = tl.where(z < 0, 0.0, z)
    else:
        u = tl.where(z > 0, z, z * tl.full([], leak, z.dtype))
    if sub is not None:
        u = u - tl.full([], sub, z.dtype)
    return u


@triton.jit
def activate(z, leak, sub, maxv, max_leak):
    """y = min(leaky_relu(z) - sub, maxv), or a line of slope max_leak above maxv."""
    y = shifted_leaky(z, leak, sub)
    if maxv is not None:
        top = tl.full([], maxv, z.dtype)
        if max_leak is None:
            # A select and not tl.minimum, which would turn NaN into maxv.
            y = tl.where(y > top, top, y)
        else:
            y = tl.where(y > top, top + tl.full([], max_leak, z.dtype) * (y - top), y)
    return y


@triton.jit
def activate_grad(dy, z, leak, sub, maxv, max_leak):
    """dz = dy * act'(z), as PyTorch chooses: y == maxv passes, z == 0 has slope leak, a clamped NaN has 0."""
    if leak is None:
        dz = tl.where(z <= 0, 0.0, dy)
    else:
        dz = tl.where(z > 0, dy, dy * tl.full([], leak, z.dtype))
    if maxv is not None:
        y = shifted_leaky(z, leak, sub)
        top = tl.full([], maxv, z.dtype)
        if max_leak is None:
            dz = tl.where(y <= top, dz, 0.0)
        else:
            dz = tl.where(y > top, dz * tl.full([], max_leak, z.dtype), dz)
    return dz


@triton.jit
def general_relu_fwd_kernel(x_ptr, y_ptr, numel, leak, sub, maxv, max_leak, BLOCK: tl.constexpr):
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    # Only the last block needs a mask: one of a length that 16 does not divide would cost all their wide
    # loads.
    if start + BLOCK <= numel:
        y = activate(tl.load(x_ptr + offsets).to(ACC), leak, sub, maxv, max_leak)
        tl.store(y_ptr + offsets, rounded_for(y, y_ptr))
    else:
        mask = offsets < numel
        y = activate(tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC), leak, sub, maxv, max_leak)
        tl.store(y_ptr + offsets, rounded_for(y, y_ptr), mask=mask)


@triton.jit
def general_relu_bwd_kernel(dy_ptr, x_ptr, dx_ptr, numel, leak, sub, maxv, max_leak, BLOCK: tl.constexpr):
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    if start + BLOCK <= numel:
        x = tl.load(x_ptr + offsets).to(ACC)
        dy = tl.load(dy_ptr + offsets).to(ACC)
        dx = activate_grad(dy, x, leak, sub, maxv, max_leak)
        tl.store(dx_ptr + offsets, rounded_for(dx, dx_ptr))
    else:
        mask = offsets < numel
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(ACC)
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(ACC)
        dx = activate_grad(dy, x, leak, sub, maxv, max_leak)
        tl.store(dx_ptr + offsets, rounded_for(dx, dx_ptr), mask=mask)


def general_relu_fwd(
    x: torch.Tensor, leak: float | None, sub: float | None, maxv: float | None, max_leak: float | None
) -> torch.Tensor:
    """Forward of GeneralRelu, in x's own storage order.

    Args:
        x: any shape, fp64, fp32, bf16 or fp16. A contiguous or dense channels_last tensor is read as it lies;
            other strides are copied first.
        leak, sub, maxv, max_leak: the activation's numbers, None where a step is absent.

    Returns:
        y, like x in shape and dtype; contiguous, or channels_last where x is.
    """
    memory_format = launch.memory_format(x)
    x = x.contiguous(memory_format=memory_format)
    y = torch.empty_like(x, memory_format=memory_format)
    if x.numel() == 0:
        return y
    plan = launch.elementwise_plan(x.numel())
    with launch.device_guard(x):
        general_relu_fwd_kernel[plan.grid](
            x, y, x.numel(), *launch.scalars(x.dtype, leak, sub, maxv, max_leak),
            BLOCK=plan.block, num_warps=plan.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
    return y


def general_relu_bwd(
    dy: torch.Tensor,
    x: torch.Tensor,
    leak: float | None,
    sub: float | None,
    maxv: float | None,
    max_leak: float | None,
) -> torch.Tensor:
    """Gradient of GeneralRelu with respect to x; dy may have any strides and is never written.

    Returns:
        dx, like x in shape and dtype; contiguous, or channels_last where x is.
    """
    memory_format = launch.memory_format(x)
    x = x.contiguous(memory_format=memory_format)
    dy = dy.contiguous(memory_format=memory_format)
    dx = torch.empty_like(x, memory_format=memory_format)
    if x.numel() == 0:
        return dx
    plan = launch.elementwise_plan(x.numel())
    with launch.device_guard(x):
        general_relu_bwd_kernel[plan.grid](
            dy, x, dx, x.numel(), *launch.scalars(x.dtype, leak, sub, maxv, max_leak),
            BLOCK=plan.block, num_warps=plan.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
    return dx
