"""The benchmarks' own rules: nothing wrong is timed, files say whence they are, a stopped run goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks import graph_replay, libraries
from benchmarks.cases import OPS, Case, all_cases, select
from benchmarks.compare import main as compare_main
from benchmarks.floors import make_floors
from benchmarks.measure import measure
from benchmarks.oracle import Oracle
from benchmarks.peers import PEERS, Peer, composed, composed_module, peers_of
from benchmarks.prepare import prepare
from benchmarks.report import main as report_main
from benchmarks.targets import CPU_TARGETS, CUDA_TARGETS
from fastnorm import timing

ROOT = Path(__file__).resolve().parents[2]
SMALL = (2, 3, 5, 7)
PLAN = timing.Plan(rounds=3, least_rounds=2, batch_seconds=1e-4, budget_seconds=0.2, warm_calls=1)


def run_module(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def results_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick run of one tiny case of each direction, through the command line."""
    out = tmp_path_factory.mktemp("bench") / "results.json"
    names = "batch_norm_act/fwd/8x3x32x32/contiguous/fp32,batch_norm_act/bwd/8x3x32x32/contiguous/fp32"
    done = run_module("benchmarks.compare", "--case", names, "--quick", "--no-compile", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "x eager" in done.stdout
    return out


def test_results_say_where_they_come_from(results_file: Path) -> None:
    results = json.loads(results_file.read_text())
    assert results["machine"]["cpu"] and results["machine"]["cores"] >= 1
    assert results["versions"]["torch"] == torch.__version__
    assert results["versions"].keys() >= {"python", "torch", "triton", "fastnorm", "compiler"}
    assert results["commit"].keys() == {"hash", "dirty"}
    assert results["backends"]["cpu"] in ("native", "eager")
    assert results["date"] and results["arguments"]


def test_rows_hold_raw_quantiles(results_file: Path) -> None:
    rows = json.loads(results_file.read_text())["rows"]
    assert {row["candidate"] for row in rows} >= {"eager", "eager_inplace", "fastnorm", "floor:torch"}
    for row in rows:
        assert row["status"] == "ok" and row["threads"] == 1 and row["batches"] >= 3
        quantiles = [row["quantiles_us"][f"p{p}"] for p in (0, 10, 25, 50, 75, 90, 100)]
        assert quantiles == sorted(quantiles) and quantiles[0] > 0


def test_report_renders(results_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "plot.png"
    assert report_main([str(results_file), "--plot", str(picture)]) == 0
    told = capsys.readouterr().out
    assert "| batch_norm_act/fwd/8x3x32x32/contiguous/fp32 " in told and "x eager" in told
    assert picture.read_bytes().startswith(b"\x89PNG")


def shifted(case: Case) -> Any:
    right = composed(case)
    return lambda *args, **kwargs: right(*args, **kwargs) * 1.01


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_wrong_result_is_not_timed(direction: str) -> None:
    case = Case("batch_norm_act", direction, SMALL, "contiguous", "fp32")
    rows = measure(case, {"eager": PEERS["eager"], "wrong": Peer(shifted, composed_module)}, PLAN, threads=1)
    by_name = {row["candidate"]: row for row in rows}
    assert by_name["wrong"]["status"] == "FAIL" and by_name["wrong"]["message"]
    assert "quantiles_us" not in by_name["wrong"]
    assert by_name["eager"]["status"] == "ok"


def test_forgotten_running_statistics_are_wrong() -> None:
    def forgetful(case: Case) -> Any:
        right = composed(case)

        def forward(x, residual, weight, bias, running_mean, running_var):  # type: ignore[no-untyped-def]
            return right(x, residual, weight, bias, running_mean.clone(), running_var.clone())

        return forward

    case = Case("batch_norm", "fwd", SMALL, "contiguous", "fp32")
    (row, *_) = measure(case, {"forgetful": Peer(forgetful, composed_module)}, PLAN, threads=1)
    assert row["status"] == "FAIL" and "running_mean" in row["message"]


def test_candidate_that_raises_has_its_own_row() -> None:
    def raising(case: Case) -> Any:
        raise ValueError("cannot serve this")

    case = Case("general_relu", "fwd", SMALL, "contiguous", "fp32")
    rows = measure(case, {"broken": Peer(raising, composed_module), **peers_of(case, compile=False)}, PLAN, threads=1)
    assert rows[0]["status"] == "ERROR" and "cannot serve this" in rows[0]["message"]
    assert {row["candidate"] for row in rows if row["status"] == "ok"} >= {"eager", "fastnorm"}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("op", list(OPS))
def test_every_op_is_right_before_it_is_timed(op: str, dtype: str, layout: str) -> None:
    for direction in OPS[op].directions:
        case = Case(op, direction, SMALL, layout, dtype)
        rows = measure(case, peers_of(case, compile=False), PLAN, threads=1)
        bad = [(row["candidate"], row["message"]) for row in rows if row["status"] in ("FAIL", "ERROR")]
        assert not bad


def test_selection_and_bad_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert {case.spec.column for case in select(all_cases(), columns=["general_relu"])} == {"general_relu"}
    names = [case.name for case in all_cases()]
    assert len(names) == len(set(names))
    assert compare_main(["--case", "no such case"]) == 2
    assert "--list" in capsys.readouterr().err
    assert compare_main(["--list", "--op", "batch_norm_module", "--dtype", "fp32"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "batch_norm_module/fwd+bwd/8x3x32x32/contiguous/fp32",
        "batch_norm_module/fwd+bwd/8x3x32x32/channels_last/fp32",
    ]


def test_every_case_has_a_row_in_the_table_of_targets() -> None:
    for device, targets in (("cpu", CPU_TARGETS), ("cuda", CUDA_TARGETS)):
        for case in all_cases(device):
            row = {"op": case.op, "direction": case.direction, "shape": list(case.shape)}
            row |= {"layout": case.layout, "dtype": case.dtype}
            assert any(target.judges(row) for target in targets), case.name


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    """Measured cases stay as they are; of other code, or by another version, everything is measured anew, and the old
    file is moved aside.
    """
    out = tmp_path / "results.json"
    names = [f"general_relu_module/fwd+bwd/8x3x32x32/{layout}/fp32" for layout in ("contiguous", "channels_last")]

    def compare(*cases: str) -> dict[str, Any]:
        options = ("--quick", "--no-compile", "--resume", "--out", str(out))
        done = run_module("benchmarks.compare", "--case", ",".join(cases), *options)
        assert done.returncode == 0, done.stdout + done.stderr
        results: dict[str, Any] = json.loads(out.read_text())
        return results

    first = compare(names[0])
    out.with_suffix(".part").write_text(json.dumps(first["rows"][0] | {"case": "left by a run that was stopped"}))
    both = compare(*names)
    assert both["rows"][: len(first["rows"])] == first["rows"] and both["missing"] == 0
    assert {row["case"] for row in both["rows"]} == {*names, "left by a run that was stopped"}
    others = both | {"sources": "other code"}
    out.write_text(json.dumps(others))
    assert compare(names[0])["rows"] != first["rows"]
    (aside,) = (path for path in tmp_path.glob("results.*.json"))
    assert json.loads(aside.read_text()) == others
    assert not out.with_suffix(".part").exists()


def test_other_libraries_are_measured_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Liger-Kernel: it is called as that is, and only for what it has."""
    names = {"liger_layer_norm": lambda x, w, b, eps: F.layer_norm(x, w.shape, w, b, eps)}
    module = types.ModuleType("liger_kernel.transformers.functional")
    vars(module).update(names)
    rows = Case("layer_norm", "fwd", (6, 10), "contiguous", "fp32", "cuda")
    fused = Case("layer_norm_residual_act", "fwd+bwd", (6, 10), "contiguous", "fp32", "cuda")
    assert "liger" in libraries.absent_libraries() and "liger" not in peers_of(rows, compile=False)
    monkeypatch.setattr(libraries, "installed", lambda library: library.package.startswith("liger"))
    for name in ("liger_kernel", "liger_kernel.transformers", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    assert "liger" not in libraries.absent_libraries() and "quack" in libraries.absent_libraries()
    assert "liger" not in peers_of(fused, compile=False)
    peer = peers_of(rows, compile=False)["liger"]
    on_cpu = dataclasses.replace(rows, device="cpu")
    problem = Oracle(on_cpu).problem
    assert Oracle(on_cpu).complaint("liger", prepare(on_cpu, peer)(problem).results()) == ""


def test_a_replay_that_writes_nothing_is_not_timed() -> None:
    given, made = torch.ones(3), torch.ones(3)
    assert graph_replay.writes(lambda: made.copy_(given), [made, given], [given])
    assert torch.equal(given, torch.ones(3))
    assert not graph_replay.writes(lambda: None, [made, given], [given])
    assert not graph_replay.writes(lambda: None, [given], [given])


def test_module_calls_on_a_gpu_are_timed_on_the_host() -> None:
    calls = [case for case in all_cases("cuda") if case.direction == "call"]
    assert {case.op for case in calls} == {op for op, spec in OPS.items() if spec.module}
    assert not [case for case in all_cases("cpu") if case.direction == "call"]
    assert make_floors(calls[0]) == {}
    judged = [target.name for case in calls for target in CUDA_TARGETS[:1] if target.judges(vars(case))]
    assert len(judged) == len(calls)
