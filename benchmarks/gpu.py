"""`python -m benchmarks.gpu OUT_DIR`: everything a machine with a GPU should say, as one PASS/FAIL table.

Written for a bare machine: Python, torch, triton, pytest and a compiler, no network, no virtual
environment, fastnorm not installed. Builds the extension in place, runs the conformance suite on the Triton
backend, trains the demo on the GPU and measures `benchmarks.compare` there. OUT_DIR receives gpu.json,
compare.json and a log for each step.

With --dry-run nothing is launched: the build and the demo are printed, the tests are collected, the cases
are listed, and every launch that the cases would make is computed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.launch_plans import plan_lines
from benchmarks.machine import ROOT, describe
from benchmarks.ratios import all_ratios
from benchmarks.report import markdown, outcome, spread
from benchmarks.targets import CUDA_TARGETS, judge

STEPS = ("build", "conformance", "demo", "compare")
PASS, FAIL, NOT_RUN = "PASS", "FAIL", "NOT RUN"


@dataclasses.dataclass
class Outcome:
    """A line of the table."""

    step: str
    status: str
    detail: str
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Session:
    """One invocation: where files go, when it must end, whether anything is launched."""

    out: Path
    deadline: float
    dry_run: bool
    quick: bool

    def run(self, step: str, command: Sequence[str], **environment: str) -> tuple[int, str]:
        """Runs a command until the deadline. Returns its status and last line; the log keeps all of it."""
        print(f"== {step}: {shlex.join(command)}", flush=True)
        log = self.out / f"{step}.log"
        left = max(1.0, self.deadline - time.monotonic())
        with log.open("w") as file:
            try:
                done = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=os.environ | environment,
                    stdout=file,
                    stderr=file,
                    timeout=left,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return 124, f"stopped after {left:.0f} s: out of time"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return done.returncode, lines[-1] if lines else "no output"


def build(session: Session) -> Outcome:
    """Compiles the extension beside its sources, where `import fastnorm` from this folder finds it."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    if session.dry_run:
        print(f"== build: FASTNORM_BUILD=auto {shlex.join(command)}")
        return Outcome("build", PASS, "dry run: printed")
    status, said = session.run("build", command, FASTNORM_BUILD="auto")
    return Outcome("build", PASS if status == 0 else FAIL, said)


def conformance(session: Session) -> Outcome:
    """The conformance suite on Triton. No test passed is a failure: nothing was shown."""
    report = session.out / "conformance.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "tests/conformance", "-q", f"--junitxml={report}"]
    if session.dry_run:
        command[-2:] = ["-q", "--collect-only"]
    status, said = session.run("conformance", command, FASTNORM_TEST_BACKENDS="triton")
    if session.dry_run:
        return Outcome("conformance", PASS if status == 0 else FAIL, f"dry run: {said}")
    if status == 0 and report.exists() and not passed_tests(report):
        return Outcome("conformance", FAIL, "no test passed")
    return Outcome("conformance", PASS if status == 0 else FAIL, said)


def passed_tests(report: Path) -> int:
    """How many tests of a JUnit file ran and did not fail."""
    suites = xml.etree.ElementTree.parse(report).getroot().iter("testsuite")
    return sum(
        int(s.get("tests", 0)) - sum(int(s.get(bad, 0)) for bad in ("failures", "errors", "skipped")) for s in suites
    )


def demo(session: Session) -> Outcome:
    """The demo on the GPU, where the packages that it needs are."""
    command = [
        sys.executable,
        "-m",
        "fastnorm",
        "demo",
        "--device",
        "cuda",
        "--out",
        str(session.out / "demo"),
    ]
    if session.dry_run:
        print(f"== demo: {shlex.join(command)}")
        return Outcome("demo", PASS, "dry run: printed")
    absent = [name for name in ("sklearn", "matplotlib") if importlib.util.find_spec(name) is None]
    if absent:
        return Outcome("demo", NOT_RUN, f"{' and '.join(absent)} missing here, and with it the digits or the plot")
    status, said = session.run("demo", command)
    return Outcome("demo", PASS if status == 0 else FAIL, said)


