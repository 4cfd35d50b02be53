"""The closing table: a line a step, then a line a target with the ratios and the fractions of a copy's bandwidth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.session import Outcome
from benchmarks.libraries import absent_libraries
from benchmarks.ratios import all_ratios
from benchmarks.report import markdown, outcome, spread
from benchmarks.targets import CUDA_TARGETS, judge

Cells = tuple[str, str, str]


def target_rows(results: Path) -> list[Cells]:
    """(target, PASS or below, ratios) of a results file of compare."""
    rows = json.loads(results.read_text())["rows"]
    cells = []
    for v in judge(all_ratios(rows), CUDA_TARGETS):
        told = [f"{spread(v.eager)} x eager", f"{spread(v.compile)} x compile"]
        told += [f"{spread(v.fused)} x fused"] if v.fused else []
        told += [f"{spread([1 / x for x in v.floor])} of a copy's bandwidth"] if v.floor else []
        told += [f"{max(v.host):.0f} us of host time"] if v.host else []
        told += [f"{max(v.launches)} launches"] if v.launches else []
        told += [f"{max(v.extra):+.1f} us of host time over eager"] if v.extra else []
        cells.append((f"  {v.target.name}", outcome(v), ", ".join(told)))
    return cells


def lines(outcomes: Sequence[Outcome], targets: Sequence[Cells]) -> list[str]:
    cells: list[Cells] = [("step", "", "detail")]
    for o in outcomes:
        asked = f" ({', '.join(o.columns)})" if o.columns else ""
        cells.append((o.step + asked, o.status, o.detail))
    absent = absent_libraries()
    note = f"Not installed here, and so not measured: {', '.join(absent)}." if absent else ""
    head = "Ratios are worst / median over a target's cases; bytes are counted once a tensor."
    return [*markdown([*cells, *targets]), head, *([note] if note else [])]
