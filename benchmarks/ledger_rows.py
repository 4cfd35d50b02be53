"""The ledger's rows that a run of benchmarks.gpu proves, to be pasted into docs/gpu.md."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers import NATIVE
from benchmarks.ratios import Ratios, all_ratios

if TYPE_CHECKING:
    from benchmarks.ledger import Entry

NEEDED = ("conformance", "large", "graphs", "memcheck", "racecheck", "synccheck")
OPTIMIZERS = ("sgd", "rmsprop", "adam")  # the benchmark's columns of the one row
MAY_BE_ABSENT = ("memcheck", "racecheck", "synccheck")  # a machine may lack the sanitizer; the row then says so


class NotProven(Exception):
    """Why a run proves nothing about this checkout."""


def proven_rows(out: Path, entries: Sequence[Entry], here: str) -> list[str]:
    """Rows in markdown, of the ops on the GPU's backends. here: the digest of this checkout's code."""
    run = json.loads((out / "gpu.json").read_text())
    if run["source"]["sources"] != here:
        raise NotProven("gpu.json is of other code than what lies here")
    if run["source"]["dry_run"] or run["source"]["gpu"] is None:
        raise NotProven("gpu.json is of a dry run, or of a machine without a GPU")
    if run["commit"]["dirty"] or run["commit"]["hash"] == "unknown":
        raise NotProven("gpu.json is of changes on top of a commit, or of no known commit (see --commit)")
    states = {step["step"]: step["status"] for step in run["steps"] if not step["columns"]}
    absent = [s for s in MAY_BE_ABSENT if states.get(s) == "NOT RUN"]
    lacking = [s for s in NEEDED if states.get(s) != "PASS" and s not in absent]
    if lacking:
        raise NotProven(f"these steps have not passed for all ops: {', '.join(lacking)}")
    measured = out / "compare.json"
    rows = json.loads(measured.read_text())["rows"] if measured.exists() else []
    ratios = {"triton": all_ratios(rows), "native": all_ratios(rows, NATIVE)}
    return list(filled(entries, run, ratios, absent, states))


def filled(
    entries: Sequence[Entry],
    run: dict[str, Any],
    ratios: dict[str, list[Ratios]],
    absent: list[str],
    states: dict[str, str],
) -> Iterator[str]:
    """native is among the tests' backends, as `cuda`, only where it was built."""
    tested = next((step["detail"] for step in run["steps"] if step["step"] == "conformance"), "").partition(":")[0]
    proven = {"triton", "eager", *(["native"] if "cuda" in tested.split(",") else [])}
    for entry in entries:
        own_step = "demo" if entry.op == "demo" else "eager" if entry.backend == "eager" else "conformance"
        if entry.backend not in proven or states.get(own_step) != "PASS":
            continue
        numbers = numbers_of(entry.op, ratios.get(entry.backend, [])) + (
            f"; without {', '.join(absent)}" if absent else ""
        )
        proof = f"`{run['commit']['hash'][:12]}`"
        row = dataclasses.replace(entry, proof=proof, gpu=run["source"]["gpu"], numbers=numbers)
        yield "| " + " | ".join(dataclasses.astuple(row)) + " |"


def numbers_of(op: str, ratios: Sequence[Ratios]) -> str:
    """Medians over the cases of an op's column and direction (those of both together count for both)."""
    column, _, direction = re.sub("_(fwd|bwd)$", r" \1", op).partition(" ")
    columns = OPTIMIZERS if column == "optim" else (column,)
    direction = direction or "step"
    own = [r for r in ratios if r.row["column"] in columns and direction in r.row["direction"].split("+")]
    floors = [1 / r.floor for r in own if r.floor]
    eager = [r.eager for r in own if r.eager]
    if not (floors and eager):
        return "passed, not measured"
    return (
        f"{statistics.median(floors):.2f} of a copy's bandwidth, {statistics.median(eager):.2f} x eager "
        f"(median of {len(own)} cases)"
    )
