"""The float64 oracle: batch norm and GeneralRelu composed of plain torch, and what to expect of a result.

Written from torch's own functions and the definitions, not from fastnorm.eager: the two check each other. The
row family's are in row_oracle.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnorm.testing.cases import ACTS, NormCase, ReluCase
from fastnorm.testing.composed import arithmetic, compose_norm, compose_relu
from fastnorm.testing.judge import Expectations, expect, judged, near_kink, steered
from fastnorm.testing.layouts import norm_format
from fastnorm.testing.problems import Problem, build, over_channels
from fastnorm.testing.rounding import Statistics, activation_floor, unit_of


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
        "y": expect(exact.y, peer.y, floor, p.x.dtype),
        "dx": expect(dx, peer_dx, unit * dx.abs(), p.x.dtype),
    }


def norm_problem(case: NormCase) -> tuple[Problem, Expectations]:
    """The problem and what a backend should answer: y, every gradient, and the moved statistics."""
    p = build(case)
    exact = compose_norm(case, p, torch.float64, composed_norm)
    peer = compose_norm(case, p, arithmetic(p.x.dtype), torch_norm)
    stats = statistics(case, p)
    counted = case.training and not case.detach_stats
    p, wanted = judged(case, p, exact, [peer], stats, stats.n - case.unbiased if counted else 0)
    if case.training and case.stats is not None:
        wanted |= _running(case, p, stats)
    return p, wanted


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
        "running_mean": expect(moved[0], peers[0], mean_error, p.running_mean.dtype),
        "running_var": expect(moved[1], peers[1], var_error, p.running_var.dtype),
    }
