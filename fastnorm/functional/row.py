"""Layer, group, instance and RMS norm as functions: one op, with the statistics inside one sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastnorm.activation import Activation, as_activation
from fastnorm.autograd import nested
from fastnorm.autograd import row_norm as _row_norm
from fastnorm.checks import (
    channel_vector,
    check_floating,
    check_groups,
    check_running,
    check_spatial,
    checked_eps,
    checked_shape,
    exact_channel_vector,
    exact_parameter,
    momentum_factor,
    residual_like,
)
from fastnorm.functional.batch import batch_norm
from fastnorm.ops.backend import resolve

_SHORT = (torch.float16, torch.bfloat16)
_EPS_FP32, _EPS_FP64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


def autocast_takes_fp32(device_type: str, dtype: torch.dtype) -> bool:
    """Whether autocast computes layer, group and RMS norm of such a tensor in fp32: on CUDA only, as torch's does."""
    return device_type == "cuda" and dtype in _SHORT and torch.is_autocast_enabled(device_type)


def _autocast(x: Tensor) -> Tensor:
    if not x.is_cpu and autocast_takes_fp32(x.device.type, x.dtype):
        return x.float()
    return x


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    act: nn.Module | Activation | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Layer normalization with the activation and the residual fused: act(x_hat * weight + bias + residual).

    x_hat = (x - mean) / sqrt(var + eps), with the mean and the (biased) variance of the trailing dims.

    Args:
        input: x `[*, *normalized_shape]`, any strides, fp64, fp32, bf16 or fp16.
        normalized_shape: the sizes of the trailing dims that are normalised together, at least one.
        weight: normalized_shape, any floating dtype, or None.
        bias: normalized_shape, any floating dtype, or None.
        eps: added to the variance.
        act: GeneralRelu, nn.ReLU, nn.LeakyReLU or nn.ReLU6.
        residual: added before the activation; x's shape (converted to x's dtype).
        backend: "eager", "native", "triton", "auto"; None leaves the choice to `use_backend`.

    Returns:
        A tensor of x's shape and dtype (fp32 for bf16 and fp16 under CUDA autocast), channels_last if x is, else
        contiguous. On the CPU the result of a row does not depend on the rows around it.

    Raises:
        RuntimeError: for trailing dims other than normalized_shape, parameters of another shape, dtypes and devices
            that cannot be mixed, or a chosen backend that cannot serve.
        ValueError: for a NaN eps or another shape of residual.

    Source: Ba, Kiros and Hinton 2016; torch.nn.functional.layer_norm; docs/math.md, R1-R6.
    """
    act = as_activation(act)
    y = _row_norm.usual_row_norm(input, normalized_shape, None, weight, bias, residual, eps, False, False, act, backend)
    if y is not None:
        return y
    if isinstance(input, Tensor) and input.is_nested:
        return nested.layer_norm(input, normalized_shape, weight, bias, eps, act, residual)
    check_floating(input, "layer_norm")
    shape = checked_shape(normalized_shape, input)
    x = _autocast(input)
    return _row_norm.row_norm(
        x,
        exact_parameter(weight, "weight", shape, x),
        exact_parameter(bias, "bias", shape, x),
        residual_like(residual, x),
        len(shape),
        0,
        checked_eps(eps, "layer_norm"),
        False,
        False,
        resolve(x, backend, "row_norm"),
        act,
    )


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    act: nn.Module | Activation | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """RMS normalization with the activation and the residual fused: act(x / sqrt(avg(x^2) + eps) * weight + residual).

    As `layer_norm` without the mean and the bias: the same arguments, shapes, dtypes, result and errors.

    Args:
        eps: added to the average of the squares; None for the arithmetic's spacing at 1, 2^-52 for fp64 and 2^-23 for
            fp32, bf16 and fp16, as torch takes it.

    Source: Zhang and Sennrich 2019; torch.nn.functional.rms_norm; docs/math.md, R1-R6.
    """
    act = as_activation(act)
    y = _row_norm.usual_row_norm(input, normalized_shape, None, weight, None, residual, eps, True, False, act, backend)
    if y is not None:
        return y
    if isinstance(input, Tensor) and input.is_nested:
        return nested.rms_norm(input, normalized_shape, weight, eps, act, residual)
    check_floating(input, "rms_norm")
    if input.dim() == 0:  # torch's type for this one
        raise ValueError("rms_norm: input must have at least 1 dim, got shape ()")
    shape = checked_shape(normalized_shape, input)
    x = _autocast(input)
    if eps is None:
        eps = _EPS_FP64 if x.dtype == torch.float64 else _EPS_FP32
    return _row_norm.row_norm(
        x,
        exact_parameter(weight, "weight", shape, x),
        None,
        residual_like(residual, x),
        len(shape),
        0,
        checked_eps(eps, "rms_norm"),
        True,
        False,
        resolve(x, backend, "row_norm"),
        act,
    )


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    act: nn.Module | Activation | None = None,
    residual: Tensor | None = None,
    unbiased: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Group normalization with the activation and the residual fused: act(x_hat * weight + bias + residual).

    x_hat = (x - mean) / sqrt(var + eps), with the mean and variance of C / num_groups neighbouring channels of one
    sample, at all positions. eps, act, residual, backend and the result are as in `layer_norm`.

    Args:
        input: x `[N, C, *]`, any strides, fp64, fp32, bf16 or fp16.
        num_groups: a divisor of C.
        weight: `[C]`, any floating dtype, or None.
        bias: `[C]`, any floating dtype, or None.
        unbiased: normalise with the unbiased variance, as the fast.ai lessons do.

    Raises:
        RuntimeError: for fewer than 2 dims, groups that do not divide C, parameters of another shape, dtypes and
            devices that cannot be mixed, or a chosen backend that cannot serve.
        ValueError: where all of x is one value per group, for an unbiased variance of one value, a NaN eps, or another
            shape of residual.

    Source: Wu and He 2018; torch.nn.functional.group_norm; docs/math.md, R1-R6.
    """
    act = as_activation(act)
    y = _row_norm.usual_row_norm(input, None, num_groups, weight, bias, residual, eps, False, unbiased, act, backend)
    if y is not None:
        return y
    check_floating(input, "group_norm")
    check_groups(input, num_groups, unbiased)
    x = _autocast(input)
    return _row_norm.row_norm(
        x,
        exact_channel_vector(weight, "weight", x),
        exact_channel_vector(bias, "bias", x),
        residual_like(residual, x),
        0,
        num_groups,
        checked_eps(eps, "group_norm"),
        False,
        unbiased,
        resolve(x, backend, "row_norm"),
        act,
    )


