"""`fastnorm.verify`."""

from __future__ import annotations

import copy

from torch import nn

from fastnorm.convert import convert, revert
from fastnorm.verify.accuracy import check_accuracy
from fastnorm.verify.question import Loss, Question, RandomWeighting
from fastnorm.verify.result import Allowed, Verification
from fastnorm.verify.speed import Speed, measure_saved, measure_speed
from fastnorm.verify.trees import Batch, call_arguments

DEFAULT = Allowed()


def verify(
    model: nn.Module,
    batch: Batch,
    *,
    loss: Loss | None = None,
    steps: int = 20,
    fuse: bool = True,
    seed: int = 0,
    time_budget: float = 20.0,
    allowed: Allowed = DEFAULT,
) -> Verification:
    """Converts a copy of a model and compares it with the original: results, speed, memory.

    Outputs, the gradients of every parameter and floating input, and the buffers after the step are compared in
    training and in eval mode, each against a float64 copy of the original; and the converted model in float64 against
    the original in float64. The rule is in `fastnorm/verify/rule.py`. Then, if all is right, training steps (forward
    and backward) and inference of both take turns, and the bytes that each keeps for its backward are counted.

    Works on copies: the model, its mode, gradients and buffers, the batch and the state of the random generators stay
    as they are. Hooks of the model are copied with it and run.

    Args:
        model: any module that is not converted yet. Its training mode, where it is in it, is taken as it is: layers
            that stand in eval mode stay there.
        batch: a tensor, a tuple of arguments or a dict of keyword arguments.
        loss: of the model's output, a scalar; by default all floating outputs weighted with fixed random numbers.
        steps: rounds to time; 0 for no timing.
        fuse: as in `fastnorm.convert`.
        seed: of the random numbers that the model draws, the same for every run.
        time_budget: about how many seconds the timing may take.
        allowed: what the conversion may cost; `Allowed()` allows 2 % more time.

    Returns:
        What was found, with the verdict in `ok`, its reasons in `failures`, a table as `str()`, and `to_dict()`.

    Raises:
        ValueError: for a model that is converted already, one that gives NaN by itself, a batch of another type, or
            negative steps or time_budget.
        Exception: what the model itself raises for this batch or this loss.
    """
    if steps < 0 or not time_budget > 0:
        raise ValueError(f"steps must not be negative and time_budget positive, got {steps} and {time_budget}")
    if revert(copy.deepcopy(model)).replaced:
        raise ValueError("model is converted already: verify wants the original (fastnorm.revert brings it back)")
    args, kwargs = call_arguments(batch)
    question = Question(args, kwargs, loss or RandomWeighting(seed), seed)
    converted = copy.deepcopy(model)
    report = convert(converted, fuse=fuse)
    if not (report.replaced or report.fused):
        return Verification(report, (), (), None, ("nothing to compare: no norm was replaced or fused",), allowed)
    comparisons, notes = check_accuracy(model, converted, question, factor=allowed.error)
    if not all(one.ok for one in comparisons):  # a wrong result is not timed
        return Verification(report, tuple(comparisons), (), None, tuple(notes), allowed)
    speeds: tuple[Speed, ...] = ()
    if steps:
        speeds = measure_speed(model, converted, question, steps=steps, time_budget=time_budget)
    saved = (measure_saved(model, question), measure_saved(converted, question))
    return Verification(report, tuple(comparisons), speeds, saved, tuple(notes), allowed)
