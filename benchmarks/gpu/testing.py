"""Steps that are runs of pytest: in slices of time, each going on where the last one stopped."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.progress import OUT_OF_TIME
from benchmarks.gpu.session import FAIL, GRACE, NOT_RUN, PART, PASS, Outcome, Session
from benchmarks.machine import ROOT

FOLDER = "tests/conformance"
LARGE = (f"{FOLDER}/test_past_int32.py", f"{FOLDER}/test_large.py")  # gigabytes each: one after the other
GRAPHS = (f"{FOLDER}/test_cuda_graphs.py",)
DRAWN = f"{FOLDER}/test_random.py"  # its cases are drawn by hypothesis, which a bare machine may lack
# What plain PyTorch must show on a GPU to be the fallback there: all tables, ties, running statistics.
REFERENCE = tuple(
    f"{FOLDER}/test_{name}.py" for name in ("tables", "row_tables", "ties", "row_ties", "state", "row_state")
)
# Every kernel once, on few values.
SHORT_LIST = (
    f"{FOLDER}/test_short_list.py",
    f"{FOLDER}/test_optim_device.py::test_sizes_around_blocks_and_chunks",
)

SANITIZER = "compute-sanitizer"
ERRORS_FOUND = 99  # the status that the sanitizer is asked to end with when it found something
# Out of torch's caching allocator, where a tensor's neighbour is memory that may be read.
SANITIZER_ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTORCH_ALLOC_CONF": "expandable_segments:False"}


def gpu_backends() -> list[str]:
    """The suite's backends that a GPU must show: Triton, and native where it has kernels for CUDA tensors."""
    import fastnorm.ops  # noqa: F401  defines the ops

    built = torch._C._dispatch_has_kernel_for_dispatch_key("fastnorm_native::batch_norm_fwd", "CUDA")
    return ["triton", *(["cuda"] if built else [])]


def conformance(session: Session) -> Outcome:
    """The suite but for what has steps of its own."""
    drawn = [] if importlib.util.find_spec("hypothesis") else [DRAWN]
    arguments = [FOLDER, *(f"--ignore={path}" for path in (*LARGE, *GRAPHS, *drawn)), *on_cores(session)]
    outcome = run_tests(session, "conformance", arguments)
    outcome.detail += f"; without {DRAWN}: hypothesis is not installed" if drawn else ""
    return outcome


def reference(session: Session) -> Outcome:
    """The eager backend on CUDA tensors: what serves a call that no kernel can, and what derivatives are made of."""
    return run_tests(session, "eager", [*REFERENCE, *on_cores(session)], backends=("eager-cuda",))


