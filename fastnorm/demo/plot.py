"""The picture of a run: loss curves, accuracy, speed and memory of both nets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fastnorm.demo.report import Summary
from fastnorm.demo.settings import require
from fastnorm.demo.train import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"torch.nn": "#a3a3a3", "fastnorm": "#c2410c"}


def save_figure(path: Path, histories: Mapping[str, History], summary: Summary) -> None:
    """Draw both nets' loss and accuracy curves, step times and saved bytes into a PNG at path."""
    require("matplotlib").use("Agg")
    plt = require("matplotlib.pyplot")
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    figure.suptitle(
        f"One convnet with {summary.norm} norm trained twice on {summary.data}: torch.nn and fastnorm, same batches\n"
        f"{summary.device}, backend {summary.backend}, batch {summary.batch_size}, seed {summary.seed}"
    )
    _draw_loss(axes[0, 0], histories)
    _draw_accuracy(axes[0, 1], histories, summary.target)
    _draw_speed(axes[1, 0], summary)
    _draw_memory(axes[1, 1], summary)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _line_width(name: str) -> float:
    """torch.nn's line is broad and lies below fastnorm's thin one, so that both show where they agree."""
    return 4.5 if name == "torch.nn" else 1.2


def _draw_loss(axes: Axes, histories: Mapping[str, History]) -> None:
    for name, history in histories.items():
        steps = range(1, len(history.losses) + 1)
        axes.plot(steps, history.losses, color=COLOURS[name], label=name, linewidth=_line_width(name))
    axes.set(title="Training loss", xlabel="training step", ylabel="cross-entropy (nats)", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_accuracy(axes: Axes, histories: Mapping[str, History], target: float) -> None:
    for name, history in histories.items():
        epochs, percent = range(1, len(history.accuracy) + 1), [100 * share for share in history.accuracy]
        axes.plot(epochs, percent, "o-", color=COLOURS[name], label=name, linewidth=_line_width(name))
    axes.axhline(100 * target, color="black", linewidth=1, linestyle=":", label=f"target, {target:.0%}")
    axes.set(title="Validation accuracy", xlabel="epoch", ylabel="right answers (%)")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _draw_speed(axes: Axes, summary: Summary) -> None:
    """Two pairs of bars: the whole training step, and the part of it that differs between the nets."""
    for offset, name in ((-0.2, "torch.nn"), (0.2, "fastnorm")):
        values = [1e3 * summary.step_seconds[name], 1e3 * summary.norm_act_seconds[name]]
        rate = summary.images_per_second[name]
        labels = [f"{values[0]:.2f} ms\n{rate:,.0f} images/s", f"{values[1]:.2f} ms"]
        bars = axes.bar([offset, 1 + offset], values, width=0.36, color=COLOURS[name], label=name)
        axes.bar_label(bars, labels, fontsize=9, padding=2)
    axes.set_xticks([0, 1], ["whole training step", "its norm + activation layers,\nforward and backward"])
    axes.set(title="Speed", ylabel="median ms per batch (lower is better)")
    axes.margins(y=0.2)
    axes.legend()


def _draw_memory(axes: Axes, summary: Summary) -> None:
    names = list(summary.saved_bytes)
    values = [summary.saved_bytes[name] / 2**20 for name in names]
    bars = axes.bar(names, values, width=0.5, color=[COLOURS[name] for name in names])
    axes.bar_label(bars, [f"{value:.2f} MiB" for value in values], fontsize=9, padding=2)
    axes.set(title="Activations kept for the backward", ylabel="MiB per batch (lower is better)")
    axes.margins(y=0.2)
