"""A learning-rate finder: the rate grows from step to step until the loss blows up."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnorm.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class LrCurve:
    """The loss of each step and the rate with which that step was then taken.

    Attributes:
        lrs: the rates.
        losses: the losses, each before its step.
        blew_up: whether the loss ended the sweep.
    """

    lrs: list[float]
    losses: list[float]
    blew_up: bool

    @property
    def lowest(self) -> float:
        """The rate at the lowest loss: already near too large; a tenth to a third of it is a usual choice."""
        finite = [loss if math.isfinite(loss) else math.inf for loss in self.losses]
        return self.lrs[finite.index(min(finite))]

    def plot(self) -> Figure:
        """Loss over rate, on a logarithmic axis."""
        figure, (axes,) = new_figure("Learning-rate finder", 1, 1, size=(7, 4.5))
        axes.plot(self.lrs, self.losses, color="#c2410c")
        axes.axvline(self.lowest, color="black", linestyle=":", label=f"lowest loss, at {self.lowest:.2g}")
        axes.set(xlabel="learning rate", ylabel="training loss", xscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
        return figure


def lr_find(
    model: nn.Module,
    opt_factory: Callable[..., torch.optim.Optimizer],
    batches: Iterable[Batch],
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    start: float = 1e-5,
    end: float = 10.0,
    steps: int = 100,
    blow_up: float = 3.0,
) -> LrCurve:
    """Trains a copy of the model while the rate grows by a constant factor from `start` to `end`.

    Stops after `steps` steps, at the first loss that is not finite or above `blow_up` times the lowest, or when the
    batches end (what can be iterated again is begun anew). The model, its gradients and the state of random number
    generators are left as they were; buffers of the copy move, the model's do not.

    Args:
        model: any module; it is copied.
        opt_factory: makes the optimizer: `opt_factory(parameters, lr)`, such as `fastnorm.optim.SGD.lesson`.
        batches: (x, y) pairs.
        loss: what is minimised, of model(x) and y.
        start: the first rate.
        end: the last rate.
        steps: the most steps.
        blow_up: how many times the lowest loss is the end.

    Returns:
        The curve, with `plot()`.

    Raises:
        ValueError: for a sweep that does not grow, fewer than 2 steps, a blow_up that is not above 1, or no batch.

    Source: Smith 2015, arXiv:1506.01186; fast.ai's LRFinderCB.
    """
    if not 0 < start < end or steps < 2 or not blow_up > 1:
        raise ValueError(
            f"the sweep needs 0 < start < end, at least 2 steps and blow_up > 1, got start={start}, end={end}, "
            f"steps={steps}, blow_up={blow_up}"
        )
    model = copy.deepcopy(model)
    model.zero_grad()
    optimizer = opt_factory(model.parameters(), start)
    factor = (end / start) ** (1 / (steps - 1))
    devices = {p.get_device() for p in model.parameters() if p.is_cuda}
    lrs: list[float] = []
    losses: list[float] = []
    with torch.random.fork_rng(sorted(devices)), torch.enable_grad():
        for x, y in _repeated(batches, steps):
            lr = start * factor ** len(lrs)
            for group in optimizer.param_groups:
                group["lr"] = lr
            value = loss(model(x), y)
            lrs.append(lr)
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]) or losses[-1] > blow_up * min(losses):
                return LrCurve(lrs, losses, True)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    if not losses:
        raise ValueError("batches are empty")
    return LrCurve(lrs, losses, False)


def _repeated(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """`count` batches, the iterable begun anew as often as it gives any."""
    given = 0
    while given < count:
        before = given
        for batch in batches:
            if given == count:
                return
            given += 1
            yield batch
        if given == before:
            return
