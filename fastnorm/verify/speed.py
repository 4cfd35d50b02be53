"""Times a model and its conversion side by side, and counts what each keeps for its backward."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from fastnorm.memory import saved_bytes
from fastnorm.timing import Plan, Run, Timing, interleave, make_clock, quantile, round_ratios
from fastnorm.verify.question import Question, seeded, set_mode

LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Speed:
    """How long a call of each takes, and how many times faster the converted model is, round by round.

    Attributes:
        what: what is called, "training step" or "inference".
        original: seconds a call, the median.
        converted: the same of the converted model.
        ratio: how many times faster the converted model is, the median over the rounds.
        low: the lower quartile of that ratio.
        high: its upper quartile.
        highest: the most of any round.
        rounds: how many rounds there were.
        noisy: whether the machine was busy: times varied much from round to round.
    """

    what: str
    original: float
    converted: float
    ratio: float
    low: float
    high: float
    highest: float
    rounds: int
    noisy: bool

    def slower_than(self, slowdown: float) -> bool:
        """Whether three quarters of the rounds took more than so many times the original's; if noisy, all of them."""
        return (self.highest if self.noisy else self.high) * slowdown < 1.0


def training_step(model: nn.Module, question: Question) -> Run:
    """A forward and backward in training mode, as a user's loop has them."""
    set_mode(model, True)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        question.loss(model(*question.args, **question.kwargs)).backward()

    return run


def inference(model: nn.Module, question: Question) -> Run:
    set_mode(model, False)

    @torch.no_grad()
    def run() -> None:
        model(*question.args, **question.kwargs)

    return run


STEPS = {"training step": training_step, "inference": inference}


def measure_speed(
    original: nn.Module, converted: nn.Module, question: Question, *, steps: int, time_budget: float
) -> tuple[Speed, ...]:
    """The two models take turns, up to `steps` rounds and for about time_budget seconds in all. Changes neither."""
    device = "cuda" if any(t.is_cuda for t in question.tensors) else "cpu"
    clock = make_clock(device, torch.get_num_threads(), warm=False)
    plan = Plan(
        rounds=steps, least_rounds=min(LEAST_ROUNDS, steps), batch_seconds=0.01,
        budget_seconds=time_budget / len(STEPS), warm_calls=2,
    )  # fmt: skip
    question = question.copied()
    found = []
    with seeded(question.seed, question.tensors):
        for what, make in STEPS.items():
            models = {"original": copy.deepcopy(original), "converted": copy.deepcopy(converted)}
            runs = {name: make(model, question) for name, model in models.items()}
            timings = interleave(runs, clock, plan, seed=question.seed)
            found.append(_summary(what, timings["original"], timings["converted"]))
    return tuple(found)


def _summary(what: str, original: Timing, converted: Timing) -> Speed:
    ratios = round_ratios(original, converted)
    return Speed(
        what,
        original=original.quantiles_us()["p50"] / 1e6,
        converted=converted.quantiles_us()["p50"] / 1e6,
        ratio=quantile(ratios, 0.5),
        low=quantile(ratios, 0.25),
        high=quantile(ratios, 0.75),
        highest=max(ratios),
        rounds=len(ratios),
        noisy=original.noisy or converted.noisy,
    )


def measure_saved(model: nn.Module, question: Question) -> int:
    """Bytes that a training forward keeps for the backward. Leaves the model as it was."""
    model, question = copy.deepcopy(model), question.copied()
    set_mode(model, True)
    with seeded(question.seed, question.tensors), torch.enable_grad():
        return saved_bytes(model, lambda: model(*question.args, **question.kwargs))
