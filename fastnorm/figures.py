"""matplotlib, asked for only where a figure is drawn, and without pyplot: nothing global changes, nothing pops up."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(title: str, rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """An empty figure and its axes, row after row. ImportError with the command that mends it, without matplotlib."""
    try:
        make = importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise ImportError(f"figures need matplotlib ({error}); install it with: pip install matplotlib") from error
    figure: Figure = make(figsize=size, layout="constrained")
    figure.suptitle(title)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)
