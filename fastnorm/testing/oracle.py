"""The float64 oracle: batch norm and GeneralRelu composed of plain torch, and what to expect of a result.

Written from torch's own functions and the definitions, not from fastnorm.eager: the two check each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnorm.testing.cases import ACTS, DTYPES, NormCase, ReluCase
from fastnorm.testing.compare import Expectation
from fastnorm.testing.layouts import norm_format
from fastnorm.testing.problems import LOOSE_UPSTREAM, Problem, build, lay_out_upstream, over_channels
from fastnorm.testing.rounding import (
    BackwardFloors,
    Statistics,
    activation_floor,
    normalized_floor,
    unit_of,
)

Expectations = dict[str, Expectation]


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def composed_relu(
    z: Tensor, leak: float | None, sub: float | None, maxv: float | None, max_leak: float | None
) -> Tensor:
    """GeneralRelu as a user composes it."""
    y = torch.relu(z) if leak is None else F.leaky_relu(z, leak)
    y = y if sub is None else y.sub(sub)
    if maxv is None:
        return y
    return y.clamp(max=maxv) if max_leak is None else torch.where(y > maxv, (y - maxv) * max_leak + maxv, y)


def torch_norm(case: NormCase, x: Tensor, weight: Tensor | None, bias: Tensor | None, p: Problem) -> Tensor:
    """torch's own batch norm in x's dtype; composed where torch has no such option.

    A training batch is given as peer_view has it.
    """
    if not case.training:
        assert p.running_mean is not None and p.running_var is not None
        mean, var = p.running_mean.to(x.dtype), p.running_var.to(x.dtype)
        return F.batch_norm(x, mean.contiguous(), var.contiguous(), weight, bias, False, 0.0, case.eps)
    if not case.unbiased and not case.detach_stats:
        view = peer_view(x, p)
        y = F.batch_norm(view, None, None, weight, bias, True, 0.0, case.eps)
        return y if y.shape == x.shape else y.reshape(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)
    return composed_norm(case, x, weight, bias, p)


def peer_view(x: Tensor, p: Problem) -> Tensor:
    """x as [1, C, N * S], for which torch sums in double.

    Its other path, for [N, C], channels_last and images of one position, adds up in plain fp32 and would
    excuse too much. Only where squares overflow, nobody has to be better than torch is for that very layout.
    """
    if float(x.detach().abs().max()) ** 2 * x.numel() > torch.finfo(x.dtype).max:
        return x.contiguous(memory_format=norm_format(p.x))
    return x.transpose(0, 1).reshape(1, x.shape[1], -1)


def composed_norm(case: NormCase, x: Tensor, weight: Tensor | None, bias: Tensor | None, p: Problem) -> Tensor:
    """Batch norm by its definition, as the lessons write it.

    The batch's statistics are taken of x less a constant, which changes nothing but the rounding: in fp64 the
    answer must be better than the fp64 results that it judges.
    """
    dims = [d for d in range(x.dim()) if d != 1]
    if case.training:
        x = x - torch.nan_to_num(x.detach().mean(dims, keepdim=True), 0.0, 0.0, 0.0)
        counted = x.detach() if case.detach_stats else x
        mean = counted.mean(dims, keepdim=True)
        count = x.numel() // x.shape[1] - case.unbiased
        var = (counted - mean).square().sum(dims, keepdim=True) / count
    else:
        assert p.running_mean is not None and p.running_var is not None
        mean, var = (over_channels(t.to(x.dtype), x.dim()) for t in (p.running_mean, p.running_var))
    y = (x - mean) / (var + case.eps).sqrt()
    y = y if weight is None else y * over_channels(weight, x.dim())
    return y if bias is None else y + over_channels(bias, x.dim())


@dataclass
class Composed:
    """One evaluation of the composed operations in one dtype: z before the activation, y behind it."""

    z: Tensor
    y: Tensor
    leaves: dict[str, Tensor]

    def gradients(self, dy: Tensor) -> dict[str, Tensor]:
        """By leaf name, and that of z as dz."""
        names, inputs = [*self.leaves, "z"], [*self.leaves.values(), self.z]
        # A contiguous copy: torch 2.13 misreads a dy whose strides suit both formats, as (1, 5, 13, 1)'s may.
        upstream = dy.to(self.y.dtype, copy=True, memory_format=torch.contiguous_format)
        grads = torch.autograd.grad(self.y, inputs, upstream, retain_graph=True)
        return {f"d{name}": grad for name, grad in zip(names, grads, strict=True)}


Norm = Callable[[NormCase, Tensor, Tensor | None, Tensor | None, Problem], Tensor]


def compose_norm(case: NormCase, p: Problem, dtype: torch.dtype, norm: Norm) -> Composed:
    inputs = {"x": p.x, "weight": p.weight, "bias": p.bias, "residual": p.residual}
    leaves = {
        name: t.to(dtype, copy=True, memory_format=torch.contiguous_format).requires_grad_()
        for name, t in inputs.items()
        if t is not None
    }
    z = norm(case, leaves["x"], leaves.get("weight"), leaves.get("bias"), p)
    if p.residual is not None:
        z = z + leaves["residual"]
    return Composed(z, z if case.act is None else composed_relu(z, *ACTS[case.act].numbers), leaves)


def compose_relu(case: ReluCase, p: Problem, dtype: torch.dtype) -> Composed:
    x = p.x.to(dtype, copy=True, memory_format=torch.contiguous_format).requires_grad_()
    z = x.view_as(x)
    return Composed(z, composed_relu(z, *ACTS[case.act].numbers), {"x": x})


def statistics(case: NormCase, p: Problem) -> Statistics:
    """What normalises, in float64: [1, C, 1, ...]."""
    x, n = p.x.to(torch.float64), p.x.numel() // max(p.x.shape[1], 1)
    dtype = arithmetic(p.x.dtype)
    rest = (
        case.eps,
        n,
        unit_of(dtype),
        torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps,
    )
    if case.training:
        dims = [d for d in range(x.dim()) if d != 1]
        var, mean = torch.var_mean(x, dims, correction=case.unbiased, keepdim=True)
        return Statistics(mean, var, (x - mean).pow(4).sum(dims, keepdim=True).sqrt(), *rest)
    assert p.running_mean is not None and p.running_var is not None
    mean, var = (over_channels(t.to(torch.float64), x.dim())[None] for t in (p.running_mean, p.running_var))
    return Statistics(mean, var, torch.zeros_like(var), *rest)


def near_kink(z: Tensor, width: Tensor, case: NormCase | ReluCase) -> Tensor:
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


def steered(case: NormCase | ReluCase, p: Problem, near: Tensor) -> Problem:
    """The problem with dy = 0 where rounding decides the activation's slope: every gradient is determined.

    What happens exactly at a corner is tested apart, with numbers that are exact. A dy whose elements share
    memory cannot be zeroed singly: there the case has to choose another seed.
    """
    if not bool(near.any()):
        return p
    assert case.dy not in LOOSE_UPSTREAM, f"{case.name}: an element is at a kink, choose another seed"
    return replace(p, dy=lay_out_upstream(p.dy.masked_fill(near, 0.0), case))


def _expect(exact: Tensor, peer: Tensor, floor: Tensor, dtype: torch.dtype, per_channel: bool) -> Expectation:
    exact, peer = exact.detach().to(torch.float64), peer.detach().to(torch.float64)
    return Expectation(exact, peer, floor.detach(), dtype, per_channel)


def relu_problem(case: ReluCase) -> tuple[Problem, Expectations]:
    """The problem of a case and what a backend should answer: y, dx."""
    p = build(case)
    dtype = arithmetic(p.x.dtype)
    unit, numbers = unit_of(dtype), ACTS[case.act].numbers
    exact, peer = compose_relu(case, p, torch.float64), compose_relu(case, p, dtype)
    z = exact.z.detach()
    p = steered(case, p, near_kink(z, torch.zeros_like(z), case))
    floor = activation_floor(z, torch.zeros_like(z), numbers, unit)
    dx, peer_dx = exact.gradients(p.dy)["dx"], peer.gradients(p.dy)["dx"]
    return p, {
        "y": _expect(exact.y, peer.y, floor, p.x.dtype, False),
        "dx": _expect(dx, peer_dx, unit * dx.abs(), p.x.dtype, False),
    }


def norm_problem(case: NormCase) -> tuple[Problem, Expectations]:
    """The problem and what a backend should answer: y, every gradient, and the moved statistics."""
    p = build(case)
    exact = compose_norm(case, p, torch.float64, composed_norm)
    peer = compose_norm(case, p, arithmetic(p.x.dtype), torch_norm)
    stats = statistics(case, p)
    x, dtype = p.x.to(torch.float64), p.x.dtype
    weight = 1.0 if p.weight is None else over_channels(p.weight.to(torch.float64), x.dim())[None]
    scale = stats.rstd * weight
    z = exact.z.detach()
    added = sum((leaf.detach().abs() for leaf in _added(exact, x.dim())), start=torch.zeros_like(x))
    floor = normalized_floor(x, stats, scale, added, z)
    z_error = Expectation(z, peer.z.detach().to(torch.float64), floor, torch.float64, True).bound()
    p = steered(case, p, near_kink(z, z_error, case))
    if case.act is not None:
        floor = activation_floor(z, floor, ACTS[case.act].numbers, stats.unit)
    wanted = {"y": _expect(exact.y, peer.y, floor, dtype, True)}
    wanted |= _gradients(case, p, exact, peer, stats, scale)
    if case.training and case.stats is not None:
        wanted |= _running(case, p, stats)
    return p, wanted


def _added(composed: Composed, dims: int) -> list[Tensor]:
    bias, residual = composed.leaves.get("bias"), composed.leaves.get("residual")
    added = [] if bias is None else [over_channels(bias, dims)]
    return added if residual is None else [*added, residual]


def _gradients(
    case: NormCase, p: Problem, exact: Composed, peer: Composed, stats: Statistics, scale: Tensor
) -> Expectations:
    grads, peers = exact.gradients(p.dy), peer.gradients(p.dy)
    counted = case.training and not case.detach_stats
    divisor = stats.n - case.unbiased if counted else 0
    floors = BackwardFloors(p.x.to(torch.float64), grads["dz"], scale, grads["dx"], stats, divisor)
    wanted = {"dx": _expect(grads["dx"], peers["dx"], floors.input(), p.x.dtype, True)}
    if p.residual is not None:
        wanted["dresidual"] = _expect(grads["dresidual"], peers["dresidual"], floors.dresidual(), p.x.dtype, True)
    for name, t, floor in (("dweight", p.weight, floors.dweight), ("dbias", p.bias, floors.dbias)):
        if t is not None:
            wanted[name] = _expect(grads[name], peers[name], floor().flatten(), t.dtype, False)
    return wanted


def _running(case: NormCase, p: Problem, stats: Statistics) -> Expectations:
    """running = (1 - momentum) * running + momentum * batch statistic, the variance unbiased."""
    x, n, momentum, unit = p.x.to(torch.float64), stats.n, case.momentum, stats.unit
    dims = [d for d in range(x.dim()) if d != 1]
    mean, var = x.mean(dims), x.var(dims, correction=1)
    assert p.running_mean is not None and p.running_var is not None
    old_mean, old_var = p.running_mean.to(torch.float64), p.running_var.to(torch.float64)
    peers = [t.to(arithmetic(p.x.dtype)).contiguous().clone() for t in (p.running_mean, p.running_var)]
    view = peer_view(p.x.to(peers[0].dtype), p)
    F.batch_norm(view, peers[0], peers[1], None, None, True, momentum, case.eps)
    mean_error = momentum * stats.mean_error.flatten() + unit * old_mean.abs()
    var_error = momentum * stats.var_error.flatten() * n / (n - 1) + unit * (old_var + var * momentum)
    moved = [(1 - momentum) * old + momentum * new for old, new in ((old_mean, mean), (old_var, var))]
    if momentum == 0.0:  # what is not moved stays, whatever the batch holds
        moved, peers = [old_mean, old_var], [p.running_mean, p.running_var]
    return {
        "running_mean": _expect(moved[0], peers[0], mean_error, p.running_mean.dtype, False),
        "running_var": _expect(moved[1], peers[1], var_error, p.running_var.dtype, False),
    }
