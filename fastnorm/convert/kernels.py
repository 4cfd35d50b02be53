"""How a twin of another package's norm computes: which attributes it reads, and what its result's dtype is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fastnorm.activation import Activation
from fastnorm.checks import FLOATING
from fastnorm.functional import batch_norm, group_norm, layer_norm, rms_norm
from fastnorm.nn.batch_norm import _module_batch_norm

for _name in ("_widened", "_channel_norm", "_module_batch_norm", "batch_norm", "group_norm", "layer_norm", "rms_norm"):
    fx.wrap(_name)  # a symbolic trace records the call; it must not look inside


class Kernel(NamedTuple):
    """run(module, x, residual, act) -> act(norm(x) + residual); serves(module, x): whether it may be asked to."""

    run: Callable[[Any, Tensor, Tensor | None, Any], Tensor]
    serves: Callable[[Any, Tensor], bool]


def _always(module: Any, x: Tensor) -> bool:
    return True


def _images(module: Any, x: Any) -> bool:
    return isinstance(x, fx.Proxy) or (x.dim() == 4 and x.dtype in FLOATING)


def _widened(x: Tensor, weight: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, weight.dtype))


def _batch(module: Any, x: Tensor, residual: Tensor | None, act: Activation) -> Tensor:
    return _module_batch_norm(
        x, residual, module.running_mean, module.running_var, module.num_batches_tracked, module.weight, module.bias,
        module.training, module.track_running_stats, module.momentum, module.eps, act, False, (4,),
    )  # fmt: skip


def _frozen(module: Any, x: Tensor, residual: Tensor | None, act: Activation) -> Tensor:
    """The buffers are constants. x * scale + shift has the wider dtype of x and buffers."""
    x = _widened(x, module.weight)
    statistics = module.running_mean, module.running_var, module.weight, module.bias
    return batch_norm(x, *statistics, False, 0.0, module.eps, act=act, residual=residual)


def _group(module: Any, x: Tensor, residual: Tensor | None, act: Activation) -> Tensor:
    return group_norm(x, module.num_groups, module.weight, module.bias, module.eps, act=act, residual=residual)


def _layer(module: Any, x: Tensor, residual: Tensor | None, act: Activation) -> Tensor:
    y = layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps, act=act, residual=residual)
    return y.to(x.dtype) if "Fp32" in type(module).__name__ else y  # under autocast torch's are fp32, these are not


def _layer_2d(module: Any, x: Tensor, residual: Tensor | None, act: Activation) -> Tensor:
    y = _channel_norm(x, residual, module.normalized_shape, module.weight, module.bias, module.eps, act)
    return y.to(x.dtype) if "Fp32" in type(module).__name__ else y


def _channel_norm(x: Tensor, residual: Tensor | None, *args: Any) -> Tensor:
    """Layer norm over dim 1 whose result is channels_last whatever x is, as the originals leave it.

    The convolutions behind it are faster that way: `layer_norm_2d`, which keeps x's order, made ConvNeXt slower.
    """
    rows = x.permute(0, 2, 3, 1)
    residual = None if residual is None else residual.permute(0, 2, 3, 1)
    *parameters, act = args
    return layer_norm(rows, *parameters, act=act, residual=residual).permute(0, 3, 1, 2)


def _rms(module: Any, x: Tensor, residual: Tensor | None, act: Activation) -> Tensor:
    y = rms_norm(x, module.normalized_shape, module.weight, module.eps, act=act, residual=residual)
    return y.to(x.dtype) if "Fp32" in type(module).__name__ else y


def _llama(eps: str, wide: bool) -> Callable[[Any, Tensor, Tensor | None, Any], Tensor]:
    """weight * x_hat.to(x's dtype), as wide as the wider of the two; or (weight * x_hat).to(x's dtype)."""

    def run(module: Any, x: Tensor, residual: Tensor | None, act: Activation) -> Tensor:
        weight = module.weight
        x = _widened(x, weight) if wide else x
        y = rms_norm(x, weight.shape, weight, getattr(module, eps), act=act, residual=residual)
        return y.to(x.dtype)

    return run


KERNELS: dict[str, Kernel] = {
    "batch": Kernel(_batch, _always),
    "frozen": Kernel(_frozen, _images),
    "group": Kernel(_group, _always),
    "layer": Kernel(_layer, _always),
    "layer_2d": Kernel(_layer_2d, _images),
    "rms": Kernel(_rms, _always),
    "llama_variance_epsilon": Kernel(_llama("variance_epsilon", True), _always),
    "llama_eps": Kernel(_llama("eps", True), _always),
    "olmo_variance_epsilon": Kernel(_llama("variance_epsilon", False), _always),
    "olmo_eps": Kernel(_llama("eps", False), _always),
}
