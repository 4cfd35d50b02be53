"""torch's own checks of the row_norm ops in every namespace, and the results that the functions hide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastnorm.ops import OPS
from fastnorm.testing import RowCase, check, solved
from fastnorm.testing.compare import Expectation
from fastnorm.testing.row_oracle import row_statistics
from fastnorm.testing.row_tables import GROUP, KINDS, LAYER, POSITION, RMS

from .backends import Backend, each_backend, random
from .test_opcheck import ACT, LAYOUTS, LAYOUTS_OF_BACKENDS, NO_ACT, opcheck

# dims, groups, rms, unbiased; whether there are a weight, a bias, a residual; need_dx; act
VARIANTS: dict[str, tuple[tuple[Any, ...], tuple[bool, bool, bool], bool, tuple[Any, ...]]] = {
    "layer": ((1, 0, False, False), (True, True, False), True, NO_ACT),
    "layer_fused": ((2, 0, False, False), (True, False, True), True, ACT),
    "rms": ((1, 0, True, False), (True, False, True), True, ACT),
    "rms_bare": ((2, 0, True, False), (False, False, False), False, NO_ACT),
    "group": ((0, 1, False, True), (True, True, True), True, ACT),
    "instance": ((0, 5, False, False), (False, True, False), True, ACT),
    "position": ((0, 0, False, False), (True, True, False), True, NO_ACT),
    "position_bare": ((0, 0, False, False), (False, False, False), False, NO_ACT),
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def tensors(x: Tensor, variant: str) -> tuple[Tensor | None, ...]:
    """weight (fp32), bias (bf16), residual."""
    (dims, *_), present, _, _ = VARIANTS[variant]
    shape = x.shape[x.dim() - dims :] if dims else (5,)
    made = (random(*shape, seed=1), random(*shape, seed=2, dtype=torch.bfloat16), torch.ones_like(x))
    return tuple(t if there else None for t, there in zip(made, present, strict=True))


def forward_arguments(x: Tensor, variant: str) -> tuple[Any, ...]:
    (dims, groups, rms, unbiased), _, _, act = VARIANTS[variant]
    return (x, *tensors(x, variant), dims, groups, 1e-5, rms, unbiased, *act)


def backward_arguments(x: Tensor, variant: str, backend: Backend) -> tuple[Any, ...]:
    (dims, groups, rms, unbiased), _, need_dx, act = VARIANTS[variant]
    _, mean, rstd = OPS[backend.namespace].row_norm_fwd(*forward_arguments(x, variant))
    weight, bias, residual = tensors(x, variant)
    residual = residual if act[0] else None
    return (torch.ones_like(x), x, weight, bias, residual, mean, rstd, dims, groups, rms, unbiased, need_dx, *act)


# Each variant in every second layout, each layout with every second variant.
CHECKED = [
    (layout, variant, backend)
    for i, (layout, backend) in enumerate(LAYOUTS_OF_BACKENDS)
    for j, variant in enumerate(VARIANTS)
    if (i + j) % 2 == 0
]


@pytest.mark.parametrize("layout, variant, backend", CHECKED, ids=str)
def test_row_norm(layout: str, variant: str, backend: Backend) -> None:
    x, ops = LAYOUTS[layout](), OPS[backend.namespace]
    opcheck(ops.row_norm_fwd, forward_arguments(x, variant))
    opcheck(ops.row_norm_bwd, backward_arguments(x, variant, backend))


@pytest.mark.parametrize("layout", ("channels_last", "bf16", "empty"))
@variants
@each_backend()
def test_shapes_and_dtypes_of_results(layout: str, variant: str, backend: Backend) -> None:
    """Statistics one per set in the arithmetic's dtype, none of RMS norm's mean; nothing where nothing is asked."""
    x = LAYOUTS[layout]()
    (dims, groups, rms, _), (weight, bias, residual), need_dx, act = VARIANTS[variant]
    y, mean, rstd = OPS[backend.namespace].row_norm_fwd(*forward_arguments(x, variant))
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    sets = x.shape[: x.dim() - dims].numel() if dims else x.shape[0] * groups if groups else x[:, :1].numel()
    assert y.shape == x.shape and y.dtype == x.dtype and y.is_contiguous(memory_format=form)
    assert rstd.shape == (sets,) and mean.shape == (0 if rms else sets,)
    assert mean.dtype == rstd.dtype == acc
    results = OPS[backend.namespace].row_norm_bwd(*backward_arguments(x, variant, backend))
    parameter = tuple(x.shape[x.dim() - dims :]) if dims else (5,)
    wanted = (
        (x.shape if need_dx else (0,), x.dtype),
        (parameter if weight else (0,), torch.float32 if weight else acc),
        (parameter if bias else (0,), torch.bfloat16 if bias else acc),
        (x.shape if residual and act[0] else (0,), x.dtype),
    )
    assert [(t.shape, t.dtype) for t in results] == list(wanted)
    for t in (results[0], results[3]):
        assert t.dim() == 1 or t.is_contiguous(memory_format=form)
    if not x.numel():
        assert all(torch.equal(t, torch.zeros_like(t)) for t in results)


@pytest.mark.parametrize("data", ("normal", "offset_1e4", "outlier", "constant"))
@pytest.mark.parametrize("case", (*KINDS, GROUP.but(unbiased=True)), ids=lambda c: c.name)
@each_backend()
def test_statistics_for_the_backward(case: RowCase, data: str, backend: Backend) -> None:
    """mean and rstd are judged apart from y, so that an error of one cannot hide behind the other's."""
    case = case.but(data=data, layout="channels_last" if data in ("normal", "offset_1e4") else "contiguous")
    kept, _ = solved(case)
    p, exact = kept.copy(backend.device), row_statistics(case, kept)
    none = (None, None, None)
    arguments = (p.x, *none, case.dims, case.groups, case.eps, case.rms, case.unbiased, *NO_ACT)
    _, mean, rstd = OPS[backend.namespace].row_norm_fwd(*arguments)
    pairs = [(rstd, exact.rstd, exact.rstd * exact.rstd_error)]
    if not case.rms:
        pairs.append((mean, exact.mean, exact.mean_error))
    for got, want, floor in pairs:
        check(got, Expectation(want.flatten(), want.flatten(), floor.flatten(), torch.float32), data)


@pytest.mark.parametrize("case", (LAYER, POSITION, GROUP, RMS), ids=lambda c: c.kind)
@each_backend()
def test_bias_of_any_kind_at_the_op(case: RowCase, backend: Backend) -> None:
    """RMS norm's functions take no bias; its op does, as the other kinds' do: it shifts y and sums dy."""
    kept, _ = solved(case)
    p, ops = kept.copy(backend.device), OPS[backend.namespace]
    bias = random(*case.parameter_shape, seed=7)
    shape = (case.dims, case.groups)
    plain, mean, rstd = ops.row_norm_fwd(p.x, None, None, None, *shape, case.eps, case.rms, False, *NO_ACT)
    moved, _, _ = ops.row_norm_fwd(p.x, None, bias, None, *shape, case.eps, case.rms, False, *NO_ACT)
    over_x = bias if case.dims else bias.reshape(-1, *[1] * (p.x.dim() - 2))
    torch.testing.assert_close(moved, plain + over_x)
    back = ops.row_norm_bwd(p.dy, p.x, None, bias, None, mean, rstd, *shape, case.rms, False, False, *NO_ACT)
    dims = tuple(range(p.x.dim() - case.dims)) if case.dims else (0, 2, 3)
    torch.testing.assert_close(back[2], p.dy.sum(dims))
