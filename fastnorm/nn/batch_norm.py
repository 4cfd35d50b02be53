"""Batch norm modules: torch.nn's layers with a fused activation and residual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fastnorm.activation import IDENTITY, Activation, act_repr, as_activation, chosen
from fastnorm.functional import batch_norm


def share_of_one(batches: Tensor, input: Tensor) -> Tensor:
    """1 / batches, the cumulative average's factor: on the device, in the dtype of the statistics of input."""
    return batches.to(torch.promote_types(input.dtype, torch.float32)).reciprocal()


def _module_batch_norm(
    input: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    track_running_stats: bool,
    momentum: float | None,
    eps: float,
    activation: nn.Module | Activation,
    unbiased: bool,
    ranks: tuple[int, ...],
) -> Tensor:
    """A module's whole forward pass, in one function so that a symbolic trace can record it as one call."""
    if input.dim() not in ranks:
        expected = " or ".join(f"{rank}D" for rank in ranks)
        raise ValueError(f"expected {expected} input (got {input.dim()}D input)")
    if not training:
        use_batch = running_mean is None and running_var is None
    else:
        use_batch = True
        if not track_running_stats:
            running_mean = running_var = None
    factor: float | Tensor = 0.0 if momentum is None else momentum
    if training and track_running_stats and num_batches_tracked is not None:
        num_batches_tracked.add_(1)
        if momentum is None:
            factor = share_of_one(num_batches_tracked, input)
    return batch_norm(
        input, running_mean, running_var, weight, bias, use_batch, factor, eps,
        act=activation, residual=residual, unbiased=unbiased,
    )  # fmt: skip


fx.wrap("_module_batch_norm")
fx.wrap("chosen")
fx.wrap("batch_norm")  # what LessonBatchNorm calls


class _FusedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """The forward pass and the extra arguments; a subclass adds the ranks that its input may have."""

    activation: Activation = IDENTITY  # of the class: `convert` makes a torch.nn layer one of these, as it is
    unbiased: bool = False
    _ranks: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        act: nn.Module | Activation | None = None,
        unbiased: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if not bias:
            self.register_parameter("bias", None)
        self.activation = as_activation(act)
        self.unbiased = unbiased

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, act: nn.Module | Activation | None = None
    ) -> Tensor:
        """act(norm(input) + residual), with the layer's own act where none is given to the call."""
        # A module's own attribute look-up costs as much as an op.
        parameters, buffers = self._parameters, self._buffers
        return _module_batch_norm(
            input,
            residual,
            buffers["running_mean"] if "running_mean" in buffers else self.running_mean,
            buffers["running_var"] if "running_var" in buffers else self.running_var,
            buffers["num_batches_tracked"] if "num_batches_tracked" in buffers else self.num_batches_tracked,
            parameters["weight"] if "weight" in parameters else self.weight,  # else parametrized
            parameters["bias"] if "bias" in parameters else self.bias,
            self.training, self.track_running_stats, self.momentum, self.eps, chosen(self.activation, act),
            self.unbiased, self._ranks,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return super().extra_repr() + act_repr(self.activation) + (", unbiased=True" if self.unbiased else "")


class BatchNorm1d(_FusedBatchNorm, nn.BatchNorm1d):
    """Batch norm over `[N, C]` or `[N, C, L]` with the activation and the residual fused.

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual). All else is as in `BatchNorm2d`.
    """

    _ranks = (2, 3)


class BatchNorm2d(_FusedBatchNorm, nn.BatchNorm2d):
    """Batch norm over `[N, C, H, W]` with the activation and the residual fused.

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual); mean and var per channel, of the batch in
    training, of the running buffers in evaluation. torch.nn's arguments, state dict, behaviour and errors, and
    keyword-only `bias`, `act` and `unbiased`. `forward(x, residual=None)`.

    Args:
        bias: False leaves the bias out.
        act: GeneralRelu, nn.ReLU, nn.LeakyReLU or nn.ReLU6: fused, forward and backward, nothing saved for it.
        unbiased: normalise with the unbiased variance, as the fast.ai lessons do.

    Dtypes: fp64, fp32, bf16, fp16, parameters and buffers in the same or any other of them.

    Source: Ioffe and Szegedy 2015; torch.nn.BatchNorm2d; `functional.batch_norm`.
    """

    _ranks = (4,)


class BatchNorm3d(_FusedBatchNorm, nn.BatchNorm3d):
    """Batch norm over `[N, C, D, H, W]` with the activation and the residual fused.

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual). All else is as in `BatchNorm2d`.
    """

    _ranks = (5,)


class LessonBatchNorm(nn.Module):
    """Batch norm as the fast.ai lessons write it, fused.

    Training normalises with the batch's mean and *unbiased* variance, through which no gradient flows, and lerps the
    buffers `means` and `vars` by `mom`; evaluation uses the buffers. y = (x - mean) / sqrt(var + eps) * mults + adds.

    Args:
        nf: the number of channels.
        mom: the lerp factor.
        eps: added to the variance, inside the square root.
        act: an activation to fuse, as in `BatchNorm2d`.

    Shapes: x `[N, nf, *]`, usually images; parameters `[nf, 1, 1]`, buffers `[1, nf, 1, 1]`.

    Dtypes: as `BatchNorm2d`.

    Raises:
        ValueError: for a batch of one value per channel.

    Source: the lessons' notebook on batch normalization.
    """

    vars: Tensor
    means: Tensor

    def __init__(
        self, nf: int, mom: float = 0.1, eps: float = 1e-5, *, act: nn.Module | Activation | None = None
    ) -> None:
        super().__init__()
        self.mom, self.eps = mom, eps
        self.mults = nn.Parameter(torch.ones(nf, 1, 1))
        self.adds = nn.Parameter(torch.zeros(nf, 1, 1))
        self.register_buffer("vars", torch.ones(1, nf, 1, 1))
        self.register_buffer("means", torch.zeros(1, nf, 1, 1))
        self.activation = as_activation(act)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, act: nn.Module | Activation | None = None
    ) -> Tensor:
        """act(norm(x) + residual), with the layer's own act where none is given to the call."""
        return batch_norm(
            x,
            self.means.view(-1),
            self.vars.view(-1),
            self.mults.view(-1),
            self.adds.view(-1),
            self.training,
            self.mom,
            self.eps,
            act=chosen(self.activation, act),
            residual=residual,
            unbiased=True,
            detach_stats=True,
        )

    def extra_repr(self) -> str:
        extra: dict[str, Any] = {"mom": self.mom, "eps": self.eps}
        if self.activation.active:
            extra["act"] = self.activation
        return ", ".join([str(self.mults.shape[0]), *(f"{k}={v}" for k, v in extra.items())])