def compare(session: Session) -> Outcome:
    """Measures on the GPU, or computes what would be launched. Missed targets are told, not failures."""
    command = [sys.executable, "-m", "benchmarks.compare", "--device", "cuda"]
    if session.dry_run:
        status, _ = session.run("compare", [*command, "--list"])
        if importlib.util.find_spec("triton") is None:
            return Outcome("compare", NOT_RUN, "triton missing here, and with it the launch plans")
        try:
            plans = plan_lines()
        except (ImportError, RuntimeError) as error:
            return Outcome("compare", FAIL, str(error))
        (session.out / "plans.txt").write_text("\n".join(plans) + "\n")
        print("\n".join(plans))
        return Outcome("compare", PASS if status == 0 else FAIL, f"dry run: {len(plans)} sets of tensors planned")
    minutes = max(0.5, (session.deadline - time.monotonic()) / 60 - 0.5)
    command += ["--minutes", f"{minutes:.1f}", "--out", str(session.out / "compare.json")]
    status, said = session.run("compare", command + (["--quick"] if session.quick else []))
    return Outcome("compare", PASS if status == 0 else FAIL, said)


RUNNERS: dict[str, Callable[[Session], Outcome]] = {
    "build": build,
    "conformance": conformance,
    "demo": demo,
    "compare": compare,
}


def target_rows(results: Path) -> list[tuple[str, str, str]]:
    """(target, PASS or below, ratios) of a results file of compare."""
    rows = json.loads(results.read_text())["rows"]
    return [
        (
            f"  {v.target.name}",
            outcome(v),
            f"{spread(v.eager)} x eager, {spread(v.compile)} x compile, "
            f"{spread([1 / x for x in v.floor])} of copy bandwidth at single-pass bytes (worst / median)",
        )
        for v in judge(all_ratios(rows), CUDA_TARGETS)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 when nothing failed, 1 otherwise."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("out", type=Path, metavar="OUT_DIR")
    p.add_argument("--dry-run", action="store_true", help="walk all of it but the launches")
    p.add_argument("--minutes", type=float, default=30, help="time for everything (default: %(default)s)")
    p.add_argument("--only", type=lambda text: text.split(","), default=list(STEPS), help=",".join(STEPS))
    p.add_argument("--quick", action="store_true", help="fewer rounds in compare")
    args = p.parse_args(argv)
    if unknown := set(args.only) - set(STEPS):
        p.error(f"--only knows {', '.join(STEPS)}; got {', '.join(sorted(unknown))}")
    os.environ.pop("TRITON_INTERPRET", None)  # here every kernel is the GPU's
    args.out.mkdir(parents=True, exist_ok=True)
    session = Session(args.out.resolve(), time.monotonic() + 60 * args.minutes, args.dry_run, args.quick)
    outcomes = [run_step(step, session) for step in STEPS if step in args.only]
    return finish(session, outcomes)


def run_step(step: str, session: Session) -> Outcome:
    """One step; what cannot start without a GPU fails with that sentence."""
    start = time.monotonic()
    if step != "build" and not session.dry_run and not torch.cuda.is_available():
        return Outcome(step, FAIL, "torch sees no GPU here")
    result = RUNNERS[step](session)
    result.seconds = time.monotonic() - start
    return result


def finish(session: Session, outcomes: list[Outcome]) -> int:
    """Prints the table, writes gpu.json."""
    cells = [("step", "", "detail"), *((o.step, o.status, o.detail) for o in outcomes)]
    measured = session.out / "compare.json"
    compared = [o for o in outcomes if o.step == "compare" and not session.dry_run]
    targets = target_rows(measured) if compared and measured.exists() else []
    print("\n".join(["", *markdown([*cells, *targets])]))
    record: dict[str, Any] = describe() | {"dry_run": session.dry_run}
    record |= {"steps": [dataclasses.asdict(o) for o in outcomes], "targets": targets}
    (session.out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n")
    return 1 if any(o.status == FAIL for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
