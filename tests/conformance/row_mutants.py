"""Wrong kernels of the row family, as libraries have shipped them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastnorm.autograd import row_norm as autograd
from fastnorm.eager import IMPLEMENTATIONS
from fastnorm.eager import row_norm as eager

from .mutants import Patch, dense, first_changed, install, saves_the_output

fwd, bwd = IMPLEMENTATIONS["row_norm_fwd"], IMPLEMENTATIONS["row_norm_bwd"]
X, WEIGHT, DIMS, GROUPS, EPS, IS_RMS, UNBIASED = 0, 1, 4, 5, 6, 7, 8  # places among the forward's arguments


def changed(arguments: tuple[Any, ...], at: int, value: Any) -> tuple[Any, ...]:
    return (*arguments[:at], value, *arguments[at + 1 :])


def statistics(patch: Patch, wrong: Callable[..., tuple[Tensor | None, Tensor]]) -> None:
    patch.setattr(eager, "row_statistics", wrong)
    install(patch)


def uncentred_variance(patch: Patch) -> None:
    def wrong(x: Tensor, dims: int, groups: int, eps: float, *_: bool) -> tuple[Tensor, Tensor]:
        xs, over = eager.split_groups(x, groups).float(), eager.set_dims(x, dims, groups)
        mean = xs.mean(over, keepdim=True)
        var = (xs.square().mean(over, keepdim=True) - mean.square()).clamp_min(0)
        return mean, torch.rsqrt(var + eps)

    statistics(patch, wrong)


def bf16_statistics(patch: Patch) -> None:
    right = eager.row_statistics
    statistics(patch, lambda *a: tuple(t if t is None else t.bfloat16().float() for t in right(*a)))


def one_accumulator(patch: Patch) -> None:
    def wrong(x: Tensor, dims: int, groups: int, eps: float, *_: bool) -> tuple[Tensor, Tensor]:
        total = np.add.accumulate(x.float().numpy(), 1, dtype=np.float32)[:, -1:].copy()
        mean = torch.from_numpy(total) / x.shape[1]
        return mean, torch.rsqrt(x.double().var(1, correction=0, keepdim=True).float() + eps)

    statistics(patch, wrong)


def eps_outside_the_root(patch: Patch) -> None:
    patch.setattr(eager, "inverse_std", lambda var, n, eps, unbiased: 1 / (var.sqrt() + eps))
    install(patch)


def forgets_unbiased(patch: Patch) -> None:
    install(patch, row_norm_fwd=lambda *a: fwd(*changed(a, UNBIASED, False)))


def rms_takes_the_mean_off(patch: Patch) -> None:
    def wrong(*a: Any) -> Any:
        x = a[X] - a[X].mean(-1, keepdim=True) if a[IS_RMS] else a[X]
        return fwd(*changed(a, X, x))

    install(patch, row_norm_fwd=wrong)


def rms_gradient_of_layer_norm(patch: Patch) -> None:
    right = eager._input_grad
    patch.setattr(eager, "_input_grad", lambda g, x_hat, rstd, over, rms, unbiased: right(
        g, x_hat, rstd, over, False, unbiased
    ))  # fmt: skip
    install(patch)


def groups_interleaved(patch: Patch) -> None:
    """Channel c in group c % G instead of c // (C / G)."""

    def wrong(*a: Any) -> Any:
        x, groups = a[X], a[GROUPS]
        if not 1 < groups < x.shape[1]:
            return fwd(*a)
        order = torch.arange(x.shape[1]).reshape(-1, groups).t().flatten()
        y, mean, rstd = fwd(*changed(a, X, x[:, order]))
        return y[:, order.argsort()], mean, rstd

    install(patch, row_norm_fwd=wrong)


def statistics_of_the_first_sample(patch: Patch) -> None:
    right = eager.row_statistics
    statistics(patch, lambda *a: tuple(t[:1].expand(t.shape) for t in right(*a)))


def forgets_the_layout(patch: Patch) -> None:
    install(patch, row_norm_fwd=first_changed(fwd, Tensor.contiguous))


def forgets_the_layout_of_dx(patch: Patch) -> None:
    install(patch, row_norm_bwd=first_changed(bwd, Tensor.contiguous))


def ignores_strides(patch: Patch) -> None:
    install(patch, row_norm_fwd=lambda x, *a: fwd(dense(x), *a))


def ignores_upstream_strides(patch: Patch) -> None:
    install(patch, row_norm_bwd=lambda dy, *a: bwd(dense(dy), *a))


def ignores_strides_of_the_weight(patch: Patch) -> None:
    install(patch, row_norm_fwd=lambda *a: fwd(*changed(a, WEIGHT, dense(a[WEIGHT]))))


