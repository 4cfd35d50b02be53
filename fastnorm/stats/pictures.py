"""The pictures of recorded activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastnorm.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fastnorm.stats.recorder import LayerStats

COLUMNS = 2


def plot_stats(layers: Sequence[LayerStats]) -> Figure:
    figure, (mean, std) = new_figure("Activations by batch", 1, 2, size=(11, 4))
    for layer in layers:
        mean.plot(layer.means.tolist(), label=layer.label, linewidth=1)
        std.plot(layer.stds.tolist(), label=layer.label, linewidth=1)
    for axes, title in ((mean, "mean"), (std, "standard deviation")):
        axes.set(title=title, xlabel="training batch", ylabel=f"{title} of the layer's output")
        axes.grid(alpha=0.3)
    std.legend(fontsize=8)
    return figure


def color_dim(layers: Sequence[LayerStats], range: tuple[float, float]) -> Figure:
    figure, grid = _grid("log(1 + number of activations) by size and batch", layers)
    for layer, axes in zip(layers, grid, strict=False):
        hists = layer.hists
        if len(hists):
            image = hists.double().log1p().T.tolist()
            extent = (0, len(hists), *range)
            shown = axes.imshow(image, origin="lower", aspect="auto", extent=extent, interpolation="nearest")
            figure.colorbar(shown, ax=axes, label="log(1 + count)")
        axes.set(title=layer.label, xlabel="training batch", ylabel="|activation|")
    return figure


def dead_chart(layers: Sequence[LayerStats]) -> Figure:
    figure, grid = _grid("Share of activations in the smallest bin", layers)
    for layer, axes in zip(layers, grid, strict=False):
        axes.plot(layer.smallest.tolist(), color="#c2410c", linewidth=1)
        axes.set(title=layer.label, xlabel="training batch", ylabel="share in the smallest bin", ylim=(-0.02, 1.05))
        axes.grid(alpha=0.3)
    return figure


def _grid(title: str, layers: Sequence[LayerStats]) -> tuple[Figure, list[Axes]]:
    """A figure with an axis for every layer, two in a row; an odd one out is hidden."""
    columns = min(COLUMNS, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure, grid = new_figure(title, rows, columns, size=(5.5 * columns, 0.7 + 2.8 * rows))
    for axes in grid[len(layers) :]:
        axes.set_visible(False)
    return figure, grid
