"""The plot of a results file: how many times as fast as its peers fastnorm is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ratios import Ratios, all_ratios
from benchmarks.targets import CPU_TARGETS, CUDA_TARGETS, Verdict, judge

PEERS = (("eager PyTorch", "#3b6ea8", -0.2), ("torch.compile", "#d98b3a", 0.2))
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of the ratio to eager and to torch.compile, one of each a target; whiskers: worst to best case."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = sorted({row["threads"] for row in results["rows"]})
    targets = CUDA_TARGETS if results["rows"][0]["device"] == "cuda" else CPU_TARGETS
    per_count = [judge(ratios_at(results, n), targets) for n in counts]
    height = 1.6 + 0.34 * max(len(verdicts) for verdicts in per_count)
    figure, axes = plt.subplots(1, len(counts), figsize=(8 * len(counts), height), squeeze=False, sharex=True)
    for axis, threads, verdicts in zip(axes[0], counts, per_count, strict=True):
        draw(axis, verdicts)
        where = results["machine"]["gpu"] or f"CPU, {threads} thread{'s' if threads > 1 else ''}"
        axis.set_title(f"fastnorm on {where}: times as fast as", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def ratios_at(results: dict[str, Any], threads: int) -> list[Ratios]:
    return all_ratios(row for row in results["rows"] if row["threads"] == threads)


def draw(axis: Any, verdicts: Sequence[Verdict]) -> None:
    """One panel, log scale: a bar ends at the median case, its whisker spans worst to best."""
    for label, colour, offset in PEERS:
        reached = [v.eager if label == PEERS[0][0] else v.compile for v in verdicts]
        at = [i for i, values in enumerate(reached) if values]
        if not at:
            continue
        middle = [sorted(reached[i])[len(reached[i]) // 2] for i in at]
        below = [m - min(reached[i]) for m, i in zip(middle, at, strict=True)]
        above = [max(reached[i]) - m for m, i in zip(middle, at, strict=True)]
        axis.barh(
            [i + offset for i in at],
            [m - 1 for m in middle],
            left=1,
            height=0.36,
            xerr=[below, above],
            color=colour,
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
            label=label,
        )
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xlim(left=min(0.8, axis.get_xlim()[0]))
    low, high = axis.get_xlim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_yticks(range(len(verdicts)), [v.target.name.removesuffix(" (no target)") for v in verdicts], fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="best", fontsize=8)
