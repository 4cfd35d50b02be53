"""One invocation: commands with a deadline and a log, and what is kept in OUT_DIR from run to run.

OUT_DIR holds few files, and none more than one folder down, so that it is easily carried from a machine that is lent
for minutes: gpu.json (outcomes and where they come from), passed.txt (tests), compare.json (rows), log.txt, plans.txt
and the folder demo.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT

PASS, FAIL, NOT_RUN, PART = "PASS", "FAIL", "NOT RUN", "PART"
OUT_OF_TIME = 124  # a command's status, as `timeout` has it
GRACE = 15.0  # seconds that a command which ends itself in time may be late


@dataclasses.dataclass
class Outcome:
    """A line of the table. columns: which op columns the step was asked for; none means all."""

    step: str
    status: str
    detail: str
    seconds: float = 0.0
    columns: tuple[str, ...] = ()

    def covers(self, columns: tuple[str, ...]) -> bool:
        return not self.columns or (bool(columns) and set(columns) <= set(self.columns))


@dataclasses.dataclass(frozen=True)
class Session:
    """Where files go, when all must have ended, which columns are asked for, whether anything is launched."""

    out: Path
    deadline: float  # time.time()
    dry_run: bool = False
    quick: bool = False
    columns: tuple[str, ...] = ()

    @property
    def left(self) -> float:
        return self.deadline - time.time()

    def run(
        self, step: str, command: Sequence[str], environment: Mapping[str, str] | None = None, *, grace: float = 0.0
    ) -> tuple[int, str]:
        """Runs a command until the deadline. Returns its status and last line; log.txt keeps all of it."""
        environment = environment or {}
        told = " ".join([*(f"{k}={v}" for k, v in environment.items()), shlex.join(command)])
        print(f"== {step}: {told}", flush=True)
        log = self.out / "log.txt"
        with log.open("a") as file:
            file.write(f"\n== {step}: {told}\n")
            file.flush()
            start = file.tell()
            status = run_group(command, {**os.environ, **environment}, file, max(1.0, self.left + grace))
        with log.open(errors="replace") as file:
            file.seek(start)
            lines = [line.strip() for line in file.read().splitlines() if line.strip()]
        if status == OUT_OF_TIME:
            return status, "stopped: out of time"
        return status, lines[-1] if lines else "no output"


def run_group(command: Sequence[str], environment: dict[str, str], log: Any, seconds: float) -> int:
    """The command's status, or OUT_OF_TIME after it and all it started were stopped: none may keep the GPU."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=os.setpgrp
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return OUT_OF_TIME
    finally:
        if process.poll() is None:
            stop_group(process)


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """Its process group was made for it alone, and bears its id."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(5)
            break
        except subprocess.TimeoutExpired:
            continue


@dataclasses.dataclass
class Record:
    """gpu.json: of what the outcomes are (`source`: code, machine, versions), and the latest outcome of every step."""

    path: Path
    source: dict[str, Any]
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)

    @classmethod
    def resume(cls, path: Path, source: dict[str, Any]) -> Record:
        """With the outcomes in the file, if they are of the same code on the same kind of machine."""
        record = cls(path, source)
        try:
            kept = json.loads(path.read_text())
        except (OSError, ValueError):
            return record
        if kept.get("source") == source:
            record.outcomes = [Outcome(**{**one, "columns": tuple(one["columns"])}) for one in kept["steps"]]
        return record

    def passed(self, step: str, columns: tuple[str, ...]) -> Outcome | None:
        return next((o for o in self.outcomes if o.step == step and o.status == PASS and o.covers(columns)), None)

    def add(self, outcome: Outcome) -> None:
        """Replaces what the step said before of the same columns."""
        same = (outcome.step, outcome.columns)
        self.outcomes = [o for o in self.outcomes if (o.step, o.columns) != same] + [outcome]

    def write(self, more: dict[str, Any]) -> None:
        steps = [dataclasses.asdict(outcome) for outcome in self.outcomes]
        self.path.write_text(json.dumps({**more, "source": self.source, "steps": steps}, indent=1) + "\n")
