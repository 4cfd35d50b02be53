"""Every kind of check bites: wrong kernels, as libraries have shipped them, and the test that stops each.

The mutants take the eager backend's place; the library itself is not touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastnorm.autograd import route
from fastnorm.eager import IMPLEMENTATIONS
from fastnorm.eager import batch_norm as eager
from fastnorm.ops import OPS
from fastnorm.testing import NormCase, ReluCase, conform

from . import functions, test_determinism, test_graph, test_ties
from .backends import ALL

EAGER = ALL["eager"]
BASE = NormCase((5, 7, 3, 11))
BIG = NormCase((17, 33, 13, 11))
Patch = pytest.MonkeyPatch
fwd, bwd = IMPLEMENTATIONS["batch_norm_fwd"], IMPLEMENTATIONS["batch_norm_bwd"]
relu_fwd, relu_bwd = IMPLEMENTATIONS["general_relu_fwd"], IMPLEMENTATIONS["general_relu_bwd"]


def install(patch: Patch, **ops: Callable[..., Any]) -> None:
    patch.setattr(route, "_NODES", False)  # the compiled nodes call the registered ops, which no test can exchange
    patch.setitem(OPS, "eager", SimpleNamespace(**{**IMPLEMENTATIONS, **ops}))


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
    install(patch, batch_norm_fwd=lambda *a: (lambda y, *r: (y.contiguous(), *r))(*fwd(*a)))


def ignores_strides(patch: Patch) -> None:
    def dense(x: Tensor) -> Tensor:
        return x.as_strided(x.shape, torch.empty(x.shape).stride())

    install(patch, batch_norm_fwd=lambda x, *a: fwd(dense(x), *a))


def ignores_upstream_strides(patch: Patch) -> None:
    install(patch, batch_norm_bwd=lambda dy, *a: bwd(dy.as_strided(dy.shape, torch.empty(dy.shape).stride()), *a))


def skips_the_tail(patch: Patch) -> None:
    def wrong(*a: Any) -> Any:
        y, mean, rstd = fwd(*a)
        out = torch.empty_like(y)
        out.view(-1)[:-1] = y.view(-1)[:-1]
        return out, mean, rstd

    install(patch, batch_norm_fwd=wrong)


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
    install(patch, batch_norm_bwd=lambda *a: (lambda dx, *r: (dx + 1e-3, *r))(*bwd(*a)))


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


def saves_the_output(patch: Patch, norm: str = "batch_norm") -> None:
    """As a module does that composes the norm and the activation."""
    right = getattr(functions, norm)

    def wrong(*a: Any, act: Any = None, **k: Any) -> Tensor:
        y = right(*a, **k)
        return y if act is None else torch.nn.functional.leaky_relu(y, act.leak) - act.sub

    patch.setattr(functions, norm, wrong)


def residual_gradient_behind_the_activation(patch: Patch) -> None:
    install(patch, batch_norm_bwd=lambda dy, *a: (*bwd(dy, *a)[:3], dy.clone()))


def second_derivative_without_statistics(patch: Patch) -> None:
    right = eager.batch_norm
    patch.setattr(eager, "batch_norm", lambda *a: right(*a[:7], True, *a[8:]))


def conforms(case: NormCase | ReluCase) -> Callable[[], object]:
    return lambda: conform(case, "eager")


def gradgradcheck() -> None:
    from .test_derivatives import test_gradgradcheck

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: False)
        try:
            test_gradgradcheck("full", EAGER)
        except RuntimeError as error:  # gradcheck's own kind of failure
            raise AssertionError(str(error)) from error


MUTANTS: list[tuple[Callable[[Patch], None], Callable[[], object]]] = [
    (uncentred_variance, conforms(BASE.but(data="offset_1e2"))),
    (uncentred_variance, conforms(BIG.but(data="offset_1e4"))),
    (bf16_statistics, conforms(BASE)),
    (bf16_statistics, conforms(BASE.but(dtype="bf16"))),
    (unbiased_normalisation, conforms(BIG)),
    (one_accumulator, conforms(NormCase((400_009, 1), data="uniform"))),
    (momentum_reversed, conforms(BASE)),
    (eps_outside_the_root, conforms(BASE)),
    (biased_running_variance, conforms(BASE)),
    (forgets_the_layout, conforms(BASE.but(layout="channels_last"))),
    (ignores_strides, conforms(BASE.but(layout="every_second"))),
    (ignores_strides, conforms(BASE.but(layout="transposed"))),
    (ignores_upstream_strides, conforms(BASE.but(dy="channels_last"))),
    (ignores_upstream_strides, conforms(BASE.but(dy="every_second"))),
    (skips_the_tail, conforms(BASE)),
    (writes_past_the_buffer, conforms(BASE)),
    (rounds_twice, conforms(BASE.but(dtype="bf16", act="full"))),
    (flushes_denormals, conforms(BASE.but(data="denormal"))),
    (drops_nan, conforms(ReluCase((67,), data="nan"))),
    (uncentred_dweight, conforms(BASE.but(data="offset_1e4", dy="centred"))),
    (forgets_the_average_of_dy, conforms(BASE)),
    (bf16_dbias, conforms(BIG)),
    (clamps_only_positive, conforms(ReluCase((67,), act="low_max"))),
    (residual_gradient_behind_the_activation, conforms(BASE.but(act="full", residual="same"))),
    (
        bound_blocks_the_gradient,
        lambda: test_ties.test_general_relu(test_ties.EXACT_ACTS["full"], torch.float32, EAGER),
    ),
    (
        slope_one_at_zero,
        lambda: test_ties.test_general_relu(test_ties.EXACT_ACTS["relu"], torch.bfloat16, EAGER),
    ),
    (not_deterministic, lambda: test_determinism.test_repeat(BASE, EAGER)),
    (saves_the_output, lambda: test_graph.test_saved_bytes("batch", EAGER)),
    (second_derivative_without_statistics, gradgradcheck),
]


@pytest.mark.parametrize("mutant, killer", MUTANTS, ids=[f"{i}-{m.__name__}" for i, (m, _) in enumerate(MUTANTS)])
def test_mutant_is_caught(mutant: Callable[[Patch], None], killer: Callable[[], object]) -> None:
    killer()  # passes with the library as it is
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError):
        mutant(patch)
        killer()


def test_flushing_denormals_is_noticed() -> None:
    from .test_memory import test_denormals_are_kept

    torch.set_flush_denormal(True)
    try:
        with pytest.raises(AssertionError):
            test_denormals_are_kept()
    finally:
        torch.set_flush_denormal(False)


def test_writing_into_dy_is_noticed() -> None:
    """Also where the value comes back: an expanded dy that is scaled in place is scaled many times."""

    def wrong(dy: Tensor, *a: Any) -> Any:
        dy.as_strided((1,), (1,), dy.storage_offset()).add_(0.5)
        return bwd(dy, *a)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="memory of dy"):
        install(patch, batch_norm_bwd=wrong)
        conform(BASE, "eager")


def test_dependence_on_threads_is_noticed(threads: None) -> None:
    def wrong(*a: Any) -> Any:
        dx, dweight, *rest = bwd(*a)
        return dx, dweight * (1 + math.ulp(1.0) * 2**29 * torch.get_num_threads()), *rest

    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="threads"):
        install(patch, batch_norm_bwd=wrong)
        test_determinism.test_threads(BASE, EAGER, None)