def skips_the_last_row(patch: Patch) -> None:
    def wrong(y: Tensor) -> Tensor:
        out = torch.empty_like(y)
        out[:-1] = y[:-1]
        return out

    install(patch, row_norm_fwd=first_changed(fwd, wrong))


def scribbles_behind_the_weight(patch: Patch) -> None:
    def wrong(*a: Any) -> Any:
        weight = a[WEIGHT]
        weight.as_strided((1,), (1,), weight.storage_offset() + weight.numel()).fill_(0)
        return fwd(*a)

    install(patch, row_norm_fwd=wrong)


def uncentred_dgamma(patch: Patch) -> None:
    def wrong(dy: Tensor, x: Tensor, weight: Any, bias: Any, residual: Any, mean: Tensor, rstd: Tensor, *a: Any) -> Any:
        dx, _, *rest = bwd(dy, x, weight, bias, residual, mean, rstd, *a)
        groups = a[1]
        m, r = (t.reshape(x.shape[0], groups).repeat_interleave(x.shape[1] // groups, 1) for t in (mean, rstd))
        dims = tuple(range(2, x.dim()))
        return dx, (((dy * x).sum(dims) - m * dy.sum(dims)) * r).sum(0), *rest

    install(patch, row_norm_bwd=wrong)


def forgets_the_average_of_dy(patch: Patch) -> None:
    install(patch, row_norm_bwd=first_changed(bwd, lambda dx: dx + 1e-3))


def forgets_the_last_row_of_dbias(patch: Patch) -> None:
    def wrong(dy: Tensor, *a: Any) -> Any:
        dx, dweight, dbias, *rest = bwd(dy, *a)
        return dx, dweight, dbias - dy[-1].sum((-2, -1)), *rest

    install(patch, row_norm_bwd=wrong)


def accumulated_dbias(patch: Patch, dtype: type) -> None:
    """One chain over the rows, in its dtype."""

    def wrong(dy: Tensor, *a: Any) -> Any:
        dx, dweight, dbias, *rest = bwd(dy, *a)
        total = np.add.accumulate(dy.float().numpy().astype(dtype), 0, dtype=dtype)[-1]
        return dx, dweight, torch.from_numpy(total).to(dbias.dtype), *rest

    install(patch, row_norm_bwd=wrong)


def half_dbias(patch: Patch) -> None:
    accumulated_dbias(patch, np.float16)


def one_accumulator_of_dbias(patch: Patch) -> None:
    accumulated_dbias(patch, np.float32)


def mask_without_the_bias(patch: Patch) -> None:
    install(patch, row_norm_bwd=lambda dy, x, w, b, *a: (
        lambda dx, dweight, _, *r: (dx, dweight, torch.zeros_like(b), *r)
    )(*bwd(dy, x, w, torch.zeros_like(b), *a)))  # fmt: skip


def residual_gradient_behind_the_activation(patch: Patch) -> None:
    install(patch, row_norm_bwd=lambda dy, *a: (*bwd(dy, *a)[:3], dy.clone()))


def sees_its_neighbours(patch: Patch) -> None:
    """As a kernel does whose split of a row depends on the number of rows."""

    eps = torch.finfo(torch.float32).eps
    install(patch, row_norm_fwd=first_changed(fwd, lambda y: y * (1 + len(y) * eps)))


def keeps_the_normalised(patch: Patch) -> None:
    saves_the_output(patch, "layer_norm")


def second_derivative_without_statistics(patch: Patch) -> None:
    right = eager.row_statistics
    patch.setattr(eager, "row_statistics", lambda x, *a: right(x.detach(), *a))


def mean_off_by_an_ulp(patch: Patch) -> None:
    def off(t: Tensor | None) -> Tensor | None:
        return t if t is None else torch.nextafter(t, torch.full_like(t, torch.inf))

    right = eager.row_statistics
    statistics(patch, lambda *a: (off(right(*a)[0]), right(*a)[1]))


def nothing_written_for_empty_batches(patch: Patch) -> None:
    def wrong(*a: Any) -> Any:
        return bwd(*a) if a[1].numel() else tuple(torch.empty_like(t) for t in bwd(*a))

    install(patch, row_norm_bwd=wrong)


def momentum_reversed(patch: Patch) -> None:
    right = autograd.move_running_instances
    patch.setattr(
        autograd, "move_running_instances", lambda x, mean, var, momentum, *a: right(x, mean, var, 1 - momentum, *a)
    )


def mean_of_rms(patch: Patch) -> None:
    install(patch, row_norm_fwd=lambda *a: (lambda y, m, rstd: (y, torch.zeros_like(rstd), rstd))(*fwd(*a)))
