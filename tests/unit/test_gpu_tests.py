"""The GPU command's steps that run tests: what is left out, what a run amounts to, the sanitizer in front of it."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from test_gpu_command import python, session

from benchmarks.gpu import testing
from benchmarks.gpu.session import FAIL, NOT_RUN, PART, PASS

ROOT = Path(__file__).resolve().parents[2]


TESTS = """
import pytest
class Case:
    def __init__(self, column): self.column = column
@pytest.mark.parametrize("case", [Case("adam"), Case("row_norm")], ids=["adam", "row"])
def test_cases(case): pass
def test_plain(): pass
def test_breaks_at_first():
    assert __import__("os").environ.get("MENDED")
@pytest.mark.skip(reason="no memory")
def test_skipped(): pass
"""


def run_plugin(folder: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    (folder / "test_them.py").write_text(TESTS)
    summary = folder / "summary.json"
    done = python(
        "-m", "pytest", str(folder / "test_them.py"), "-q", "-c", os.devnull, "--rootdir", str(folder),
        "-p", "benchmarks.gpu.progress", "--passed", str(folder / "passed.txt"), "--summary", str(summary), *arguments,
        **environment,
    )  # fmt: skip
    assert summary.exists(), done.stdout + done.stderr
    counts: dict[str, Any] = json.loads(summary.read_text())
    return counts


@pytest.mark.parametrize("workers", ((), ("-n", "2")), ids=("alone", "xdist"))
def test_tests_that_passed_are_left_out(tmp_path: Path, workers: tuple[str, ...]) -> None:
    counts = run_plugin(tmp_path, *workers)
    assert counts["passed"] == 3 and counts["skipped"] == {"no memory": 1}
    assert [name.rpartition("::")[2] for name in counts["failed"]] == ["test_breaks_at_first"]
    before = tmp_path / "before.txt"
    before.write_text((tmp_path / "passed.txt").read_text())
    counts = run_plugin(tmp_path, *workers, "--skip-file", str(before), MENDED="1")
    assert counts == {"passed": 1, "failed": [], "skipped": {"no memory": 1}}
    assert len((tmp_path / "passed.txt").read_text().splitlines()) == 4


def test_after_the_deadline_no_test_starts(tmp_path: Path) -> None:
    counts = run_plugin(tmp_path, "--deadline", "1")
    assert counts["passed"] == 0 and counts["skipped"]["out of time"] == 4


def test_cases_of_other_columns_are_left_out(tmp_path: Path) -> None:
    run_plugin(tmp_path, "--columns", "adam", MENDED="1")
    names = {line.rpartition("::")[2] for line in (tmp_path / "passed.txt").read_text().splitlines()}
    assert names == {"test_cases[adam]", "test_plain", "test_breaks_at_first"}


@pytest.mark.parametrize(
    ("status", "counts", "may_skip", "wanted", "told"),
    (
        (0, {"passed": 3, "failed": [], "skipped": {}}, False, PASS, "3 tests passed"),
        (0, {"passed": 3, "failed": [], "skipped": {"no memory": 1}}, True, PASS, "1 x no memory"),
        (0, {"passed": 3, "failed": [], "skipped": {"no memory": 1}}, False, FAIL, "not everything was run"),
        (1, {"passed": 3, "failed": ["a::b"], "skipped": {}}, True, FAIL, "the first a::b"),
        (0, {"passed": 3, "failed": [], "skipped": {"out of time": 7}}, True, PART, "7 left"),
        (0, {"passed": 0, "failed": [], "skipped": {"no memory": 1}}, True, FAIL, "no test passed"),
        (5, {"passed": 0, "failed": [], "skipped": {}}, True, FAIL, "no test passed"),
        (99, {"passed": 3, "failed": [], "skipped": {}}, True, FAIL, "the sanitizer reports errors"),
        (3, {"passed": 3, "failed": [], "skipped": {}}, True, FAIL, "status 3"),
        (139, None, True, FAIL, "status 139"),
        (124, None, True, PART, "run it again"),
    ),
)
def test_what_a_run_of_tests_amounts_to(
    status: int, counts: dict[str, Any] | None, may_skip: bool, wanted: str, told: str
) -> None:
    outcome = testing.judged("step", status, "the last line", counts, "triton", 0, may_skip=may_skip)
    assert outcome.status == wanted and told in outcome.detail


def test_tests_that_passed_before_count(tmp_path: Path) -> None:
    file = tmp_path / "passed.txt"
    assert testing.passed_before(file, [testing.FOLDER]) == 0
    file.write_text("".join(f"{path}::test_a\n" for path in (*testing.LARGE, *testing.GRAPHS, "tests/unit/test_b.py")))
    assert testing.passed_before(file, testing.LARGE) == 2
    assert testing.passed_before(file, [testing.FOLDER, f"--ignore={testing.GRAPHS[0]}", "-n", "8"]) == 2
    assert testing.passed_before(file, [testing.FOLDER]) == 3
    file.write_text("".join(f"{testing.REFERENCE[0]}::test_a[case-{name}]\n" for name in ("triton", "eager-cuda")))
    assert testing.passed_before(file, testing.REFERENCE, ("eager-cuda",)) == 1
    nothing_left = {"passed": 0, "failed": [], "skipped": {}}
    assert testing.judged("step", 5, "", nothing_left, "triton", 12, may_skip=False).status == PASS
    assert testing.judged("memcheck", 1, "Device not supported", None, "triton", 0, may_skip=True).status == NOT_RUN


def test_conformance_without_hypothesis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare machine: the tests that need no more than torch and pytest are collected, and the rest is told."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "hypothesis.py").write_text("raise ImportError('not installed')\n")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")  # its plugin, which is installed here
    monkeypatch.setattr(testing, "ROOT", os.pathsep.join((str(tmp_path), str(ROOT))))
    outcome = testing.conformance(session(tmp_path, dry_run=True))
    assert outcome.status == PASS, (tmp_path / "log.txt").read_text()[-2000:]
    assert "test_random.py: hypothesis is not installed" in outcome.detail


def test_a_step_of_tests_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the backend that is here: run, run again with nothing left, and under a tool that finds something."""
    monkeypatch.setattr(testing, "gpu_backends", lambda: ["eager"])
    arguments = (*testing.SHORT_LIST, "-k", "general_relu or layer")
    first = testing.run_tests(session(tmp_path), "tests", arguments, may_skip=False)
    assert first.status == PASS and "eager: 3 tests passed" in first.detail, (tmp_path / "log.txt").read_text()
    again = testing.run_tests(session(tmp_path), "tests", arguments, may_skip=False)
    assert again.status == PASS and "eager: 0 tests passed" in again.detail
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\n"$@"\nexit 99\n')
    tool.chmod(0o755)
    found = testing.run_tests(session(tmp_path), "memcheck", arguments, prefix=[str(tool)])
    assert found.status == FAIL and "the sanitizer reports errors" in found.detail
    monkeypatch.setattr(testing, "GRACE", 600.0)  # the tests end themselves; how soon is the machine's affair
    late = testing.run_tests(session(tmp_path, -1), "memcheck", arguments, prefix=["env"])
    assert late.status == PART and "3 left" in late.detail


def test_the_sanitizer_is_found_in_the_path_or_beside_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def program(path: Path) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return str(path)

    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    program(tmp_path / "cuda" / "bin" / "nvcc")
    monkeypatch.setenv("PATH", str(tmp_path / "cuda" / "bin"))
    if not Path("/usr/local/cuda").exists():
        assert testing.find_sanitizer() is None
        outcome = testing.sanitized("memcheck", session(tmp_path))
        assert outcome.status == NOT_RUN and "compute-sanitizer is neither in PATH" in outcome.detail
    beside = program(tmp_path / "cuda" / "compute-sanitizer" / "compute-sanitizer")
    assert testing.find_sanitizer() == beside
    in_path = program(tmp_path / "cuda" / "bin" / "compute-sanitizer")
    assert testing.find_sanitizer() == in_path