def layer_norm_2d(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    act: nn.Module | Activation | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Channels-first layer normalization, over dim 1 at each position: act(x_hat * weight + bias + residual).

    x_hat = (x - mean) / sqrt(var + eps), with the mean and variance of the C values at one position of one sample: what
    `layer_norm` does to x.movedim(1, -1), moved back; without the copies, in x's own layout. act, residual, backend and
    the result are as in `layer_norm`; the errors as in `group_norm`, but that one value per position is normalised like
    any other.

    Args:
        input: x `[N, C, *]` of at least 2 dims, usually images; any strides, fp64, fp32, bf16 or fp16.
        weight: `[C]`, any floating dtype, or None.
        bias: `[C]`, any floating dtype, or None.
        eps: added to the variance; by default what ConvNeXt uses.

    Source: Liu et al. 2022 (ConvNeXt); docs/math.md, R1-R6.
    """
    act = as_activation(act)
    y = _row_norm.usual_row_norm(input, None, None, weight, bias, residual, eps, False, False, act, backend)
    if y is not None:
        return y
    check_floating(input, "layer_norm_2d")
    if input.dim() < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {input.dim()}")
    x = _autocast(input)
    return _row_norm.row_norm(
        x,
        exact_channel_vector(weight, "weight", x),
        exact_channel_vector(bias, "bias", x),
        residual_like(residual, x),
        0,
        0,
        checked_eps(eps, "layer_norm_2d"),
        False,
        False,
        resolve(x, backend, "row_norm"),
        act,
    )


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    act: nn.Module | Activation | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Instance normalization with the activation and the residual fused: act(x_hat * weight + bias + residual).

    x_hat = (x - mean) / sqrt(var + eps), with the mean and variance of one sample's channel over all its positions.
    Given running statistics are lerped by momentum to the batch's average of these means and (unbiased) variances, in
    plain PyTorch and with one more pass over x. With use_input_stats=False the running statistics normalise: that is
    `batch_norm` in evaluation. eps, act, residual and backend are as in `layer_norm`.

    Args:
        input: x `[N, C, *]`, any strides, fp64, fp32, bf16 or fp16.
        running_mean: buffer `[C]`, given together with running_var; needed without use_input_stats.
        running_var: buffer `[C]`, as running_mean.
        weight: `[C]`, any floating dtype, or None.
        bias: `[C]`, any floating dtype, or None.
        use_input_stats: take the statistics from x.
        momentum: the lerp factor; a 0-d tensor is read on its device, without a synchronisation.

    Returns:
        A tensor of x's shape and dtype, channels_last if x is, else contiguous. An empty batch gives an empty result
        and leaves the running statistics alone.

    Raises:
        ValueError: for one position per channel, a NaN eps, one running statistic without the other, or another shape
            of residual.
        RuntimeError: for missing statistics, per-channel tensors of another size, dtypes and devices that cannot be
            mixed, or a chosen backend that cannot serve.

    Source: Ulyanov, Vedaldi and Lempitsky 2016; torch.nn.functional.instance_norm; docs/math.md, R1-R7.
    """
    check_floating(input, "instance_norm")
    check_running(running_mean, running_var, use_input_stats)
    if not use_input_stats:
        return batch_norm(
            input, running_mean, running_var, weight, bias, False, 0.0, eps, act=act, residual=residual, backend=backend
        )
    check_spatial(input)
    running_mean = channel_vector(running_mean, "running_mean", input)
    running_var = channel_vector(running_var, "running_var", input)
    factor = momentum_factor(momentum, input)
    y = _row_norm.row_norm(
        input,
        channel_vector(weight, "weight", input),
        channel_vector(bias, "bias", input),
        residual_like(residual, input),
        0,
        input.size(1),
        checked_eps(eps, "instance_norm"),
        False,
        False,
        resolve(input, backend, "row_norm"),
        as_activation(act),
    )
    if running_mean is not None:
        step = 0.0 if factor is not None else float(momentum)
        _row_norm.move_running_instances(input, running_mean, running_var, step, factor)
    return y
