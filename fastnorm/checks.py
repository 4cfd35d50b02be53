"""Argument checks of the functional interface: each names the argument, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MOST_BINS = 255  # of a histogram: with one more for what lies outside, all that a GPU program holds in registers
FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_floating(x: Tensor, op: str, name: str = "input") -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(x).__name__}")
    if x.dtype not in FLOATING:
        raise NotImplementedError(f"{op} takes fp64, fp32, bf16 or fp16 tensors; {name} has dtype {x.dtype}")
    if x.layout != torch.strided:
        raise NotImplementedError(f"{op} takes dense strided tensors; {name} has layout {x.layout}")


def check_batch(x: Tensor, training: bool, eps: float) -> None:
    """Rank, eps, and more than one value per channel where statistics are taken of the batch."""
    if x.dim() < 2:
        raise ValueError(f"batch_norm expects input [N, C, *] of at least 2 dims, got shape {tuple(x.shape)}")
    if not eps >= 0.0 or (training and eps == 0.0):
        wanted = "positive during training" if training else "non-negative"
        raise ValueError(f"batch_norm eps must be {wanted}, but got {eps}")
    if training and x.numel() == x.size(1) > 0:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")


def check_part(x: Tensor, eps: float) -> None:
    """Rank and eps of one process's part of a batch: only all together know how many values a channel has."""
    if x.dim() < 2:
        raise ValueError(f"expected at least 2D input (got {x.dim()}D input)")
    if not eps > 0.0:
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")


def checked_eps(eps: float, op: str) -> float:
    """A number: negative ones pass, as in torch."""
    if eps != eps:
        raise ValueError(f"{op} eps must be a number, but got {eps}")
    return float(eps)


def checked_shape(normalized_shape: Sequence[int], x: Tensor) -> tuple[int, ...]:
    """The trailing dims to normalise over; RuntimeError where x does not end in them, or there are none."""
    if isinstance(normalized_shape, int):
        raise TypeError(f"normalized_shape must be a tuple or list of ints, got {normalized_shape}")
    shape = tuple(normalized_shape)
    if not shape:
        raise RuntimeError(
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got "
            "normalized_shape = []"
        )
    if x.shape[-len(shape) :] != shape:
        sizes = ", ".join(map(str, shape))
        raise RuntimeError(
            f"Given normalized_shape=[{sizes}], expected input with shape [*, {sizes}], but got input of size "
            f"{list(x.shape)}"
        )
    return shape


def check_groups(x: Tensor, num_groups: int, unbiased: bool) -> None:
    """Groups that divide the channels, and more than one value where a variance is taken."""
    if x.dim() < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {x.dim()}")
    if num_groups <= 0:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}")
    channels = x.size(1)
    if channels % num_groups != 0:
        raise RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(x.shape)} and num_groups={num_groups}"
        )
    values = x.numel()
    if values == num_groups:
        sizes = [x.size(0) * channels // num_groups, num_groups, *x.shape[2:]]
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {sizes}")
    if unbiased and values == x.size(0) * num_groups > 0:
        raise ValueError(f"An unbiased variance needs more than 1 value per group, got input size {list(x.shape)}")


def checked_bins(bins: int, range: tuple[float, float]) -> tuple[float, float]:
    """The ends of a histogram's range; ValueError for one that is empty or not finite, and for too many bins."""
    if not isinstance(bins, int) or not 1 <= bins <= MOST_BINS:
        raise ValueError(f"bins must be an int from 1 to {MOST_BINS}, got {bins!r}")
    low, high = range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"range must be two finite numbers, the first below the second, got {range!r}")
    return float(low), float(high)


def check_spatial(x: Tensor) -> None:
    if math.prod(x.shape[2:]) == 1:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {x.shape}")


def check_running(running_mean: Tensor | None, running_var: Tensor | None, training: bool) -> None:
    if running_mean is None and running_var is None and training:
        return
    if running_mean is None or running_var is None:
        if not training:
            missing = "running_mean" if running_mean is None else "running_var"
            raise RuntimeError(f"{missing} must be defined in evaluation mode")
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    for name, buffer in (("running_mean", running_mean), ("running_var", running_var)):
        if isinstance(buffer, Tensor) and buffer.requires_grad:
            raise RuntimeError(f"batch_norm is not differentiable with respect to {name}: it cannot require grad")


