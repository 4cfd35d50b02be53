"""Batch norm modules: torch.nn's layers with a fused activation and residual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fastnorm.activation import Activation, as_activation
from fastnorm.functional import batch_norm

fx.wrap("batch_norm")  # a symbolic trace records the call; it must not look inside


class _FusedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """The forward pass and the extra arguments; a subclass adds torch.nn's check of the input's rank."""

    activation: Activation
    unbiased: bool

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

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(norm(input) + residual)."""
        self._check_input_dim(input)
        tracked = self.track_running_stats if self.training else True
        use_batch = self.training or self.running_mean is None
        return batch_norm(
            input,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            self.weight,
            self.bias,
            use_batch,
            self._count_batch() if self.training and self.track_running_stats else 0.0,
            self.eps,
            act=self.activation,
            residual=residual,
            unbiased=self.unbiased,
        )

    def _count_batch(self) -> float | Tensor:
        """Advance the counter; the lerp factor of this batch, on the device for the cumulative average."""
        counter = self.num_batches_tracked
        if counter is not None:
            counter.add_(1)
        if self.momentum is not None:
            return self.momentum
        return 0.0 if counter is None else counter.reciprocal()

    def extra_repr(self) -> str:
        extra = f", act={self.activation}" if self.activation.active else ""
        return super().extra_repr() + extra + (", unbiased=True" if self.unbiased else "")


_ARGUMENTS = """

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual); mean and var per channel, of the batch in
    training, of the running buffers in evaluation. torch.nn's arguments, state dict and behaviour, and
    keyword-only `act` (GeneralRelu, nn.ReLU, nn.LeakyReLU, nn.ReLU6: fused, forward and backward, nothing saved for
    it) and `unbiased` (normalise with the unbiased variance). `forward(x, residual=None)`.
    Dtypes: fp64, fp32, bf16, fp16, parameters and buffers in the same or any other of them.
    Raises as torch.nn's layer does. See `functional.batch_norm`.
    """


class BatchNorm1d(_FusedBatchNorm, nn.BatchNorm1d):
    __doc__ = "Batch norm over [N, C] or [N, C, L] with the activation and the residual fused." + _ARGUMENTS


class BatchNorm2d(_FusedBatchNorm, nn.BatchNorm2d):
    __doc__ = "Batch norm over [N, C, H, W] with the activation and the residual fused." + _ARGUMENTS


class BatchNorm3d(_FusedBatchNorm, nn.BatchNorm3d):
    __doc__ = "Batch norm over [N, C, D, H, W] with the activation and the residual fused." + _ARGUMENTS


class LessonBatchNorm(nn.Module):
    """Batch norm as the fast.ai lessons write it, fused.

    Training normalises with the batch's mean and *unbiased* variance, through which no gradient flows, and lerps the
    buffers `means` and `vars` by `mom`; evaluation uses the buffers. y = (x - mean) / sqrt(var + eps) * mults + adds.

    Args: nf channels; mom, the lerp factor; eps, inside the square root; act, an activation to fuse (keyword-only).
    Shapes: [N, nf, *], usually images; parameters [nf, 1, 1], buffers [1, nf, 1, 1].
    Raises: ValueError for a batch of one value per channel. Source: the lessons' notebook on batch normalization.
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

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return batch_norm(
            x,
            self.means.view(-1),
            self.vars.view(-1),
            self.mults.view(-1),
            self.adds.view(-1),
            self.training,
            self.mom,
            self.eps,
            act=self.activation,
            residual=residual,
            unbiased=True,
            detach_stats=True,
        )

    def extra_repr(self) -> str:
        extra: dict[str, Any] = {"mom": self.mom, "eps": self.eps}
        if self.activation.active:
            extra["act"] = self.activation
        return ", ".join([str(self.mults.shape[0]), *(f"{k}={v}" for k, v in extra.items())])
