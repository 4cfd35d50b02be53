"""Batch norm whose statistics are taken over the batches of all processes of a group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn

from fastnorm.activation import IDENTITY, Activation, act_repr, as_activation, chosen
from fastnorm.functional import synchronized_batch_norm
from fastnorm.nn.batch_norm import _module_batch_norm, share_of_one

fx.wrap("chosen")


class SyncBatchNorm(nn.SyncBatchNorm):
    """torch.nn.SyncBatchNorm with a fused-in activation and residual, on CPUs (gloo) as well as GPUs (nccl).

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual). In training, in a process group of more than one,
    mean and var are those of all processes' batches together, each counted by its size (a process may have none);
    gradients flow through them to every process. Otherwise it is fastnorm's batch norm. The synchronised path runs in
    plain PyTorch around two all-reduces.

    torch.nn's arguments, state dict and errors, and keyword-only `act` and `unbiased` as `BatchNorm2d` has them.
    `convert_sync_batchnorm` turns every batch norm of a model, fastnorm's with their activation, into this layer.

    Shapes: x `[N, C, *]`, like the result.

    Dtypes: as `BatchNorm2d`.

    Raises:
        ValueError: for fewer than 2 dims, and if all processes together have one value per channel.

    Source: torch.nn.SyncBatchNorm; `functional.synchronized_batch_norm`.
    """

    activation: Activation = IDENTITY
    unbiased: bool = False

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        act: nn.Module | Activation | None = None,
        unbiased: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, process_group, device, dtype)
        if not bias:
            self.register_parameter("bias", None)
        self.activation = as_activation(act)
        self.unbiased = unbiased

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, act: nn.Module | Activation | None = None
    ) -> Tensor:
        """act(norm(input) + residual), with the layer's own act where none is given to the call."""
        if not self.training or not _several_processes(self.process_group):
            return _module_batch_norm(
                input, residual, self.running_mean, self.running_var, self.num_batches_tracked, self.weight, self.bias,
                self.training, self.track_running_stats, self.momentum, self.eps, chosen(self.activation, act),
                self.unbiased,
                tuple(range(2, 9)),
            )  # fmt: skip
        tracked = self.track_running_stats
        factor: float | Tensor = 0.0 if self.momentum is None else self.momentum
        if tracked and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = share_of_one(self.num_batches_tracked, input)
        return synchronized_batch_norm(
            input,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            self.weight,
            self.bias,
            factor,
            self.eps,
            group=self.process_group,
            act=chosen(self.activation, act),
            residual=residual,
            unbiased=self.unbiased,
        )

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """The module with every batch norm in it replaced by this layer, parameters and buffers shared."""
        converted = module
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            converted = cls(
                module.num_features,
                module.eps,
                module.momentum,
                module.affine,
                module.track_running_stats,
                process_group,
                act=getattr(module, "activation", None),
                unbiased=getattr(module, "unbiased", False),
            )
            converted._parameters.update(module._parameters)
            converted._buffers.update(module._buffers)
            converted.training = module.training
        for name, child in module.named_children():
            converted.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return converted

    def extra_repr(self) -> str:
        return super().extra_repr() + act_repr(self.activation) + (", unbiased=True" if self.unbiased else "")


def _several_processes(group: Any) -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1
