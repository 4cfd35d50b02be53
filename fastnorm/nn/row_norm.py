"""Layer, group, instance and RMS norm modules: torch.nn's layers with a fused activation and residual."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from fastnorm.activation import Activation, as_activation
from fastnorm.functional import group_norm, instance_norm, layer_norm, layer_norm_2d, rms_norm

fx.wrap("layer_norm")  # a symbolic trace records the call; it must not look inside
fx.wrap("rms_norm")
fx.wrap("group_norm")
fx.wrap("layer_norm_2d")

# A module's own attribute look-up costs as much as an op, hence `_parameters` below; what is not there is parametrized.


def _act_repr(activation: Activation) -> str:
    return f", act={activation}" if activation.active else ""


class LayerNorm(nn.LayerNorm):
    """Layer norm over the trailing dims with the activation and the residual fused.

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual); mean and var over normalized_shape. torch.nn's
    arguments, state dict and behaviour, and keyword-only `act` (GeneralRelu, nn.ReLU, nn.LeakyReLU, nn.ReLU6: fused,
    forward and backward, nothing saved for it). `forward(x, residual=None)`.
    Shapes: [*, *normalized_shape], like the result. Dtypes: fp64, fp32, bf16, fp16, parameters in any of them.
    Raises as torch.nn's layer does. See `functional.layer_norm`.
    """

    activation: Activation

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        act: nn.Module | Activation | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.activation = as_activation(act)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(norm(input) + residual)."""
        parameters = self._parameters
        return layer_norm(
            input,
            self.normalized_shape,
            parameters["weight"] if "weight" in parameters else self.weight,
            parameters["bias"] if "bias" in parameters else self.bias,
            self.eps,
            act=self.activation,
            residual=residual,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + _act_repr(self.activation)


class RMSNorm(nn.RMSNorm):
    """RMS norm over the trailing dims with the activation and the residual fused.

    y = act(x / sqrt(avg(x^2) + eps) * weight + residual), the average over normalized_shape. torch.nn's arguments,
    state dict and behaviour (eps=None is the spacing of the arithmetic's numbers at 1), and keyword-only `act` as
    `LayerNorm` has it. `forward(x, residual=None)`.
    Shapes: [*, *normalized_shape], like the result. Dtypes: fp64, fp32, bf16, fp16, the weight in any of them.
    Raises as torch.nn's layer does. See `functional.rms_norm`.
    """

    activation: Activation

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        act: nn.Module | Activation | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.activation = as_activation(act)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(norm(x) + residual)."""
        parameters = self._parameters
        return rms_norm(
            x,
            self.normalized_shape,
            parameters["weight"] if "weight" in parameters else self.weight,
            self.eps,
            act=self.activation,
            residual=residual,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + _act_repr(self.activation)


class GroupNorm(nn.GroupNorm):
    """Group norm with the activation and the residual fused.

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual); mean and var over num_channels / num_groups
    neighbouring channels of a sample, weight and bias per channel. torch.nn's arguments, state dict and behaviour, and
    keyword-only `act` as `LayerNorm` has it. `forward(x, residual=None)`.
    Shapes: [N, num_channels, *], like the result. Dtypes: fp64, fp32, bf16, fp16, parameters in any of them.
    Raises as torch.nn's layer does. See `functional.group_norm`.
    """

    activation: Activation

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        act: nn.Module | Activation | None = None,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        if not bias:
            self.register_parameter("bias", None)
        self.activation = as_activation(act)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(norm(input) + residual)."""
        parameters = self._parameters
        return group_norm(
            input,
            self.num_groups,
            parameters["weight"] if "weight" in parameters else self.weight,
            parameters["bias"] if "bias" in parameters else self.bias,
            self.eps,
            act=self.activation,
            residual=residual,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + _act_repr(self.activation)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of images, at each position by itself (ConvNeXt's), with `act` and residual fused.

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual); mean and var over dim 1 of x, contiguous or
    channels_last, without permuting copies.

    Args: num_channels; eps, inside the square root; elementwise_affine, a weight and (with bias) a bias per channel;
        act, an activation to fuse (keyword-only). `forward(x, residual=None)`.
    Shapes: [N, num_channels, *], like the result; parameters `weight` and `bias` [num_channels].
    Raises: RuntimeError for another number of channels. See `functional.layer_norm_2d`.
    """

    activation: Activation
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        act: nn.Module | Activation | None = None,
    ) -> None:
        super().__init__()
        self.num_channels, self.eps, self.elementwise_affine = num_channels, eps, elementwise_affine
        for name, wanted in (("weight", elementwise_affine), ("bias", elementwise_affine and bias)):
            value = nn.Parameter(torch.empty(num_channels, device=device, dtype=dtype)) if wanted else None
            self.register_parameter(name, value)
        self.activation = as_activation(act)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(norm(input) + residual)."""
        parameters = self._parameters
        return layer_norm_2d(
            input,
            parameters["weight"] if "weight" in parameters else self.weight,
            parameters["bias"] if "bias" in parameters else self.bias,
            self.eps,
            act=self.activation,
            residual=residual,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_channels}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}{_act_repr(self.activation)}"
        )


