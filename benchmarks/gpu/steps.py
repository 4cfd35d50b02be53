"""The steps of the GPU command, as a table: name -> what runs it."""

from __future__ import annotations

import functools
import importlib.util
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu.session import FAIL, GRACE, NOT_RUN, PART, PASS, Outcome, Record, Session
from benchmarks.gpu.testing import conformance, graphs, large, reference, sanitized
from benchmarks.launch_plans import plan_lines
from benchmarks.machine import ROOT

Step = Callable[[Session], Outcome]
CASE_SECONDS = 45.0  # of a case of compare at most: what may still run when no more is begun


def build(session: Session) -> Outcome:
    """Compiles the extension beside its sources, where `import fastnorm` from this folder finds it."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    if session.dry_run:
        print(f"== build: FASTNORM_BUILD=auto {shlex.join(command)}")
        return Outcome("build", PASS, "dry run: printed")
    status, said = session.run("build", command, {"FASTNORM_BUILD": "auto"})
    return Outcome("build", PASS if status == 0 else FAIL, said)


def demo(session: Session) -> Outcome:
    """The demo on the GPU, on images that need no package and no download; its picture where matplotlib is."""
    command = [sys.executable, "-m", "fastnorm", "demo", "--data", "shapes", "--device", "cuda"]
    command += ["--out", str(session.out / "demo")]
    command += [] if importlib.util.find_spec("matplotlib") else ["--no-plot"]
    if session.dry_run:
        print(f"== demo: {shlex.join(command)}")
        return Outcome("demo", PASS, "dry run: printed")
    # Both nets share their convolutions, which TF32 would round far more coarsely than what is compared.
    status, said = session.run("demo", command, {"NVIDIA_TF32_OVERRIDE": "0"})
    return Outcome("demo", {0: PASS, 124: PART}.get(status, FAIL), said)


def compare(session: Session) -> Outcome:
    """Measures on the GPU, or computes what would be launched. Missed targets are told, not failures."""
    command = [sys.executable, "-m", "benchmarks.compare", "--device", "cuda", "--op", ",".join(session.columns)]
    if session.dry_run:
        return plan(session, command)
    results = session.out / "compare.json"
    minutes = max(0.2, (session.left - CASE_SECONDS) / 60)
    command += ["--minutes", f"{minutes:.2f}", "--resume", "--out", str(results)]
    status, said = session.run("compare", command + (["--quick"] if session.quick else []), grace=GRACE)
    missing = json.loads(results.read_text()).get("missing", 0) if results.exists() else 0
    if status == 0 and missing:
        return Outcome("compare", PART, f"{missing} cases left: run it again with this OUT_DIR")
    return Outcome("compare", {0: PASS, 124: PART}.get(status, FAIL), said)


def plan(session: Session, command: list[str]) -> Outcome:
    status, _ = session.run("compare", [*command, "--list"])
    if importlib.util.find_spec("triton") is None:
        return Outcome("compare", NOT_RUN, "triton missing here, and with it the launch plans")
    try:
        plans = plan_lines(session.columns)
    except (ImportError, RuntimeError) as error:
        return Outcome("compare", FAIL, str(error))
    (session.out / "plans.txt").write_text("\n".join(plans) + "\n")
    print("\n".join(plans))
    return Outcome("compare", PASS if status == 0 else FAIL, f"dry run: {len(plans)} sets of tensors planned")


STEPS: dict[str, Step] = {
    "build": build,
    "graphs": graphs,
    "memcheck": functools.partial(sanitized, "memcheck"),
    "racecheck": functools.partial(sanitized, "racecheck"),
    "synccheck": functools.partial(sanitized, "synccheck"),
    "demo": demo,
    "large": large,
    "conformance": conformance,
    "eager": reference,
    "compare": compare,
}


def built() -> bool:
    """Whether the extension lies here: on a fresh machine it does not, whatever an earlier run says."""
    return any(Path(ROOT, "fastnorm").glob("_C*.so"))


def take(step: str, session: Session, record: Record) -> Outcome:
    """One step, unless it has passed before; what cannot start without a GPU fails with that sentence."""
    before = record.passed(step, session.columns)
    if before is not None and not session.dry_run and (step != "build" or built()):
        print(f"== {step}: passed before: {before.detail}", flush=True)
        return before
    if step != "build" and not session.dry_run:
        if not torch.cuda.is_available():
            return Outcome(step, FAIL, "torch sees no GPU here", columns=session.columns)
        if session.left < GRACE:
            return Outcome(step, PART, "out of time: run it again with this OUT_DIR", columns=session.columns)
    return STEPS[step](session)
