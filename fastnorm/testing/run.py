"""Runs a problem on a backend and judges everything that comes back."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fastnorm.activation import Activation
from fastnorm.functional import (
    batch_norm,
    general_relu,
    group_norm,
    instance_norm,
    layer_norm,
    layer_norm_2d,
    rms_norm,
)
from fastnorm.testing.cases import ACTS, Case, NormCase, ReluCase, RowCase
from fastnorm.testing.compare import check
from fastnorm.testing.judge import Expectations
from fastnorm.testing.layouts import bits_outside, norm_format, storage_bits
from fastnorm.testing.oracle import norm_problem, relu_problem
from fastnorm.testing.problems import Problem
from fastnorm.testing.row_oracle import row_problem
from fastnorm.testing.stats import StatsCase, conform_stats

BUFFERS = ("running_mean", "running_var")


@lru_cache(maxsize=64)
def solved(case: Case) -> tuple[Problem, Expectations]:
    """The problem and its answer; callers copy the problem before they let anything run on it."""
    if isinstance(case, ReluCase):
        return relu_problem(case)
    return norm_problem(case) if isinstance(case, NormCase) else row_problem(case)


def activation_of(case: NormCase | RowCase) -> Activation | None:
    return None if case.act is None else Activation(True, *ACTS[case.act].numbers)


def forward(case: Case, p: Problem, backend: str) -> Tensor:
    """y through the public functional interface."""
    if isinstance(case, ReluCase):
        return general_relu(p.x, *ACTS[case.act].numbers, backend=backend)
    if isinstance(case, RowCase):
        return row_forward(case, p, activation_of(case), backend)
    return batch_norm(
        p.x, p.running_mean, p.running_var, p.weight, p.bias, case.training, case.momentum, case.eps,
        act=activation_of(case), residual=p.residual, unbiased=case.unbiased, detach_stats=case.detach_stats,
        backend=backend,
    )  # fmt: skip


def row_forward(case: RowCase, p: Problem, act: Activation | None, backend: str) -> Tensor:
    """y of a case of the row family, whatever its activation is said to be."""
    residual, eps = p.residual, case.eps
    if case.kind == "layer":
        shape = case.parameter_shape
        return layer_norm(p.x, shape, p.weight, p.bias, eps, act=act, residual=residual, backend=backend)
    if case.kind == "rms":
        return rms_norm(p.x, case.parameter_shape, p.weight, eps, act=act, residual=residual, backend=backend)
    if case.kind == "position":
        return layer_norm_2d(p.x, p.weight, p.bias, eps, act=act, residual=residual, backend=backend)
    if case.kind == "instance":
        return instance_norm(p.x, weight=p.weight, bias=p.bias, eps=eps, act=act, residual=residual, backend=backend)
    return group_norm(
        p.x, case.groups, p.weight, p.bias, eps,
        act=act, residual=residual, unbiased=case.unbiased, backend=backend,
    )  # fmt: skip


def run(case: Case, p: Problem, backend: str) -> dict[str, Tensor]:
    """y, the gradients of all differentiable inputs, and the moved buffers (p's own)."""
    leaves = {name: t for name, t in p.tensors().items() if name not in ("dy", *BUFFERS)}
    for leaf in leaves.values():
        leaf.requires_grad_()
    y = forward(case, p, backend)
    grads = torch.autograd.grad(y, list(leaves.values()), p.dy)
    for leaf in leaves.values():
        leaf.requires_grad_(False)
    results = {"y": y.detach(), **{f"d{name}": g for name, g in zip(leaves, grads, strict=True)}}
    if isinstance(case, NormCase) and case.training:
        results |= {name: t for name, t in p.tensors().items() if name in BUFFERS}
    return results


def conform(case: Case | StatsCase, backend: str, device: str = "cpu") -> dict[str, Tensor]:
    """Forward and backward of a case: the rule, layouts, and not a byte written that is not a result's."""
    if isinstance(case, StatsCase):
        return conform_stats(case, backend, device)
    kept, wanted = solved(case)
    p = kept.copy(device)
    written = BUFFERS if isinstance(case, NormCase) and case.training else ()
    before = {name: (bits_outside if name in written else storage_bits)(t) for name, t in p.tensors().items()}
    results = run(case, p, backend)
    for name, t in p.tensors().items():
        after = (bits_outside if name in written else storage_bits)(t)
        assert torch.equal(before[name], after), f"{case.name}: memory of {name}, or around it, was written to"
    assert results.keys() == wanted.keys(), f"{case.name}: results {list(results)}, not {list(wanted)}"
    for name, want in wanted.items():
        check(results[name], want, f"{case.name} on {backend}: {name}")
    for name in ("y", "dx"):
        assert_layout(results[name], p.x, f"{case.name} on {backend}: {name}")
    return results


def assert_layout(result: Tensor, x: Tensor, label: str) -> None:
    """Dense, and channels_last where torch calls x that, else contiguous."""
    form = norm_format(x)
    assert result.is_contiguous(memory_format=form), (
        f"{label}: strides {result.stride()} for x of {x.stride()}, not {form}"
    )
    assert result.untyped_storage().nbytes() == result.numel() * result.element_size() or not result.numel(), label
