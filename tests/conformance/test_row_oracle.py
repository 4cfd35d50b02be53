"""The row family's judge is judged: its definition against torch's own layers, its sets against plain loops."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastnorm.testing import RowCase, passes, solved
from fastnorm.testing.compare import Expectation
from fastnorm.testing.composed import compose_norm
from fastnorm.testing.judge import closest
from fastnorm.testing.problems import build
from fastnorm.testing.rounding import ROUNDINGS, across_sets
from fastnorm.testing.row_oracle import composed_row_norm, row_statistics, torch_row_norm
from fastnorm.testing.row_tables import FORMS, GROUP, INSTANCE, KINDS, LAYER, POSITION, RMS
from fastnorm.testing.sets import sets_of

every_kind = pytest.mark.parametrize("case", KINDS, ids=lambda c: c.name)


@pytest.mark.parametrize("data", ("normal", "offset_1e4", "outlier"))
@pytest.mark.parametrize("act", (None, "full"))
@every_kind
def test_oracle_is_torchs_layer(case: RowCase, data: str, act: str | None) -> None:
    """In float64 the two agree to nearly its last digits: forward and backward."""
    case = case.but(data=data, act=act, residual="same")
    p = build(case)
    ours, theirs = (compose_norm(case, p, torch.float64, norm) for norm in (composed_row_norm, torch_row_norm))
    torch.testing.assert_close(ours.y, theirs.y, rtol=1e-9, atol=1e-10)
    for a, b in zip(ours.gradients(p.dy).values(), theirs.gradients(p.dy).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def set_of(case: RowCase, index: tuple[int, ...]) -> tuple[int, ...]:
    """The name of the set that an element belongs to, in words of the layer's own documentation."""
    if case.kind in ("layer", "rms"):
        return index[: len(index) - case.size]
    if case.kind == "position":
        return (index[0], *index[2:])
    per_group = case.shape[1] // (case.shape[1] if case.kind == "instance" else case.size)
    return index[0], index[1] // per_group


@pytest.mark.parametrize("case", [*KINDS, *FORMS], ids=lambda c: c.name)
def test_sets_element_by_element(case: RowCase) -> None:
    """Mean and variance of each set, in the order in which the ops return them, and who shares a weight."""
    p = build(case)
    values: dict[tuple[int, ...], list[float]] = {}
    flat = p.x.to(torch.float64).flatten().tolist()
    for index, value in zip(itertools.product(*map(range, case.shape)), flat, strict=True):
        values.setdefault(set_of(case, index), []).append(value)
    stats = row_statistics(case, p)
    assert len(values) == stats.mean.numel() and {len(v) for v in values.values()} == {stats.n}
    sets = [torch.tensor(v, dtype=torch.float64) for _, v in sorted(values.items())]
    mean = torch.stack([v.mean() * (not case.rms) for v in sets])
    torch.testing.assert_close(stats.mean.flatten(), mean)
    var = torch.stack([(v - m).square().mean() for v, m in zip(sets, mean, strict=True)])
    torch.testing.assert_close(stats.var.flatten(), var)
    weight = torch.arange(p.weight.numel(), dtype=torch.float64).reshape(p.weight.shape)
    spread = sets_of(case).parameter(weight).expand(sets_of(case).shape).reshape(case.shape)
    if case.dims:
        assert torch.equal(spread, weight.expand(case.shape))
    else:
        assert torch.equal(spread, weight.reshape(-1, *[1] * (len(case.shape) - 2)).expand(case.shape))


def test_unbiased_by_the_lessons() -> None:
    """Their layer norm: unbiased variance over all of C, H, W, eps inside the root."""
    case = GROUP.but(size=1, unbiased=True, weight=None, bias=None)
    kept, wanted = solved(case)
    x = kept.x.double().requires_grad_()
    dims = (1, 2, 3)
    y = (x - x.mean(dims, keepdim=True)) / (x.var(dims, keepdim=True, correction=1) + case.eps).sqrt()
    torch.testing.assert_close(wanted["y"].exact, y.detach())
    torch.testing.assert_close(wanted["dx"].exact, torch.autograd.grad(y, x, kept.dy.double())[0])


@pytest.mark.parametrize("case", (LAYER, RMS, GROUP, INSTANCE, POSITION), ids=lambda c: c.kind)
def test_rule_judges_sets_apart(case: RowCase) -> None:
    """torch's error in one set excuses nothing in another."""
    sets = sets_of(case)
    exact = torch.zeros(case.shape, dtype=torch.float64)
    off = torch.zeros(sets.shape, dtype=torch.float64)
    first = tuple(0 if d not in sets.inside else slice(None) for d in range(len(sets.shape)))
    off[first] = 1e-3
    peer = off.reshape(case.shape) * torch.rand(case.shape).round()
    want = Expectation(exact, peer, torch.zeros(()), torch.float32, sets)
    assert torch.equal(passes(torch.full(case.shape, 5e-4), want), off.reshape(case.shape) > 0)


def test_the_closest_peer_counts() -> None:
    exact = torch.tensor([1.0, torch.nan, 2.0], dtype=torch.float64)
    near, far, nan = (exact + off for off in (1e-3, 1e-2, torch.nan))
    assert torch.equal(closest([far, near, nan], exact)[::2], near[::2])
    assert torch.equal(closest([nan, far], exact)[::2], far[::2])


def test_errors_of_many_sets_walk() -> None:
    """Unless they all go the same way."""
    same, mixed = torch.ones(10_000), torch.ones(10_000)
    mixed[::2] = -1
    assert float(across_sets(same, (0,))) == 10_000
    assert float(across_sets(mixed, (0,))) == ROUNDINGS * 100
    assert float(across_sets(torch.tensor([-3.0]), (0,))) == 3  # one set: no more than its own
    assert torch.equal(across_sets(torch.tensor([-3.0]), ()), torch.tensor([3.0]))


@every_kind
def test_dy_is_zero_only_near_a_kink(case: RowCase) -> None:
    """Steering around kinks takes next to nothing out of a test."""
    for data, share in (("normal", 1e-3), ("offset_1e4", 0.03)):
        kept, _ = solved(case.but(act="full", data=data))
        assert float((kept.dy == 0).double().mean()) <= share
