"""The GPU command without a GPU: its dry run, what it keeps between runs, what it calls passed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import steps, table
from benchmarks.gpu.selection import UnknownName, choose, columns
from benchmarks.gpu.session import FAIL, PASS, Outcome, Record, Session

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("general_relu", "batch_norm", "row_norm", "adam")
WITHOUT_A_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


def session(out: Path, seconds: float = 60, **options: Any) -> Session:
    return Session(out, time.time() + seconds, **options)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False
    )


def test_dry_run(tmp_path: Path) -> None:
    """Every step but the launches, on the real argument lists."""
    done = python("-m", "benchmarks.gpu", "--dry-run", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [step["step"] for step in written["steps"]] == list(steps.STEPS)
    assert {step["status"] for step in written["steps"]} == {PASS}
    assert written["source"]["dry_run"] and len(written["source"]["sources"]) == 16 and "commit" in written
    for part in ("setup.py build_ext --inplace", "--data shapes --device cuda", "--tool racecheck", "test_large.py"):
        assert part in done.stdout
    if importlib.util.find_spec("triton") is not None:
        plans = (tmp_path / "plans.txt").read_text()
        for column in ("batch_norm", "general_relu", "row_norm"):
            assert f"{column}_fwd" in plans and f"{column}_bwd" in plans
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) <= 8  # easily carried


def test_dry_run_of_a_part(tmp_path: Path) -> None:
    done = python("-m", "benchmarks.gpu", "--dry-run", "--only", "norms,conformance", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (step,) = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert step["step"] == "conformance" and step["columns"] == ["batch_norm", "row_norm"]
    assert "deselected" in step["detail"]  # the cases of general_relu


@WITHOUT_A_GPU
def test_without_a_gpu_it_fails_plainly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "0"))  # main() takes it away: put it back
    assert command.main([str(tmp_path), "--only", "tests,compare"]) == 1
    assert capsys.readouterr().out.count("torch sees no GPU here") == 5


def test_selection() -> None:
    names = list(steps.STEPS)
    assert choose([], names, COLUMNS) == (tuple(names), ())
    assert choose(["norms"], names, COLUMNS) == (tuple(names), ("batch_norm", "row_norm"))
    assert choose(["optimizers", "compare"], names, COLUMNS) == (("compare",), ("adam",))
    assert choose(["sanitizer", "general_relu"], names, COLUMNS)[0] == ("memcheck", "racecheck", "synccheck")
    assert columns()[:3] == COLUMNS[:3]
    with pytest.raises(UnknownName, match="softmax"):
        choose(["softmax"], names, COLUMNS)


def test_a_command_past_the_deadline_is_stopped_with_all_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    start = time.time()
    status, said = session(tmp_path, 1).run("x", [sys.executable, "-c", parent])
    assert status == 124 and "out of time" in said and time.time() - start < 3
    time.sleep(max(0.0, start + 4 - time.time()))
    assert not mark.exists()


def test_the_log_keeps_every_step_and_the_last_line_is_told(tmp_path: Path) -> None:
    one = session(tmp_path)
    for word in ("first", "second"):
        status, said = one.run(word, [sys.executable, "-c", f"print('a'); print('{word}')"], {"KEY": "value"})
        assert (status, said) == (0, word)
    log = (tmp_path / "log.txt").read_text()
    assert log.index("== first: KEY=value") < log.index("== second")


def test_what_passed_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def step(name: str, status: str) -> steps.Step:
        return lambda session: (ran.append(name), Outcome(name, status, "told"))[1]

    monkeypatch.setattr(steps, "STEPS", {"build": step("build", PASS), "demo": step("demo", PASS)})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(steps, "built", lambda: True)

    def once(source: str, **options: Any) -> None:
        record = Record.resume(tmp_path / "gpu.json", {"sources": source})
        for name in steps.STEPS:
            outcome = steps.take(name, session(tmp_path, **options), record)
            record.add(Outcome(outcome.step, outcome.status, "told", columns=options.get("columns", ())))
        record.write({})

    once("code")
    once("code")
    once("code", columns=("adam",))  # a part of what passed
    assert ran == ["build", "demo"]
    once("other code")
    assert ran == ["build", "demo"] * 2
    monkeypatch.setattr(steps, "built", lambda: False)
    once("other code")
    assert ran == ["build", "demo"] * 2 + ["build"]


def test_a_part_does_not_stand_for_the_whole(tmp_path: Path) -> None:
    record = Record(tmp_path / "gpu.json", {}, [Outcome("demo", PASS, "", columns=("adam", "row_norm"))])
    assert record.passed("demo", ("adam",)) and not record.passed("demo", ()) and not record.passed("demo", ("sgd",))
    record.add(Outcome("demo", FAIL, "", columns=("adam", "row_norm")))
    assert not record.passed("demo", ("adam",)) and len(record.outcomes) == 1


def test_the_table_is_one_screen(tmp_path: Path) -> None:
    row = {"case": "c", "op": "batch_norm_module", "direction": "call", "shape": [8, 3, 32, 32], "dtype": "fp32"}
    row |= {"layout": "contiguous", "threads": 1, "status": "ok", "message": ""}
    rows = [row | {"candidate": name, "quantiles_us": {"p50": us}} for name, us in (("eager", 20), ("fastnorm", 27))]
    results = tmp_path / "compare.json"
    results.write_text(json.dumps({"rows": rows}))
    ((name, said, detail),) = table.target_rows(results)
    assert "host time" in name and said == "below" and "+7.0 us" in detail
    lines = table.lines(
        [Outcome(step, PASS, "told", columns=("adam",)) for step in steps.STEPS], [(name, said, detail)]
    )
    assert len(lines) <= 50 and any("compare (adam)" in line for line in lines)
