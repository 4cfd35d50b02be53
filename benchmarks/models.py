"""`python -m benchmarks.models`: training steps of whole models, as they are and converted.

A step is forward, loss and backward; an optimizer's is timed by `benchmarks.compare`. Each model's results are compared
with float64 by the rule of `fastnorm.verify` before it is timed. The ceiling is the same model with its norms and
activation modules left out: no conversion can make it faster than that, and its results mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import fastnorm
from benchmarks.machine import describe, version_of
from benchmarks.measure import Row, brief, row, timed_row
from benchmarks.model_cases import CEILING, CHANNELS_LAST, CONVERTED, RECOMPUTING, ModelCase, model_cases, select
from benchmarks.model_report import report_lines
from benchmarks.record import UNRECORDED, add_options, list_names, record, words, work
from fastnorm.convert.pairs import ACTIVATIONS
from fastnorm.convert.twins import is_norm
from fastnorm.memory import saved_bytes
from fastnorm.testing.zoo import loss_of
from fastnorm.timing import QUICK, Plan, Timing, interleave, make_clock, quantile, round_ratios
from fastnorm.verify.accuracy import SAMPLES, judged
from fastnorm.verify.question import Question, seeded
from fastnorm.verify.reference import Reference
from fastnorm.verify.result import Allowed
from fastnorm.verify.speed import training_step
from fastnorm.verify.trees import call_arguments, map_tensors

PACKAGES = ("torchvision", "timm", "transformers")
# Where a model's tensors come to lie in memory is worth a few per cent of a step, for as long as the model lives. So
# all candidates are made anew a few times, in another order.
DRAWS = 3
PLAN = Plan(rounds=5, least_rounds=2, batch_seconds=0.05, budget_seconds=6.0, warm_calls=1)


class Candidate(NamedTuple):
    """A model that is to do what the original does. within: a block around its step, made from hooks or nothing."""

    make: Callable[[nn.Module], nn.Module]
    within: Callable[..., AbstractContextManager[Any]] = nullcontext


def converted(model: nn.Module) -> nn.Module:
    fastnorm.convert(model)
    return model


def compiled(model: nn.Module) -> nn.Module:
    model.compile()
    return model


def without_norms(model: nn.Module) -> nn.Module:
    """The model with nn.Identity for every norm and every activation module that a norm can take over."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if is_norm(child) or type(child) in ACTIVATIONS:
                setattr(parent, name, nn.Identity())
    return model


CANDIDATES = {
    "eager": Candidate(lambda model: model),
    CONVERTED: Candidate(converted),
    RECOMPUTING: Candidate(converted, fastnorm.recompute),
    "compile": Candidate(compiled),
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    p.add_argument("--only", type=words, default=[], metavar="SUBSTR", help="cases whose name contains one of these")
    p.add_argument("--size", choices=("bench", "small"), default="bench", help="small: the tests' sizes")
    p.add_argument("--compile", action="store_true", help="measure torch.compile too: minutes a model")
    p.add_argument("--out", type=Path, default=UNRECORDED / "models.json", help="results file (default: %(default)s)")
    p.add_argument("--table", type=Path, metavar="FILE", help="print the tables of a results file and stop")
    add_options(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when a converted model was wrong or a worker died, 2 when nothing was chosen."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(arguments)
    if args.table:
        print("\n".join(report_lines(json.loads(args.table.read_text()))))
        return 0
    cases = select(model_cases(args.size), args.only)
    if not cases or args.list:
        return list_names([case.name for case in cases])
    if args.worker is not None:
        return work(args, cases, lambda case, threads: measure_model(case, args, threads))
    here = describe()
    here["versions"] |= {name: version_of(name) for name in PACKAGES}
    results, died = record("benchmarks.models", args, arguments, [case.name for case in cases], args.out, here)
    print("\n".join(["", *report_lines(results), "", f"written to {args.out}"]))
    wrong = [one for one in results["rows"] if one["candidate"].startswith("fastnorm") and "quantiles_us" not in one]
    return 1 if wrong or died else 0


def measure_model(case: ModelCase, args: argparse.Namespace, threads: int) -> list[Row]:
    """A row for each candidate. A wrong one has status FAIL and no time."""
    model, question = prepared(case)
    reference = Reference(model, question, training=True, samples=SAMPLES)
    rows: list[Row] = []
    right = {}
    for name, candidate in CANDIDATES.items():
        if name == "compile" and not args.compile:
            continue
        try:
            complaint = complaint_of(candidate, model, question, reference)
        except Exception as error:  # a candidate may refuse a model: say so in its row, go on with the others
            rows.append(row(case, name, threads, status="ERROR", message=brief(error)))
            continue
        if complaint:
            rows.append(row(case, name, threads, status="FAIL", message=complaint))
        else:
            right[name] = candidate
    del reference
    right[CEILING] = Candidate(without_norms)
    timings: dict[str, Timing] = {}
    with seeded(question.seed, question.tensors):
        clock = make_clock(case.device, threads, warm=False)
        for draw in range(1 if args.quick else DRAWS):
            order = random.Random(draw).sample(list(right), len(right))
            steps = {name: step_of(right[name], model, question) for name in order}
            for name, timing in interleave(steps, clock, QUICK if args.quick else PLAN, seed=draw).items():
                timings.setdefault(name, Timing(timing.calls)).add(timing)
    for name, timing in timings.items():
        ratios = round_ratios(timings["eager"], timing)
        rows.append(
            timed_row(case, name, threads, timing)
            | {"x_eager": {f"p{round(100 * q)}": quantile(ratios, q) for q in (0.25, 0.5, 0.75)}}
            | (costs(CANDIDATES[name], model, question) if name in CANDIDATES else {})
        )
    return rows


def prepared(case: ModelCase) -> tuple[nn.Module, Question]:
    """The model in its layout, and what it is asked."""
    model, (args, kwargs) = case.entry.model(case.size), call_arguments(case.entry.batch(case.size))
    if case.layout == CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs forget it
        args, kwargs = map_tensors((args, kwargs), lambda t: t.contiguous(memory_format=torch.channels_last))
    return model, Question(args, kwargs, loss_of)


def complaint_of(candidate: Candidate, model: nn.Module, question: Question, reference: Reference) -> str:
    """What is wrong with the candidate's results, or nothing."""
    with candidate.within():
        answers = question.answers(candidate.make(copy.deepcopy(model)), training=True)
    found = judged("training", reference, answers, Allowed().error)
    worst = max(found, key=lambda one: one.excess)
    return "" if worst.ok else worst.sentence()


def step_of(candidate: Candidate, model: nn.Module, question: Question) -> Callable[[], None]:
    step = training_step(candidate.make(copy.deepcopy(model)), question)

    def run() -> None:
        with candidate.within():
            step()

    return run


def costs(candidate: Candidate, model: nn.Module, question: Question) -> dict[str, Any]:
    """Bytes kept for the backward, and what the conversion did."""
    model = copy.deepcopy(model)
    report = fastnorm.convert(copy.deepcopy(model)) if candidate.make is converted else None
    model = candidate.make(model)
    with seeded(question.seed, question.tensors):
        kept = saved_bytes(model, lambda: model(*question.args, **question.kwargs), within=candidate.within)
    counts = {"replaced": len(report.replaced), "fused": len(report.fused), "left": len(report.left)} if report else {}
    return {"saved_bytes": kept} | counts


if __name__ == "__main__":
    sys.exit(main())
