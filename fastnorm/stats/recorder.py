"""Hooks that record mean, std and the histogram of |activation| at every training batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastnorm.checks import FLOATING, checked_bins
from fastnorm.functional.stats import measured
from fastnorm.stats import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Filter = Callable[[nn.Module], bool] | type[nn.Module] | tuple[type[nn.Module], ...] | Iterable[nn.Module] | None


@dataclasses.dataclass
class LayerStats:
    """What one module gave, batch by batch, on the device where it was computed. Reading a property waits for it.

    Attributes:
        name: the module's name in the model.
        kind: its class.
        sizes: the number of values of each batch.
        records: mean, std and histogram of each batch, on the device.
    """

    name: str
    kind: str
    sizes: list[int] = dataclasses.field(default_factory=list)
    records: list[tuple[Tensor, Tensor, Tensor]] = dataclasses.field(default_factory=list)

    def _stacked(self, which: int) -> Tensor:
        rows = [record[which] for record in self.records]
        return torch.stack(rows).cpu() if rows else torch.zeros(0)

    @property
    def means(self) -> Tensor:
        """`[batches]`"""
        return self._stacked(0)

    @property
    def stds(self) -> Tensor:
        """`[batches]`"""
        return self._stacked(1)

    @property
    def hists(self) -> Tensor:
        """`[batches, bins]`, int64"""
        return self._stacked(2)

    @property
    def smallest(self) -> Tensor:
        """`[batches]`: the share of all values that lies in the smallest bin."""
        return self.hists[:, 0] / torch.tensor(self.sizes) if self.records else torch.zeros(0)

    @property
    def label(self) -> str:
        return f"{self.name} {self.kind}".strip()


class ActivationStats:
    """Records what modules give, in one fused pass each, while the model trains. Nothing is waited for until asked.

    Example:

        with fastnorm.ActivationStats(model, fastnorm.GeneralRelu) as stats:
            train(model)
        stats.color_dim().savefig("color_dim.png")

    Args:
        model: any module.
        filter: which of its modules: a type or a tuple of types, a function of a module, or the modules themselves;
            None: all without children. A module that gives no floating-point tensor is passed over; of a tuple the
            first tensor counts. A module that runs twice in a forward is recorded twice.
        bins: of the histogram of |activation|, as in `functional.activation_stats`.
        range: of the histogram, likewise.
        training_only: leave out what runs in eval mode.

    Raises:
        ValueError: where no module is left, or for wrong bins or range.
        ImportError: from the figures, without matplotlib.

    Source: fast.ai's ActivationStats.
    """

    def __init__(
        self,
        model: nn.Module,
        filter: Filter = None,
        *,
        bins: int = 40,
        range: tuple[float, float] = (0.0, 10.0),
        training_only: bool = True,
    ) -> None:
        self.bins, self.range, self.training_only = bins, checked_bins(bins, range), training_only
        chosen = {module: name for name, module in model.named_modules() if _wanted(filter, module)}
        if not chosen:
            raise ValueError(f"filter {filter!r} leaves no module of the model")
        self.layers = [LayerStats(name, type(module).__name__) for module, name in chosen.items()]
        self._handles = [
            module.register_forward_hook(self._hook(layer)) for module, layer in zip(chosen, self.layers, strict=True)
        ]

    def _hook(self, layer: LayerStats) -> Callable[[nn.Module, Any, Any], None]:
        bins, (low, high) = self.bins, self.range

        def record(module: nn.Module, given: Any, out: Any) -> None:
            if self.training_only and not module.training:
                return
            x = out if isinstance(out, Tensor) else _first_tensor(out)
            if x is not None and x.dtype in FLOATING:
                layer.records.append(measured(x, bins, low, high))
                layer.sizes.append(x.numel())

        return record

    def remove(self) -> None:
        """Takes the hooks off; what was recorded stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def reset(self) -> None:
        """Forgets what was recorded."""
        for layer in self.layers:
            layer.records, layer.sizes = [], []

    def __enter__(self) -> ActivationStats:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __getitem__(self, name: str) -> LayerStats:
        """The layer of that name in the model. KeyError without one."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def to_dict(self) -> dict[str, dict[str, list[Any]]]:
        """Plain numbers: for each layer mean, std, and share of the smallest bin by batch, and the counts by batch."""
        return {
            layer.name: {
                "mean": layer.means.tolist(),
                "std": layer.stds.tolist(),
                "smallest": layer.smallest.tolist(),
                "hist": layer.hists.tolist(),
            }
            for layer in self.layers
        }

    def summary(self) -> str:
        """A table: mean, std and the share of the smallest bin of each layer, at the first batch and at the last."""
        width = max(len(layer.label) for layer in self.layers)
        low, high = self.range
        edge = low + (high - low) / self.bins
        head = f"{'':{width}}  batches   {'mean':^17}   {'std':^17}   smallest bin (to {edge:g})"
        lines = [head, f"{'':{width}}           {'    first     last   ' * 3}".rstrip()]
        for layer in self.layers:
            cells = [f"{layer.label:{width}}  {len(layer.records):7d}"]
            for values, form in ((layer.means, "8.3f"), (layer.stds, "8.3f"), (layer.smallest, "8.1%")):
                ends = (values[0], values[-1]) if len(values) else ()
                cells.append(" ".join(f"{float(value):{form}}" for value in ends) or f"{'-':>8} {'-':>8}")
            lines.append("   ".join(cells))
        return "\n".join(lines)

    def plot_stats(self) -> Figure:
        """Mean and std of every layer over the batches."""
        return pictures.plot_stats(self.layers)

    def color_dim(self) -> Figure:
        """The colourful dimension: for every layer log(1 + count) by bin (up) and batch (across)."""
        return pictures.color_dim(self.layers, self.range)

    def dead_chart(self) -> Figure:
        """For every layer the share of the smallest bin over the batches: near 1, the layer is dead."""
        return pictures.dead_chart(self.layers)


def _wanted(filter: Filter, module: nn.Module) -> bool:
    if filter is None:
        return next(module.children(), None) is None
    if isinstance(filter, (type, tuple)) and not (isinstance(filter, tuple) and isinstance(filter[0], nn.Module)):
        return isinstance(module, filter)
    return bool(filter(module)) if callable(filter) else any(module is one for one in filter)


def _first_tensor(out: Any) -> Tensor | None:
    return next((one for one in out if isinstance(one, Tensor)), None) if isinstance(out, (tuple, list)) else None