def _module_instance_norm(
    input: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
    momentum: float | None,
    eps: float,
    activation: Activation,
    num_features: int,
    affine: bool,
    unbatched_rank: int,
) -> Tensor:
    """A module's whole forward pass, in one function so that a symbolic trace can record it as one call."""
    channel_dim = input.dim() - unbatched_rank
    if channel_dim not in (0, 1):
        raise ValueError(f"expected {unbatched_rank}D or {unbatched_rank + 1}D input (got {input.dim()}D input)")
    if input.size(channel_dim) != num_features:
        got = input.size(channel_dim)
        if affine:
            raise ValueError(
                f"expected input's size at dim={channel_dim} to match num_features ({num_features}), but got: {got}."
            )
        warnings.warn(
            f"input's size at dim={channel_dim} does not match num_features. You can silence this warning by not "
            "passing in num_features, which is not used because affine=False",
            stacklevel=3,
        )
    if momentum is None and use_input_stats:
        running_mean = running_var = None  # they stay as they are
    arguments = running_mean, running_var, weight, bias, use_input_stats, 0.0 if momentum is None else momentum, eps
    if channel_dim == 1:
        return instance_norm(input, *arguments, act=activation, residual=residual)
    batched = None if residual is None else residual.unsqueeze(0)
    return instance_norm(input.unsqueeze(0), *arguments, act=activation, residual=batched).squeeze(0)


fx.wrap("_module_instance_norm")


class _FusedInstanceNorm(nn.modules.instancenorm._InstanceNorm):
    """The forward pass and the extra argument; a subclass adds the rank of its input."""

    activation: Activation
    _unbatched_rank: int

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        act: nn.Module | Activation | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:
            self.register_parameter("bias", None)
        self.activation = as_activation(act)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(norm(input) + residual)."""
        parameters, buffers = self._parameters, self._buffers
        return _module_instance_norm(
            input,
            residual,
            buffers["running_mean"] if "running_mean" in buffers else self.running_mean,
            buffers["running_var"] if "running_var" in buffers else self.running_var,
            parameters["weight"] if "weight" in parameters else self.weight,
            parameters["bias"] if "bias" in parameters else self.bias,
            self.training or not self.track_running_stats,
            self.momentum, self.eps, self.activation, self.num_features, self.affine, self._unbatched_rank,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return super().extra_repr() + _act_repr(self.activation)


_INSTANCE_NORM = """

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual); mean and var per sample and channel, over its
    positions; with track_running_stats, of the running buffers in evaluation. torch.nn's arguments, state dict and
    behaviour, and keyword-only `act` as `LayerNorm` has it. `forward(x, residual=None)`.
    Dtypes: fp64, fp32, bf16, fp16, parameters and buffers in the same or any other of them.
    Raises as torch.nn's layer does; an empty batch gives an empty result. See `functional.instance_norm`.
    """


class InstanceNorm1d(_FusedInstanceNorm, nn.InstanceNorm1d):
    __doc__ = "Instance norm over [N, C, L] or [C, L] with the activation and the residual fused." + _INSTANCE_NORM
    _unbatched_rank = 2


class InstanceNorm2d(_FusedInstanceNorm, nn.InstanceNorm2d):
    __doc__ = "Instance norm of [N, C, H, W] or [C, H, W], the activation and the residual fused." + _INSTANCE_NORM
    _unbatched_rank = 3


class InstanceNorm3d(_FusedInstanceNorm, nn.InstanceNorm3d):
    __doc__ = "Instance norm of [N, C, D, H, W] or [C, D, H, W], activation and residual fused." + _INSTANCE_NORM
    _unbatched_rank = 4


def _module_lesson_layer_norm(
    x: Tensor, mult: Tensor, add: Tensor, eps: float, activation: Activation, residual: Tensor | None
) -> Tensor:
    channels = x.shape[1]
    return group_norm(
        x, 1, mult.expand(channels), add.expand(channels), eps, act=activation, residual=residual, unbiased=True
    )


fx.wrap("_module_lesson_layer_norm")


class LessonLayerNorm(nn.Module):
    """Layer norm as the fast.ai lessons write it, fused.

    Mean and *unbiased* variance over all channels and positions of a sample, in training and evaluation alike:
    y = (x - mean) / sqrt(var + eps) * mult + add, with one number `mult` and one number `add` for the whole layer.

    Args: dummy, which is not looked at (the lessons pass the number of channels, as to the other norms); eps, inside
        the square root; act, an activation to fuse (keyword-only). `forward(x, residual=None)`.
    Shapes: [N, C, *], usually images; parameters 0-d.
    Raises: ValueError for samples of one value. Source: the lessons' notebook on batch normalization.
    """

    activation: Activation

    def __init__(self, dummy: object, eps: float = 1e-5, *, act: nn.Module | Activation | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.mult = nn.Parameter(torch.tensor(1.0))
        self.add = nn.Parameter(torch.tensor(0.0))
        self.activation = as_activation(act)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(norm(x) + residual)."""
        return _module_lesson_layer_norm(x, self.mult, self.add, self.eps, self.activation, residual)

    def extra_repr(self) -> str:
        return f"eps={self.eps}{_act_repr(self.activation)}"
