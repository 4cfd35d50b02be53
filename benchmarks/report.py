"""`python -m benchmarks.report RESULTS.json`: tables and a plot of a results file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Row
from benchmarks.peers import NATIVE
from benchmarks.plot import plot
from benchmarks.ratios import all_ratios, by_case, floor_of, median, over, ratios_of
from benchmarks.targets import CPU_TARGETS, CUDA_TARGETS, Verdict, judge, spread

Results = dict[str, Any]


def case_lines(rows: Sequence[Row]) -> list[str]:
    """What `compare` prints of one case: median, spread and ratios of each candidate."""
    candidates = next(iter(by_case(rows).values()))
    floor = floor_of(candidates)
    eager, compiled = median(candidates.get("eager")), median(candidates.get("compile"))
    fused = median(candidates.get("fused"))
    lines = []
    for name, row in candidates.items():
        if "quantiles_us" not in row:
            lines.append(f"    {name:14s} {row['status']}: {row['message']}")
            continue
        q, time = row["quantiles_us"], median(row)
        told = ""
        if not name.startswith("floor:"):
            ratios = (
                (eager, time, "eager"),
                (fused, time, "fused"),
                (compiled, time, "compile"),
                (time, floor, "floor"),
            )
            told = "".join(f"{r:8.2f}x {what}" for a, b, what in ratios if what != name and (r := over(a, b)))
        batches = f"{row['batches']} batches, {row['rejected_batches']} more disturbed"
        noisy = f"  noisy: {batches}" if row["status"] == "noisy" else ""
        lines.append(f"    {name:14s}{q['p50']:11.1f} us [{q['p25']:.1f} .. {q['p75']:.1f}]{told}{noisy}")
    return lines


def summary_lines(results: Results) -> list[str]:
    """The table of targets, once for each thread count."""
    rows: list[Row] = results["rows"]
    lines = []
    for threads in sorted({row["threads"] for row in rows}):
        here = [row for row in rows if row["threads"] == threads]
        targets = CUDA_TARGETS if here[0]["device"] == "cuda" else CPU_TARGETS
        lines += [
            f"threads: {threads}; worst / median ratio over the cases (target, set for one thread)",
            "",
        ]
        lines += target_table(judge(all_ratios(here), targets))
        lines += ["", *inplace_note(here), *native_note(here)]
    return lines


def target_table(verdicts: Sequence[Verdict]) -> list[str]:
    cells = [("case", "cases", "x eager", "x compile", "x fused", "time / floor", "")]
    for v in verdicts:
        slowest_first = tuple(sorted(v.floor, reverse=True))
        over_floor = f"{slowest_first[0]:.2f} / {slowest_first[len(v.floor) // 2]:.2f}" if v.floor else "-"
        cells.append(
            (
                v.target.name,
                str(v.cases),
                spread(v.eager) + bracket(v.target.eager),
                spread(v.compile) + bracket(v.target.compile),
                spread(v.fused) + bracket(v.target.fused),
                over_floor + bracket(v.target.floor),
                outcome(v),
            )
        )
    return markdown(cells)


def outcome(v: Verdict) -> str:
    said = f"FAIL in {v.failed}" if v.failed else {True: "PASS", False: "below", None: "-"}[v.passed]
    return said + (f", {v.uncompared} without eager" if v.uncompared else "")


def bracket(target: float | None) -> str:
    return "" if target is None else f" ({target:.3g})"


def inplace_note(rows: Sequence[Row]) -> list[str]:
    """The ratio to GeneralRelu in place, which is eager PyTorch's best forward: one line for those cases."""
    faster = []
    for candidates in by_case(rows).values():
        ratio = over(median(candidates.get("eager_inplace")), median(candidates.get("fastnorm")))
        if ratio is not None:
            faster.append(ratio)
    return [f"against eager with GeneralRelu in place: {spread(faster)} in {len(faster)} cases", ""] if faster else []


def native_note(rows: Sequence[Row]) -> list[str]:
    """On a GPU, the CUDA C++ kernels against the backend that is chosen automatically."""
    found = [over(median(c.get("fastnorm")), median(c.get(NATIVE))) for c in by_case(rows).values()]
    ratios = [ratio for ratio in found if ratio is not None]
    return [f"CUDA C++ against the automatic choice: {spread(ratios)} in {len(ratios)} cases", ""] if ratios else []


def case_table(results: Results) -> list[str]:
    """Every case of fastnorm, in markdown."""
    cells = [("case", "threads", "us", "p25 .. p75", "x eager", "x compile", "time / floor")]
    for candidates in by_case(results["rows"]).values():
        one = ratios_of(candidates, "fastnorm")
        if one is None:
            continue
        name, threads = one.row["case"], str(one.row["threads"])
        if "quantiles_us" not in one.row:
            cells.append((name, threads, one.row["status"], one.row["message"], "", "", ""))
            continue
        q = one.row["quantiles_us"]
        numbers = (one.eager, one.compile, one.floor)
        eager, compiled, floor = ("-" if x is None else f"{x:.2f}" for x in numbers)
        cells.append((name, threads, f"{q['p50']:.1f}", f"{q['p25']:.1f} .. {q['p75']:.1f}", eager, compiled, floor))
    return markdown(cells)


def markdown(cells: Sequence[Sequence[str]]) -> list[str]:
    """A markdown table that is aligned as plain text too; the first row is the head."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def heading(results: Results) -> list[str]:
    """Where and of what the file was measured."""
    machine, versions, commit = results["machine"], results["versions"], results["commit"]
    dirty = " with changes" if commit["dirty"] else ""
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, L3 {machine['caches'].get('L3 Unified')}"
    backend = results["backends"][results["rows"][0]["device"]]
    return [
        f"{where}; torch {versions['torch']}, triton {versions['triton']}, Python {versions['python']}, "
        f"fastnorm {versions['fastnorm']} ({backend}); "
        f"commit {commit['hash'][:12]}{dirty}, {results['date'][:10]}.",
        "",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    p.add_argument("results", type=Path)
    p.add_argument("--markdown", type=Path, help="write the tables here instead of printing them")
    p.add_argument("--plot", type=Path, metavar="PNG", help="write a bar chart")
    args = p.parse_args(argv)
    results = json.loads(args.results.read_text())
    if not results["rows"]:
        print(f"{args.results} has no rows", file=sys.stderr)
        return 2
    text = "\n".join([*heading(results), *summary_lines(results), *case_table(results)])
    if args.markdown:
        args.markdown.write_text(text + "\n")
    else:
        print(text)
    if args.plot:
        plot(results, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