def on_cores(session: Session) -> list[str]:
    """With pytest-xdist on several cores, which do the float64."""
    if importlib.util.find_spec("xdist") is None or session.dry_run:
        return []
    return ["-n", str(max(1, min(8, (os.cpu_count() or 1) // 2))), "--dist", "worksteal"]


def large(session: Session) -> Outcome:
    """Large and odd shapes, and more than 2^31 elements. A test that memory does not allow is a failure here."""
    return run_tests(session, "large", LARGE, may_skip=False)


def graphs(session: Session) -> Outcome:
    """Capture in a CUDA graph and replay with new data, against the same calls outside."""
    return run_tests(session, "graphs", GRAPHS, may_skip=False)


def sanitized(tool: str, session: Session) -> Outcome:
    """The short list of tests under one tool of compute-sanitizer."""
    path = find_sanitizer()
    if path is None and not session.dry_run:
        return Outcome(tool, NOT_RUN, f"{SANITIZER} is neither in PATH nor beside nvcc")
    prefix = [path or SANITIZER, "--tool", tool, "--error-exitcode", str(ERRORS_FOUND)]
    return run_tests(session, tool, SHORT_LIST, prefix=prefix, environment=SANITIZER_ENVIRONMENT)


def find_sanitizer() -> str | None:
    """compute-sanitizer, as toolkits lay it out."""
    if found := shutil.which(SANITIZER):
        return found
    nvcc = shutil.which("nvcc")
    named = [value for name in ("CUDA_HOME", "CUDA_PATH") if (value := os.environ.get(name))]
    beside = [Path(nvcc).resolve().parents[1]] if nvcc else []
    for home in (*map(Path, named), *beside, Path("/usr/local/cuda")):
        for folder in ("bin", "compute-sanitizer"):
            if os.access(home / folder / SANITIZER, os.X_OK):
                return str(home / folder / SANITIZER)
    return None


def run_tests(
    session: Session,
    step: str,
    arguments: Sequence[str],
    *,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    may_skip: bool = True,
    backends: Sequence[str] = (),
) -> Outcome:
    """pytest on these backends, or on all of the GPU's, without what has passed before.

    Under a tool (`prefix`) it runs from the start.
    """
    names = ",".join(backends or gpu_backends())
    command = [*prefix, sys.executable, "-m", "pytest", *arguments, "-q", "-p", "benchmarks.gpu.progress"]
    command += ["--columns", ",".join(session.columns)]
    variables: dict[str, str] = {"FASTNORM_TEST_BACKENDS": names, "PYTHONPATH": str(ROOT), **(environment or {})}
    if session.dry_run:
        print(f"== {step}: {' '.join(command)}")
        status, said = collected(session, tuple(command[len(prefix) :]), tuple(variables.items()))
        return Outcome(step, PASS if status == 0 else FAIL, f"dry run, {names}: {said}")
    passed = session.out / "passed.txt"
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder) / "summary.json"
        command += ["--passed", str(passed), "--summary", str(summary), "--deadline", str(session.deadline)]
        if passed.exists() and not prefix:
            command += ["--skip-file", shutil.copy(passed, folder)]
        status, said = session.run(step, command, variables, grace=GRACE)
        counts = json.loads(summary.read_text()) if summary.exists() else None
    before = 0 if prefix else passed_before(passed, arguments, backends)
    return judged(step, status, said, counts, names, before, may_skip=may_skip)


@functools.cache
def collected(session: Session, command: tuple[str, ...], variables: tuple[tuple[str, str], ...]) -> tuple[int, str]:
    """Has pytest find the tests that it would run: once for the tools that take the same ones."""
    return session.run("collect", [*command, "--collect-only"], dict(variables))


def passed_before(file: Path, arguments: Sequence[str], backends: Sequence[str] = ()) -> int:
    """How many of the tests that these arguments of pytest mean, on these backends if any, are in the file."""
    lines = file.read_text().splitlines() if file.exists() else []
    ignored = tuple(a.removeprefix("--ignore=") for a in arguments if a.startswith("--ignore="))
    meant = tuple(a for a in arguments if a.startswith(FOLDER))
    return sum(
        line.startswith(meant) and not line.startswith(ignored or "\0") and all(name in line for name in backends)
        for line in lines
    )


def judged(
    step: str, status: int, said: str, counts: dict[str, Any] | None, backends: str, before: int, *, may_skip: bool
) -> Outcome:
    """The outcome of a run of pytest. No test passed, now or before, is a failure: nothing was shown."""
    if counts is None:
        if "device not supported" in said.lower():
            return Outcome(step, NOT_RUN, said)
        if status == 124:
            return Outcome(step, PART, f"{said}; run it again with this OUT_DIR")
        return Outcome(step, FAIL, f"pytest ended with status {status}: {said}")
    unfinished = counts["skipped"].pop(OUT_OF_TIME, 0)
    skipped = sum(counts["skipped"].values())
    reasons = "; ".join(f"{number} x {reason}" for reason, number in sorted(counts["skipped"].items()))
    told = f"{backends}: {counts['passed']} tests passed" + (f", {skipped} skipped ({reasons})" if skipped else "")
    if counts["failed"]:
        return Outcome(step, FAIL, f"{len(counts['failed'])} failed, the first {counts['failed'][0]}; {told}")
    if status == ERRORS_FOUND:
        return Outcome(step, FAIL, f"the sanitizer reports errors, see log.txt: {said}")
    if unfinished:
        return Outcome(step, PART, f"{told}; {unfinished} left: run it again with this OUT_DIR")
    if status not in (0, 5):  # 5: no test was left to run
        return Outcome(step, FAIL, f"pytest ended with status {status}: {said}")
    if skipped and not may_skip:
        return Outcome(step, FAIL, f"not everything was run: {told}")
    if not counts["passed"] + before:
        return Outcome(step, FAIL, "no test passed")
    return Outcome(step, PASS, told)
