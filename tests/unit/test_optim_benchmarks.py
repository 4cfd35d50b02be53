"""The optimizer benchmark: a wrong step is not timed, lists and floors are what they say."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks import timing
from benchmarks.compare import main as compare_main
from benchmarks.optim import Problem, candidates, measure_optim
from benchmarks.optim_cases import LISTS, OPTIM_OPS, OptimCase, optim_cases, resnet18
from benchmarks.ratios import all_ratios
from benchmarks.targets import OPTIM_TARGETS, judge
from fastnorm import optim

PLAN = timing.Plan(rounds=2, least_rounds=1, batch_seconds=1e-4, budget_seconds=0.1, warm_calls=1)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LISTS, "1000x64", lambda: ((64,),) * 5)
    monkeypatch.setitem(LISTS, "400groups", lambda: ((50,),) * 3)


@pytest.mark.parametrize("dtype", ("fp32", "bf16"))
@pytest.mark.parametrize("op", OPTIM_OPS)
def test_every_case_is_checked_and_timed(op: str, dtype: str) -> None:
    for parameters in ("1000x64", "400groups"):
        rows = measure_optim(OptimCase(op, parameters, dtype), PLAN, threads=1)
        mine = {row["candidate"]: row for row in rows}
        assert mine["fastnorm"]["status"] == "ok", mine["fastnorm"]["message"]
        assert mine["eager"]["status"] == "ok" and "quantiles_us" in mine["eager"]
        assert any(name.startswith("floor:") for name in mine)


@pytest.mark.parametrize("op", OPTIM_OPS)
def test_a_wrong_step_fails_the_check(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = OptimCase(op, "1000x64", "fp32")
    rule = getattr(optim, case.spec.torch_class).rule
    right = rule.hyper
    monkeypatch.setattr(rule, "hyper", lambda group: [1.001 * right(group)[0], *right(group)[1:]])
    problem = Problem(case)
    assert "elements are wrong" in problem.complaint("fastnorm", candidates(problem)["fastnorm"]())


def test_the_lists() -> None:
    assert len(resnet18()) == 62 and sum(math.prod(s) for s in resnet18()) == 11_689_512
    assert OptimCase("adam", "50m", "fp32").shape == (1, 50_000_000)
    moved = [sum(r + w for r, w in c.traffic) * c.tensor_bytes / c.shape[1] for c in map(case_of, OPTIM_OPS)]
    assert moved == [12, 20, 20, 36, 28, 28, 32]
    assert len({c.name for c in optim_cases()}) == len(optim_cases())


def case_of(op: str) -> OptimCase:
    return OptimCase(op, "25m", "fp32")


def test_targets_judge_the_fused_step(capsys: pytest.CaptureFixture[str]) -> None:
    def row(candidate: str, us: float) -> dict[str, Any]:
        return {
            "case": "adam/step/1000x64/fp32", "op": "adam", "direction": "step", "layout": "contiguous",
            "dtype": "fp32", "shape": [1000, 64000], "threads": 1, "candidate": candidate, "status": "ok",
            "quantiles_us": {"p50": us},
        }  # fmt: skip

    for fused, passed in ((2100.0, True), (1900.0, False)):
        rows = [row("fastnorm", 100.0), row("eager", 9000.0), row("fused", fused)]
        (verdict,) = judge(all_ratios(rows), OPTIM_TARGETS)
        assert verdict.target.parameters == "1000x64" and verdict.passed is passed
    assert compare_main(["--op", "adam", "--case", "adamw/step/resnet18", "--list"]) == 0
    assert capsys.readouterr().out.split() == ["adamw/step/resnet18/fp32", "adamw/step/resnet18/bf16"]
