"""Wrong kernels of batch norm and GeneralRelu, as libraries have shipped them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastnorm.eager import IMPLEMENTATIONS
from fastnorm.eager import batch_norm as eager

from .mutants import Patch, dense, first_changed, install

fwd, bwd = IMPLEMENTATIONS["batch_norm_fwd"], IMPLEMENTATIONS["batch_norm_bwd"]
relu_fwd, relu_bwd = IMPLEMENTATIONS["general_relu_fwd"], IMPLEMENTATIONS["general_relu_bwd"]


def statistics(patch: Patch, wrong: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    patch.setattr(eager, "batch_statistics", wrong)
    install(patch)


def dims_of(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


def uncentred_variance(patch: Patch) -> None:
    def wrong(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.float().mean(dims_of(x))
        return mean, (x.float().square().mean(dims_of(x)) - mean.square()).clamp_min(0)

    statistics(patch, wrong)


def bf16_statistics(patch: Patch) -> None:
    right = eager.batch_statistics
    statistics(patch, lambda x: tuple(t.bfloat16().float() for t in right(x)))


def unbiased_normalisation(patch: Patch) -> None:
    install(patch, batch_norm_fwd=lambda *a: fwd(*a[:10], True, *a[11:]))


def one_accumulator(patch: Patch) -> None:
    def wrong(x: Tensor) -> tuple[Tensor, Tensor]:
        columns = x.float().transpose(0, 1).reshape(x.shape[1], -1).numpy()
        mean = torch.from_numpy(np.add.accumulate(columns, 1, dtype=np.float32)[:, -1].copy()) / columns.shape[1]
        return mean, x.double().var(dims_of(x), correction=0).float()

    statistics(patch, wrong)


def momentum_reversed(patch: Patch) -> None:
    install(patch, batch_norm_fwd=lambda *a: fwd(*a[:8], 1 - a[8], *a[9:]))


def eps_outside_the_root(patch: Patch) -> None:
    patch.setattr(eager, "inverse_std", lambda var, n, eps, unbiased: 1 / (var.sqrt() + eps))
    install(patch)


def biased_running_variance(patch: Patch) -> None:
    def wrong(*a: Any) -> Any:
        before = a[5].clone()
        result = fwd(*a)
        n = a[0].numel() / a[0].shape[1]
        a[5].copy_(before + (a[5] - before * (1 - a[8])) * (n - 1) / n - before * a[8])
        return result

    install(patch, batch_norm_fwd=wrong)


def forgets_the_layout(patch: Patch) -> None:
    install(patch, batch_norm_fwd=first_changed(fwd, Tensor.contiguous))


def ignores_strides(patch: Patch) -> None:
    install(patch, batch_norm_fwd=lambda x, *a: fwd(dense(x), *a))


def ignores_upstream_strides(patch: Patch) -> None:
    install(patch, batch_norm_bwd=lambda dy, *a: bwd(dense(dy), *a))


def skips_the_tail(patch: Patch) -> None:
    def wrong(y: Tensor) -> Tensor:
        out = torch.empty_like(y)
        out.view(-1)[:-1] = y.view(-1)[:-1]
        return out

    install(patch, batch_norm_fwd=first_changed(fwd, wrong))


def writes_past_the_buffer(patch: Patch) -> None:
    def wrong(*a: Any) -> Any:
        a[4].as_strided((1,), (1,), a[4].storage_offset() + a[4].numel()).fill_(0)
        return fwd(*a)

    install(patch, batch_norm_fwd=wrong)


def rounds_twice(patch: Patch) -> None:
    right = eager.normalize
    patch.setattr(eager, "normalize", lambda x, *a: right(x, *a).to(x.dtype).to(torch.float32))
    install(patch)


def flushes_denormals(patch: Patch) -> None:
    def flushed(x: Tensor) -> Tensor:
        return torch.where(x.abs() < torch.finfo(torch.float32).tiny, 0.0, x)

    install(patch, batch_norm_fwd=lambda x, *a: fwd(flushed(x), *a))


def drops_nan(patch: Patch) -> None:
    def wrong(x: Tensor, leak: Any, sub: Any, maxv: float, *rest: Any) -> Tensor:
        return torch.fmin(relu_fwd(x, leak, sub, None, None), torch.tensor(maxv, dtype=x.dtype))

    install(patch, general_relu_fwd=wrong)


def uncentred_dweight(patch: Patch) -> None:
    def wrong(dy: Tensor, x: Tensor, w: Any, b: Any, r: Any, mean: Tensor, rstd: Tensor, *a: Any) -> Any:
        dx, _, *rest = bwd(dy, x, w, b, r, mean, rstd, *a)
        dims = dims_of(x)
        return dx, ((dy * x).sum(dims) - mean * dy.sum(dims)) * rstd, *rest

    install(patch, batch_norm_bwd=wrong)


def forgets_the_average_of_dy(patch: Patch) -> None:
    """What a test whose loss is y.sum() cannot see."""
    install(patch, batch_norm_bwd=first_changed(bwd, lambda dx: dx + 1e-3))


def bf16_dbias(patch: Patch) -> None:
    def wrong(dy: Tensor, *a: Any) -> Any:
        dx, dweight, _, *rest = bwd(dy, *a)
        total = torch.zeros(dy.shape[1], dtype=torch.bfloat16)
        for sample in dy.flatten(2).unbind(2):
            total += sample.sum(0).bfloat16()
        return dx, dweight, total.float(), *rest

    install(patch, batch_norm_bwd=wrong)


def bound_blocks_the_gradient(patch: Patch) -> None:
    def wrong(dy: Tensor, x: Tensor, *a: Any) -> Tensor:
        return torch.where(relu_fwd(x, *a) == a[2], 0.0, relu_bwd(dy, x, *a))

    install(patch, general_relu_bwd=wrong)


def slope_one_at_zero(patch: Patch) -> None:
    install(patch, general_relu_bwd=lambda dy, x, *a: torch.where(x == 0, dy, relu_bwd(dy, x, *a)))


def clamps_only_positive(patch: Patch) -> None:
    def wrong(dy: Tensor, x: Tensor, *a: Any) -> Tensor:
        return torch.where(x > 0, relu_bwd(dy, x, *a), relu_bwd(dy, x, a[0], a[1], None, None))

    install(patch, general_relu_bwd=wrong)


def not_deterministic(patch: Patch) -> None:
    def wrong(*a: Any) -> Any:
        dx, dweight, *rest = bwd(*a)
        noise = torch.randint(0, 2, dweight.shape) * torch.finfo(dweight.dtype).eps
        return dx, dweight * (1 + noise), *rest

    install(patch, batch_norm_bwd=wrong)


def residual_gradient_behind_the_activation(patch: Patch) -> None:
    install(patch, batch_norm_bwd=lambda dy, *a: (*bwd(dy, *a)[:3], dy.clone()))


def second_derivative_without_statistics(patch: Patch) -> None:
    right = eager.batch_norm
    patch.setattr(eager, "batch_norm", lambda *a: right(*a[:7], True, *a[8:]))
