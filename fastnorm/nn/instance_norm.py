"""Instance norm modules: torch.nn's layers with a fused activation and residual."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, fx, nn

from fastnorm.activation import IDENTITY, Activation, act_repr, as_activation, chosen
from fastnorm.functional import instance_norm


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
    activation: nn.Module | Activation,
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
    batched = residual.unsqueeze(0) if isinstance(residual, Tensor) else residual
    return instance_norm(input.unsqueeze(0), *arguments, act=activation, residual=batched).squeeze(0)


fx.wrap("_module_instance_norm")
fx.wrap("chosen")


class _FusedInstanceNorm(nn.modules.instancenorm._InstanceNorm):
    """The forward pass and the extra argument; a subclass adds the rank of its input."""

    activation: Activation = IDENTITY
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

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, act: nn.Module | Activation | None = None
    ) -> Tensor:
        """act(norm(input) + residual), with the layer's own act where none is given to the call."""
        parameters, buffers = self._parameters, self._buffers
        return _module_instance_norm(
            input,
            residual,
            buffers["running_mean"] if "running_mean" in buffers else self.running_mean,
            buffers["running_var"] if "running_var" in buffers else self.running_var,
            parameters["weight"] if "weight" in parameters else self.weight,
            parameters["bias"] if "bias" in parameters else self.bias,
            self.training or not self.track_running_stats,
            self.momentum, self.eps, chosen(self.activation, act), self.num_features, self.affine,
            self._unbatched_rank,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return super().extra_repr() + act_repr(self.activation)


class InstanceNorm1d(_FusedInstanceNorm, nn.InstanceNorm1d):
    """Instance norm over `[N, C, L]` or `[C, L]` with the activation and the residual fused.

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual). All else is as in `InstanceNorm2d`.
    """

    _unbatched_rank = 2


class InstanceNorm2d(_FusedInstanceNorm, nn.InstanceNorm2d):
    """Instance norm over `[N, C, H, W]` or `[C, H, W]` with the activation and the residual fused.

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual); mean and var per sample and channel, over its
    positions; with track_running_stats, of the running buffers in evaluation. torch.nn's arguments, state dict,
    behaviour and errors (but an empty batch gives an empty result), and keyword-only `act` as `LayerNorm` has it.
    `forward(x, residual=None)`.

    Args:
        bias: False leaves the bias out.

    Dtypes: fp64, fp32, bf16, fp16, parameters and buffers in the same or any other of them.

    Source: Ulyanov, Vedaldi and Lempitsky 2016; torch.nn.InstanceNorm2d; `functional.instance_norm`.
    """

    _unbatched_rank = 3


class InstanceNorm3d(_FusedInstanceNorm, nn.InstanceNorm3d):
    """Instance norm over `[N, C, D, H, W]` or `[C, D, H, W]` with the activation and the residual fused.

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual). All else is as in `InstanceNorm2d`.
    """

    _unbatched_rank = 4
