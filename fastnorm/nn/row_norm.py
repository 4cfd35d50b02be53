"""Layer, group and RMS norm modules: torch.nn's layers with a fused activation and residual."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from fastnorm.activation import IDENTITY, Activation, act_repr, as_activation, chosen
from fastnorm.functional import group_norm, layer_norm, layer_norm_2d, rms_norm

fx.wrap("layer_norm")  # a symbolic trace records the call; it must not look inside
fx.wrap("rms_norm")
fx.wrap("group_norm")
fx.wrap("layer_norm_2d")
fx.wrap("chosen")

# A module's own attribute look-up costs as much as an op, hence `_parameters` below; what is not there is parametrized.


class LayerNorm(nn.LayerNorm):
    """Layer norm over the trailing dims with the activation and the residual fused.

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual); mean and var over normalized_shape. torch.nn's
    arguments, state dict, behaviour and errors, and keyword-only `act`. `forward(x, residual=None)`.

    Args:
        act: GeneralRelu, nn.ReLU, nn.LeakyReLU or nn.ReLU6: fused, forward and backward, nothing saved for it.

    Shapes: x `[*, *normalized_shape]`, like the result; weight and bias normalized_shape.

    Dtypes: fp64, fp32, bf16, fp16, parameters in any of them.

    Source: Ba, Kiros and Hinton 2016; torch.nn.LayerNorm; `functional.layer_norm`.
    """

    activation: Activation = IDENTITY

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

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, act: nn.Module | Activation | None = None
    ) -> Tensor:
        """act(norm(input) + residual), with the layer's own act where none is given to the call."""
        parameters = self._parameters
        return layer_norm(
            input,
            self.normalized_shape,
            parameters["weight"] if "weight" in parameters else self.weight,
            parameters["bias"] if "bias" in parameters else self.bias,
            self.eps,
            act=chosen(self.activation, act),
            residual=residual,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + act_repr(self.activation)


class RMSNorm(nn.RMSNorm):
    """RMS norm over the trailing dims with the activation and the residual fused.

    y = act(x / sqrt(avg(x^2) + eps) * weight + residual), the average over normalized_shape. torch.nn's arguments,
    state dict, behaviour (eps=None is the spacing of the arithmetic's numbers at 1) and errors, and keyword-only `act`
    as `LayerNorm` has it. `forward(x, residual=None)`.

    Shapes: x `[*, *normalized_shape]`, like the result; the weight normalized_shape.

    Dtypes: fp64, fp32, bf16, fp16, the weight in any of them.

    Source: Zhang and Sennrich 2019; torch.nn.RMSNorm; `functional.rms_norm`.
    """

    activation: Activation = IDENTITY

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

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, act: nn.Module | Activation | None = None
    ) -> Tensor:
        """act(norm(x) + residual), with the layer's own act where none is given to the call."""
        parameters = self._parameters
        return rms_norm(
            x,
            self.normalized_shape,
            parameters["weight"] if "weight" in parameters else self.weight,
            self.eps,
            act=chosen(self.activation, act),
            residual=residual,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + act_repr(self.activation)


class GroupNorm(nn.GroupNorm):
    """Group norm with the activation and the residual fused.

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual); mean and var over num_channels / num_groups
    neighbouring channels of a sample, weight and bias per channel. torch.nn's arguments, state dict, behaviour and
    errors, and keyword-only `act` as `LayerNorm` has it. `forward(x, residual=None)`.

    Args:
        bias: False leaves the bias out.

    Shapes: x `[N, num_channels, *]`, like the result; weight and bias `[num_channels]`.

    Dtypes: fp64, fp32, bf16, fp16, parameters in any of them.

    Source: Wu and He 2018; torch.nn.GroupNorm; `functional.group_norm`.
    """

    activation: Activation = IDENTITY

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

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, act: nn.Module | Activation | None = None
    ) -> Tensor:
        """act(norm(input) + residual), with the layer's own act where none is given to the call."""
        parameters = self._parameters
        return group_norm(
            input,
            self.num_groups,
            parameters["weight"] if "weight" in parameters else self.weight,
            parameters["bias"] if "bias" in parameters else self.bias,
            self.eps,
            act=chosen(self.activation, act),
            residual=residual,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + act_repr(self.activation)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of images, at each position by itself (ConvNeXt's), with `act` and residual fused.

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual); mean and var over dim 1 of x, contiguous or
    channels_last, without permuting copies. `forward(x, residual=None)`.

    Args:
        num_channels: C.
        eps: added to the variance, inside the square root.
        elementwise_affine: a weight per channel, and a bias.
        bias: False leaves the bias out.
        act: an activation to fuse, as in `LayerNorm`.

    Shapes: x `[N, num_channels, *]`, like the result; parameters `weight` and `bias` `[num_channels]`.

    Dtypes: fp64, fp32, bf16, fp16, parameters in any of them.

    Raises:
        RuntimeError: for another number of channels.

    Source: Liu et al. 2022 (ConvNeXt); `functional.layer_norm_2d`.
    """

    activation: Activation = IDENTITY
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
        """Ones and zeros."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, act: nn.Module | Activation | None = None
    ) -> Tensor:
        """act(norm(input) + residual), with the layer's own act where none is given to the call."""
        parameters = self._parameters
        return layer_norm_2d(
            input,
            parameters["weight"] if "weight" in parameters else self.weight,
            parameters["bias"] if "bias" in parameters else self.bias,
            self.eps,
            act=chosen(self.activation, act),
            residual=residual,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_channels}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}{act_repr(self.activation)}"
        )


def _module_lesson_layer_norm(
    x: Tensor, mult: Tensor, add: Tensor, eps: float, activation: nn.Module | Activation, residual: Tensor | None
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

    Args:
        dummy: not looked at; the lessons pass the number of channels, as to the other norms.
        eps: added to the variance, inside the square root.
        act: an activation to fuse, as in `LayerNorm`.

    Shapes: x `[N, C, *]`, usually images; parameters 0-d.

    Dtypes: fp64, fp32, bf16, fp16, parameters in any of them.

    Raises:
        ValueError: for samples of one value.

    Source: the lessons' notebook on batch normalization.
    """

    activation: Activation = IDENTITY

    def __init__(self, dummy: object, eps: float = 1e-5, *, act: nn.Module | Activation | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.mult = nn.Parameter(torch.tensor(1.0))
        self.add = nn.Parameter(torch.tensor(0.0))
        self.activation = as_activation(act)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, act: nn.Module | Activation | None = None
    ) -> Tensor:
        """act(norm(x) + residual), with the layer's own act where none is given to the call."""
        return _module_lesson_layer_norm(x, self.mult, self.add, self.eps, chosen(self.activation, act), residual)

    def extra_repr(self) -> str:
        return f"eps={self.eps}{act_repr(self.activation)}"
