"""Compares a converted model with its original: in training and eval mode, in its own dtype and in float64."""

from __future__ import annotations

import copy
import math

from torch import nn

from fastnorm.verify.question import OUTPUTS, Answers, Question
from fastnorm.verify.reference import Reference, brief
from fastnorm.verify.rule import Comparison, compare

MODES = {"training": True, "eval": False}
SAMPLES = 2  # roundings of the original, enough where all is well
ENOUGH_SAMPLES = 8  # before anything is called wrong


def check_accuracy(
    original: nn.Module, converted: nn.Module, question: Question, *, factor: float
) -> tuple[list[Comparison], list[str]]:
    """Every result of both modes against the rule, and notes on what could not be done. Changes neither model.

    The float64 pair is the sharper test of the conversion: it has next to no rounding to hide in, but runs the
    kernels in float64. The pair in the model's own dtype tests the kernels that will be used.
    """
    found: list[Comparison] = []
    notes: list[str] = []
    for mode, training in MODES.items():
        reference = Reference(original, question, training=training, samples=SAMPLES)
        found += judged(mode, reference, answers_of(converted, question, training), factor)
        if reference.is_double:
            ours = answers_of(copy.deepcopy(converted).double(), question.double(), training)
            found += judged(f"{mode}, float64", reference, ours, factor, double=True)
        elif reference.note:
            notes.append(f"{mode}: {reference.note}; compared with the original itself")
    return found, notes


def answers_of(converted: nn.Module, question: Question, training: bool) -> Answers | str:
    """What the converted model answers; a sentence, if it refuses what the original took."""
    try:
        return question.answers(copy.deepcopy(converted), training=training)
    except Exception as error:  # whatever it is, the conversion brought it
        return f"raises {brief(error)} where the original does not"


def judged(
    mode: str, reference: Reference, ours: Answers | str, factor: float, *, double: bool = False
) -> list[Comparison]:
    """The rule for one model's answers; before it fails one, the reference samples more roundings."""
    if isinstance(ours, str):
        return [Comparison(mode, OUTPUTS, "the model", math.inf, 0.0, 0.0, 0.0, ours)]

    def judge() -> list[Comparison]:
        theirs = reference.exact if double else reference.original
        floor = reference.double_floor() if double else reference.floor
        return list(compare(ours, theirs, reference.exact, floor, mode=mode, factor=factor))

    found = judge()
    if all(one.ok for one in found):
        return found
    reference.sample_up_to(ENOUGH_SAMPLES)
    return judge()