def channel_vector(v: Tensor | None, name: str, x: Tensor) -> Tensor | None:
    """A per-channel tensor as [C], whatever its shape; RuntimeError for another size, device or kind of dtype."""
    if v is None:
        return None
    if (
        isinstance(v, Tensor)
        and v.dim() == 1
        and v.size(0) == x.size(1)
        and v.dtype in FLOATING
        and v.layout == torch.strided
        and ((v.is_cpu and x.is_cpu) or v.device == x.device)
    ):
        return v
    return _reshaped_channel_vector(v, name, x)


def _reshaped_channel_vector(v: Tensor, name: str, x: Tensor) -> Tensor:
    if not isinstance(v, Tensor):
        raise TypeError(f"{name} must be a Tensor or None, got {type(v).__name__}")
    if v.layout != torch.strided:
        raise RuntimeError(f"{name} must be a dense strided tensor, it has layout {v.layout}")
    channels = x.shape[1]
    if v.numel() != channels:
        raise RuntimeError(f"{name} should contain {channels} elements not {v.numel()} (shape {tuple(v.shape)})")
    if v.dtype not in FLOATING:
        raise RuntimeError(f"{name} must be fp64, fp32, bf16 or fp16, got {v.dtype}")
    if v.device != x.device:
        raise RuntimeError(f"{name} is on {v.device}, but input is on {x.device}")
    return v.reshape(-1)


def exact_channel_vector(v: Tensor | None, name: str, x: Tensor) -> Tensor | None:
    """As channel_vector, of shape [C] only."""
    if isinstance(v, Tensor) and (v.dim() != 1 or v.size(0) != x.size(1)):
        raise RuntimeError(
            f"Expected {name} to be a vector of size equal to the number of channels in input, but got {name} of "
            f"shape {list(v.shape)} and input of shape {list(x.shape)}"
        )
    return channel_vector(v, name, x)


def exact_parameter(v: Tensor | None, name: str, shape: tuple[int, ...], x: Tensor) -> Tensor | None:
    """A weight or bias of this shape; RuntimeError for another shape, device or kind of dtype."""
    if v is None:
        return None
    if not isinstance(v, Tensor):
        raise TypeError(f"{name} must be a Tensor or None, got {type(v).__name__}")
    if v.shape != shape:
        raise RuntimeError(
            f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape {list(v.shape)} and "
            f"normalized_shape = {list(shape)}"
        )
    if v.layout != torch.strided:
        raise RuntimeError(f"{name} must be a dense strided tensor, it has layout {v.layout}")
    if v.dtype not in FLOATING:
        raise RuntimeError(f"{name} must be fp64, fp32, bf16 or fp16, got {v.dtype}")
    if not (v.is_cpu and x.is_cpu) and v.device != x.device:
        raise RuntimeError(f"{name} is on {v.device}, but input is on {x.device}")
    return v


def momentum_factor(momentum: object, x: Tensor) -> Tensor | None:
    """A momentum given as a tensor, as a 0-d one; None for a number.

    RuntimeError for a tensor that is no single number, TypeError for what is neither.
    """
    if isinstance(momentum, (float, int)):
        return None
    if not isinstance(momentum, Tensor):
        if hasattr(momentum, "__float__"):  # a number of numpy's
            return None
        raise TypeError(f"momentum must be a number or a tensor of one, got {type(momentum).__name__}")
    if momentum.numel() != 1 or momentum.dtype not in FLOATING or momentum.device != x.device:
        raise RuntimeError(
            f"momentum as a tensor must be one floating number on {x.device}, got shape {tuple(momentum.shape)}, "
            f"{momentum.dtype} on {momentum.device}"
        )
    return momentum.reshape(())


def residual_like(residual: Tensor | None, x: Tensor) -> Tensor | None:
    """The residual in x's dtype; ValueError for another shape, RuntimeError for another device."""
    if residual is None:
        return None
    if residual is x:  # a compiler refuses a Function that is given one tensor twice
        return residual.view_as(x)
    check_floating(residual, "a norm", "residual")
    if residual.shape != x.shape:
        raise ValueError(f"residual must have input's shape {tuple(x.shape)}, got {tuple(residual.shape)}")
    if residual.device != x.device:
        raise RuntimeError(f"residual is on {residual.device}, but input is on {x.device}")
    return residual if residual.dtype == x.dtype else residual.to(x.dtype)
