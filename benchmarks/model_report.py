"""The tables of `benchmarks.models`: every model, and what was promised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.measure import Row
from benchmarks.model_cases import CEILING, CONVERTED, MODEL_TARGETS, RECOMPUTING, ModelTarget
from benchmarks.ratios import by_case
from benchmarks.report import heading, markdown

MIB = 2**20
Candidates = dict[str, Row]


def report_lines(results: dict[str, Any]) -> list[str]:
    """Both tables in markdown, once for each thread count, under a heading of where they were measured."""
    rows: list[Row] = results["rows"]
    if not rows:
        return ["nothing was measured"]
    lines = heading(results)
    for threads in sorted({row["threads"] for row in rows}):
        cases = [found for (_, count), found in by_case(rows).items() if count == threads]
        lines += [f"threads: {threads}", "", *model_table(cases), "", *target_table(cases), ""]
    return lines[:-1]


def model_table(cases: Sequence[Candidates]) -> list[str]:
    """A row a model and layout: milliseconds, how many times as fast, bytes kept for the backward."""
    cells = [
        ("model", "batch", "layout", "eager ms", "fastnorm ms", "x eager", "quartiles", "ceiling", "x compile",
         "kept MiB", "recompute: x eager", "kept MiB", "norms", "fused"),
    ]  # fmt: skip
    for found in cases:
        ours, eager = found[CONVERTED], found.get("eager", {})
        again, compiled = found.get(RECOMPUTING, {}), found.get("compile", {})
        name, layout, _ = ours["case"].split("/")
        cells.append(
            (
                name, "x".join(map(str, ours["shape"])), layout.replace("_", " "), milliseconds(eager),
                milliseconds(ours), ratio(ours), quartiles(ours), ratio(found.get(CEILING, {})),
                over_compiled(ours, compiled), kept(ours, eager), ratio(again), kept(again, eager),
                str(ours.get("replaced", "-")), str(ours.get("fused", "-")),
            )
        )  # fmt: skip
    return markdown(cells)


def milliseconds(row: Row) -> str:
    return f"{row['quantiles_us']['p50'] / 1e3:.1f}" if "quantiles_us" in row else row.get("status", "-")


def ratio(row: Row) -> str:
    noisy = " (noisy)" if row.get("status") == "noisy" else ""
    return f"{row['x_eager']['p50']:.2f}{noisy}" if "x_eager" in row else "-"


def quartiles(row: Row) -> str:
    return f"{row['x_eager']['p25']:.2f} .. {row['x_eager']['p75']:.2f}" if "x_eager" in row else "-"


def over_compiled(ours: Row, compiled: Row) -> str:
    if "x_eager" not in compiled or "x_eager" not in ours:
        return "-"
    return f"{ours['x_eager']['p50'] / compiled['x_eager']['p50']:.2f}"


def kept(row: Row, eager: Row) -> str:
    """What eager keeps, what the candidate keeps, and the change."""
    if "saved_bytes" not in row or not eager.get("saved_bytes"):
        return "-"
    theirs, ours = eager["saved_bytes"], row["saved_bytes"]
    return f"{theirs / MIB:.1f} -> {ours / MIB:.1f} ({ours / theirs - 1:+.0%})"


def target_table(cases: Sequence[Candidates]) -> list[str]:
    cells = [("target", "reached", "", "missed by")]
    for target in MODEL_TARGETS:
        verdict = judge(target, cases)
        if verdict is not None:
            reached, missed = verdict
            cells.append((target.name, reached, "below" if missed else "PASS", ", ".join(missed) or "-"))
    return markdown(cells)


def judge(target: ModelTarget, cases: Sequence[Candidates]) -> tuple[str, list[str]] | None:
    """The worst value reached and the cases that miss the target; None where no case was measured that it judges.

    Noisy cases are left out. A wrong result misses every target.
    """
    rows = [
        (found[target.candidate], found.get("eager", {}))
        for found in cases
        if target.candidate in found and target.model in ("", found[target.candidate]["case"].split("/")[0])
    ]
    wrong = [ours["case"] for ours, _ in rows if ours["status"] in ("FAIL", "ERROR")]
    timed = [(ours, eager) for ours, eager in rows if ours["status"] == "ok" and "saved_bytes" in eager]
    if not timed:
        return ("-", wrong) if wrong else None
    if target.saved is not None:
        shares = {ours["case"]: ours["saved_bytes"] / eager["saved_bytes"] for ours, eager in timed}
        missed = [name for name, share in shares.items() if share > target.saved]
        return f"{max(shares.values()) - 1:+.0%}", wrong + missed
    assert target.eager is not None
    values = {ours["case"]: ours["x_eager"]["p50"] for ours, _ in timed}
    best = max(values.values())
    missed = [name for name, value in values.items() if (best if target.better_layout else value) < target.eager]
    return f"{best if target.better_layout else min(values.values()):.2f}", wrong + missed
