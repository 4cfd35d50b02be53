"""The float64 oracle of the row family: layer, group, instance, RMS and positional layer norm by definition.

Written from torch's own functions and the definitions, not from fastnorm.eager: the two check each other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnorm.testing.cases import RowCase
from fastnorm.testing.composed import arithmetic, compose_norm
from fastnorm.testing.judge import Expectations, judged
from fastnorm.testing.problems import Problem, build, over_channels
from fastnorm.testing.rounding import Statistics, unit_of
from fastnorm.testing.sets import sets_of, total


def composed_row_norm(case: RowCase, x: Tensor, weight: Tensor | None, bias: Tensor | None, p: Problem) -> Tensor:
    """The norm by its definition. x less a constant changes nothing but the rounding of the mean."""
    sets = sets_of(case)
    xs = sets.view(x)
    if not case.rms:
        xs = xs - torch.nan_to_num(xs.detach().mean(sets.inside, keepdim=True), 0.0, 0.0, 0.0)
        xs = xs - xs.mean(sets.inside, keepdim=True)
    var = total(xs.square(), sets.inside) / (sets.n - case.unbiased)
    y = xs / (var + case.eps).sqrt()
    y = y if weight is None else y * sets.parameter(weight)
    return (y if bias is None else y + sets.parameter(bias)).reshape(x.shape)


def torch_row_norm(case: RowCase, x: Tensor, weight: Tensor | None, bias: Tensor | None, p: Problem) -> Tensor:
    """torch's own layer of the same name in x's dtype; the definition where torch has none.

    Group and instance norm get weight and bias behind them: torch 2.13's own backward computes the weight's gradient
    from uncentred sums, which cancel, and would excuse too much.
    """
    if case.unbiased:
        return composed_row_norm(case, x, weight, bias, p)
    if case.kind == "layer":
        return F.layer_norm(x, case.parameter_shape, weight, bias, case.eps)
    if case.kind == "rms":
        y = F.rms_norm(x, case.parameter_shape, weight, case.eps)
        return y if bias is None else y + bias
    if case.kind == "position":
        return F.layer_norm(x.movedim(1, -1), (x.shape[1],), weight, bias, case.eps).movedim(-1, 1)
    if case.kind == "instance" and x.dim() > 2:
        y = F.instance_norm(x, eps=case.eps)
    else:
        y = F.group_norm(x, case.groups, eps=case.eps)
    y = y if weight is None else y * over_channels(weight, x.dim())
    return y if bias is None else y + over_channels(bias, x.dim())


def row_statistics(case: RowCase, p: Problem) -> Statistics:
    """What normalises, in float64, shaped to broadcast over the view of sets."""
    sets = sets_of(case)
    x, dtype = sets.view(p.x.to(torch.float64)), arithmetic(p.x.dtype)
    mean = total(x, sets.inside) / sets.n
    mean = torch.zeros_like(mean) if case.rms else mean
    deviation = x - mean
    return Statistics(
        mean,
        total(deviation.square(), sets.inside) / (sets.n - case.unbiased),
        total(deviation.pow(4), sets.inside).sqrt(),
        case.eps,
        sets.n,
        unit_of(dtype),
        torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps,
        not case.rms,
    )


def row_problem(case: RowCase) -> tuple[Problem, Expectations]:
    """The problem and what a backend should answer: y and every gradient."""
    return row_answers(case, build(case))


def row_answers(case: RowCase, p: Problem) -> tuple[Problem, Expectations]:
    """As row_problem, of tensors that come from elsewhere."""
    dtype = arithmetic(p.x.dtype)
    exact = compose_norm(case, p, torch.float64, composed_row_norm)
    peers = [compose_norm(case, p, dtype, norm) for norm in (torch_row_norm, composed_row_norm)]
    stats = row_statistics(case, p)
    return judged(case, p, exact, peers, stats, stats.n - case.unbiased)
