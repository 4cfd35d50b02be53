"""Batch norm as a function, of one process and of several."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastnorm.activation import Activation, as_activation
from fastnorm.autograd import batch_norm as _batch_norm
from fastnorm.autograd import sync_batch_norm as _sync_batch_norm
from fastnorm.checks import (
    channel_vector,
    check_batch,
    check_floating,
    check_part,
    check_running,
    momentum_factor,
    residual_like,
)
from fastnorm.ops.backend import resolve


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    act: nn.Module | Activation | None = None,
    residual: Tensor | None = None,
    unbiased: bool = False,
    detach_stats: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Batch normalization with the activation and the residual fused: act(x_hat * weight + bias + residual).

    x_hat = (x - mean) / sqrt(var + eps), with the batch's own mean and variance per channel when training, else the
    running ones. Training also moves the buffers: running = lerp(running, batch statistic, momentum), the variance
    as n / (n - 1) * var.

    Args:
        input: x `[N, C, *]`, any strides, fp64, fp32, bf16 or fp16.
        running_mean: buffer `[C]`, given together with running_var; needed when not training.
        running_var: buffer `[C]`, as running_mean.
        weight: `[C]`, any floating dtype, or None.
        bias: `[C]`, any floating dtype, or None.
        momentum: the lerp factor; a 0-d tensor is read on its device, without a synchronisation.
        eps: added to the variance; positive when training.
        act: GeneralRelu, nn.ReLU, nn.LeakyReLU or nn.ReLU6.
        residual: added before the activation; x's shape (converted to x's dtype).
        unbiased: normalise with the unbiased variance, as the fast.ai lessons do.
        detach_stats: no gradient through the batch's mean and variance, as in the lessons' own layer.
        backend: "eager", "native", "triton", "auto"; None leaves the choice to `use_backend`.

    Returns:
        A tensor of x's shape and dtype, channels_last if x is, else contiguous.

    Raises:
        ValueError: for a batch of one value per channel, a bad eps, statistics that do not fit together, another shape
            of residual.
        RuntimeError: for per-channel tensors of another size, dtypes and devices that cannot be mixed, or a chosen
            backend that cannot serve.

    Source: Ioffe and Szegedy 2015; torch.nn.functional.batch_norm; docs/math.md, N1-N6.
    """
    act = as_activation(act)
    y = _batch_norm.usual_batch_norm(
        input, running_mean, running_var, weight, bias, residual, training, momentum, eps, unbiased, detach_stats, act,
        backend,
    )  # fmt: skip
    if y is not None:
        return y
    check_floating(input, "batch_norm")
    check_batch(input, training, eps)
    check_running(running_mean, running_var, training)
    factor = momentum_factor(momentum, input)
    return _batch_norm.batch_norm(
        input,
        channel_vector(weight, "weight", input),
        channel_vector(bias, "bias", input),
        residual_like(residual, input),
        channel_vector(running_mean, "running_mean", input),
        channel_vector(running_var, "running_var", input),
        factor,
        training,
        0.0 if factor is not None else float(momentum),
        float(eps),
        unbiased,
        detach_stats,
        resolve(input, backend, "batch_norm"),
        act,
    )


def synchronized_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    group: Any = None,
    act: nn.Module | Activation | None = None,
    residual: Tensor | None = None,
    unbiased: bool = False,
) -> Tensor:
    """Training batch norm over the batches of all processes of a group: act(x_hat * weight + bias + residual).

    x_hat = (x - mean) / sqrt(var + eps), with mean and variance of all processes' values of a channel together, each
    process counted by its size (one may have none). Every process of the group must call it. Plain PyTorch around two
    differentiable all-reduces: the count and the sums, then the sums of squared deviations, so that nothing cancels.
    The other arguments, shapes, dtypes and errors are those of `batch_norm`.

    Args:
        group: the process group; None for the default one.

    Returns:
        This process's part of the result, of x's shape and dtype.

    Raises:
        ValueError: for fewer than 2 dims, an eps that is not positive, and if all processes together have one value per
            channel.

    Source: torch.nn.SyncBatchNorm; docs/math.md, N1-N6.
    """
    check_floating(input, "batch_norm")
    check_part(input, eps)
    check_running(running_mean, running_var, True)
    return _sync_batch_norm.synchronized_batch_norm(
        input,
        channel_vector(weight, "weight", input),
        channel_vector(bias, "bias", input),
        residual_like(residual, input),
        channel_vector(running_mean, "running_mean", input),
        channel_vector(running_var, "running_var", input),
        momentum_factor(momentum, input),
        0.0 if isinstance(momentum, Tensor) else float(momentum),
        float(eps),
        unbiased,
        group,
        as_activation(act),
    )
