"""What to expect of every result of a norm, from its exact answer, its peers and what rounding can do."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastnorm.testing.cases import ACTS, DTYPES, NormCase, ReluCase, RowCase
from fastnorm.testing.compare import Expectation
from fastnorm.testing.composed import Composed, arithmetic, composed_relu
from fastnorm.testing.problems import LOOSE_UPSTREAM, Problem, lay_out_upstream
from fastnorm.testing.rounding import BackwardFloors, Statistics, activation_floor, normalized_floor, unit_of
from fastnorm.testing.sets import Sets, sets_of

Expectations = dict[str, Expectation]


def near_kink(z: Tensor, width: Tensor, case: NormCase | ReluCase | RowCase) -> Tensor:
    """Where rounding of z [.., width] may choose the other side of a corner of the activation."""
    act = ACTS[case.act] if case.act is not None else None
    if act is None:
        return torch.zeros_like(z, dtype=torch.bool)
    unit = unit_of(arithmetic(DTYPES[case.dtype]))
    near = (z.abs() <= width) & (width > 0)
    if act.maxv is None:
        return near
    unbounded = (act.leak, act.sub, None, None)
    y, wide = composed_relu(z, *unbounded), activation_floor(z, width, unbounded, unit)
    return near | ((y - act.maxv).abs() <= wide + unit * abs(act.maxv))


def steered(case: NormCase | ReluCase | RowCase, p: Problem, near: Tensor) -> Problem:
    """The problem with dy = 0 where rounding decides the activation's slope: every gradient is determined.

    What happens exactly at a corner is tested apart, with numbers that are exact. A dy whose elements share
    memory cannot be zeroed singly: there the case has to choose another seed.
    """
    if not bool(near.any()):
        return p
    assert case.dy not in LOOSE_UPSTREAM, f"{case.name}: an element is at a kink, choose another seed"
    return replace(p, dy=lay_out_upstream(p.dy.masked_fill(near, 0.0), case))


def expect(exact: Tensor, peer: Tensor, floor: Tensor, dtype: torch.dtype, sets: Sets | None = None) -> Expectation:
    exact, peer = exact.detach().to(torch.float64), peer.detach().to(torch.float64)
    return Expectation(exact, peer, floor.detach(), dtype, sets)


def judged(
    case: NormCase | RowCase, p: Problem, exact: Composed, peers: list[Composed], stats: Statistics, divisor: int
) -> tuple[Problem, Expectations]:
    """The problem with dy steered around kinks, and what to expect of y and every gradient.

    Of several peers the one with the smallest error counts, result by result.
    """
    sets, x = sets_of(case), p.x.to(torch.float64)
    z, weight = exact.z.detach(), _parameter(sets, p.weight, 1.0)
    residual = torch.zeros_like(x) if p.residual is None else p.residual.to(torch.float64)
    added = _parameter(sets, p.bias, 0.0).abs() + sets.view(residual).abs()
    floor = normalized_floor(sets.view(x), stats, stats.rstd * weight, added, sets.view(z)).reshape(x.shape)
    z_error = Expectation(z, closest([peer.z for peer in peers], z), floor, torch.float64, sets).bound()
    p = steered(case, p, near_kink(z, z_error, case))
    if case.act is not None:
        floor = activation_floor(z, floor, ACTS[case.act].numbers, stats.unit)
    grads, others = exact.gradients(p.dy), [peer.gradients(p.dy) for peer in peers]

    def gradient(name: str, floor: Tensor, t: Tensor, sets: Sets | None = None) -> Expectation:
        peer = closest([other[name] for other in others], grads[name])
        return expect(grads[name], peer, floor.reshape(grads[name].shape), t.dtype, sets)

    floors = BackwardFloors(sets.view(x), sets.view(grads["dz"]), weight, sets.view(grads["dx"]), stats, sets, divisor)
    wanted = {"y": expect(exact.y, closest([peer.y for peer in peers], exact.y), floor, p.x.dtype, sets)}
    wanted["dx"] = gradient("dx", floors.input(), p.x, sets)
    if p.residual is not None:
        wanted["dresidual"] = gradient("dresidual", floors.dresidual(), p.x, sets)
    if p.weight is not None:
        wanted["dweight"] = gradient("dweight", floors.dweight(), p.weight)
    if p.bias is not None:
        wanted["dbias"] = gradient("dbias", floors.dbias(), p.bias)
    return p, wanted


def closest(candidates: list[Tensor], exact: Tensor) -> Tensor:
    """The candidate with the smallest error where the answer is finite; there NaN is the largest."""

    def error(candidate: Tensor) -> float:
        off = (candidate.detach().to(torch.float64) - exact.detach()).abs()
        return float(torch.nan_to_num(off, torch.inf)[exact.isfinite()].square().sum())

    return (candidates[0] if len(candidates) == 1 else min(candidates, key=error)).detach().to(torch.float64)


def _parameter(sets: Sets, t: Tensor | None, missing: float) -> Tensor:
    if t is None:
        return torch.full([1] * len(sets.shape), missing, dtype=torch.float64)
    return sets.parameter(t.to(torch.float64))
