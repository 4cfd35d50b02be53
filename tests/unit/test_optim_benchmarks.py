"""The optimizer benchmark: a wrong step is not timed, lists and floors are what they say."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import optim as measured
from benchmarks.compare import main as compare_main
from benchmarks.gpu.table import target_rows
from benchmarks.launch_count import kernels_in
from benchmarks.optim import Problem, candidates, compiled, measure_optim
from benchmarks.optim_cases import LISTS, OPTIM_OPS, OptimCase, optim_cases, resnet18
from benchmarks.peers import NATIVE
from benchmarks.ratios import all_ratios
from benchmarks.targets import CUDA_TARGETS, OPTIM_TARGETS, judge
from fastnorm import optim, timing
from fastnorm.ops.optim import Plan
from fastnorm.ops.optim_watch import Watch

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


def ask_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the groups' numbers, which plans read without it."""
    for plan in (Plan, Watch):
        monkeypatch.setattr(plan, "take_hyper", lambda *_: False)


@pytest.mark.parametrize("op", OPTIM_OPS)
def test_a_wrong_step_fails_the_check(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = OptimCase(op, "1000x64", "fp32")
    rule = getattr(optim, case.spec.torch_class).rule
    right = rule.hyper
    monkeypatch.setattr(rule, "hyper", lambda group: [1.001 * right(group)[0], *right(group)[1:]])
    ask_the_rule(monkeypatch)
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


def fields(name: str, candidate: str, us: float, **more: Any) -> dict[str, Any]:
    op, direction, _, dtype = name.split("/")
    return {
        "case": name, "op": op, "direction": direction, "layout": "contiguous", "dtype": dtype,
        "shape": [1000, 64000], "threads": 1, "candidate": candidate, "status": "ok", "quantiles_us": {"p50": us},
        **more,
    }  # fmt: skip


def test_targets_judge_the_fused_step(capsys: pytest.CaptureFixture[str]) -> None:
    row = functools.partial(fields, "adam/step/1000x64/fp32")
    for fused, passed in ((2100.0, True), (1900.0, False)):
        rows = [row("fastnorm", 100.0), row("eager", 9000.0), row("fused", fused)]
        (verdict,) = judge(all_ratios(rows), OPTIM_TARGETS)
        assert verdict.target.parameters == "1000x64" and verdict.passed is passed
    assert compare_main(["--op", "adam", "--case", "adamw/step/resnet18", "--list"]) == 0
    assert capsys.readouterr().out.split() == ["adamw/step/resnet18/fp32", "adamw/step/resnet18/bf16"]


@pytest.mark.parametrize("us, launches, passed", ((59.0, 1, True), (61.0, 1, False), (59.0, 2, False)))
def test_a_gpu_target_holds_host_time_and_launches(us: float, launches: int, passed: bool, tmp_path: Path) -> None:
    rows = [fields("adam/call/1000x64/fp32", "fastnorm", us, launches=launches)]
    rows.append(fields("adam/call/1000x64/fp32", "eager", 3000.0, launches=40))
    (verdict,) = judge(all_ratios(rows), CUDA_TARGETS)
    assert verdict.target.host == 60 and verdict.target.launches == 1 and verdict.passed is passed
    results = tmp_path / "compare.json"
    results.write_text(json.dumps({"rows": rows}))
    ((_, said, told),) = target_rows(results)
    assert said == ("PASS" if passed else "below") and f"{us:.0f} us of host time, {launches} launches" in told


def test_every_gpu_target_of_the_optimizers_has_cases() -> None:
    rows = [vars(case) | {"case": case.name, "shape": list(case.shape)} for case in optim_cases("cuda")]
    taken = [next((t.name for t in CUDA_TARGETS if t.judges(row)), None) for row in rows]
    assert None not in taken
    assert {name for name in taken if name} == {t.name for t in CUDA_TARGETS if set(t.ops) & OPTIM_OPS.keys()}


def test_kernels_are_told_from_copies_and_ranges() -> None:
    cats = ("kernel", "gpu_memcpy", "gpu_memset", "gpu_user_annotation", "cuda_runtime", "kernel")
    assert kernels_in({"traceEvents": [{"name": str(i), "cat": cat} for i, cat in enumerate(cats)] + [{}]}) == [
        "0",
        "5",
    ]


def test_a_call_is_timed_on_the_host_and_its_kernels_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "HostClock", timing.ThreadClock)
    monkeypatch.setattr(measured, "launched_kernels", lambda run: run() or ["kernel"])
    rows = measure_optim(OptimCase("adam", "1000x64", "fp32", direction="call"), PLAN, threads=1)
    assert {row["candidate"]: row["launches"] for row in rows} == {
        name: 1 for name in ("fastnorm", "eager", "foreach", "fused")
    }


@pytest.mark.parametrize("op", [op for op, spec in OPTIM_OPS.items() if not spec.clip])
def test_the_compiled_peer_takes_the_same_steps(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_with = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compile_with)
    case = OptimCase(op, "1000x64", "fp32")
    problem = Problem(case)
    run = compiled(getattr(torch.optim, case.spec.torch_class), list(problem.params), dict(case.spec.options))
    assert not problem.complaint("compile", run)


def test_the_cuda_kernels_are_measured_beside_the_default_and_checked_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "available_backends", lambda device, column: ["triton", "native", "eager"])
    problem = Problem(OptimCase("adam", "1000x64", "fp32"))
    assert NATIVE not in candidates(problem)
    problem.case = dataclasses.replace(problem.case, device="cuda")
    run = candidates(problem)[NATIVE]()
    problem.case = dataclasses.replace(problem.case, device="cpu")
    assert problem.complaint(NATIVE, run) == ""
    right = optim.Adam.rule.hyper
    monkeypatch.setattr(optim.Adam.rule, "hyper", lambda group: [1.001 * right(group)[0], *right(group)[1:]])
    ask_the_rule(monkeypatch)
    assert "elements are wrong" in problem.complaint(NATIVE, run)
