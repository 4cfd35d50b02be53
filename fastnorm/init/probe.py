"""What lsuv_ needs of a model: which layers run in which order, what stands behind each, and what they give."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastnorm.activation import Activation
from fastnorm.functional import activation_stats

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NO_ACTIVATIONS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclasses.dataclass(frozen=True)
class Reading:
    """Mean, std, smallest and largest value of one output."""

    mean: float
    std: float
    low: float
    high: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.mean) and math.isfinite(self.std)

    def near(self, other: Reading, width: float) -> bool:
        return abs(self.mean - other.mean) <= width and abs(self.std - other.std) <= width

    def distance(self, *, has_bias: bool) -> float:
        """How far from mean 0 and std 1; the mean counts only where a bias can move it."""
        return max(abs(self.std - 1), abs(self.mean) if has_bias else 0.0)


def layers_of(
    model: nn.Module, modules: Iterable[nn.Module] | type[nn.Module] | tuple[type[nn.Module], ...] | None
) -> list[nn.Module]:
    """The layers that are asked for, each once. ValueError where there are none, or one has no weight."""
    kinds = LAYERS if modules is None else modules
    if isinstance(kinds, type) or (isinstance(kinds, tuple) and all(isinstance(kind, type) for kind in kinds)):
        found = [module for module in model.modules() if isinstance(module, kinds)]
    else:
        found = list(dict.fromkeys(kinds))  # type: ignore[arg-type]
    if not found:
        raise ValueError("the model has no layer to initialise (modules: None looks for linear and convolutional ones)")
    strange = [module for module in found if not isinstance(getattr(module, "weight", None), Tensor)]
    if strange:
        raise ValueError(f"modules must have a weight; {type(strange[0]).__name__} has none")
    return found


@contextlib.contextmanager
def unchanged_state(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Puts buffers and random number generators back at the end, and whenever the function that it gives is called."""
    owners = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    values = {id(buffer): buffer.clone() for _, _, buffer in owners if buffer is not None}
    devices = {t.get_device() for t in (*model.parameters(), *model.buffers()) if t.is_cuda}
    cpu = torch.get_rng_state()
    cuda = {device: torch.cuda.get_rng_state(device) for device in devices}

    def rewind() -> None:
        with torch.no_grad():
            for module, name, buffer in owners:
                if buffer is not None and not torch.equal(buffer, values[id(buffer)]):
                    buffer.copy_(values[id(buffer)])
                module._buffers[name] = buffer
        torch.set_rng_state(cpu)
        for device, state in cuda.items():
            torch.cuda.set_rng_state(state, device)

    try:
        yield rewind
    finally:
        rewind()


class Probe:
    """Runs a model on one batch, from the same state each time, and reads what modules give at their first call."""

    def __init__(
        self, model: nn.Module, batch: Tensor | Sequence[Any] | Mapping[str, Any], rewind: Callable[[], None]
    ) -> None:
        self.model, self.batch, self.rewind = model, batch, rewind

    def _run(self) -> None:
        self.rewind()
        if isinstance(self.batch, Tensor):
            self.model(self.batch)
        elif isinstance(self.batch, Mapping):
            self.model(**self.batch)
        else:
            self.model(*self.batch)

    def order(self, layers: Sequence[nn.Module], *, behind: bool) -> tuple[list[nn.Module], dict[nn.Module, nn.Module]]:
        """The layers in the order in which they first run, and where each is measured.

        behind: at the activation that follows, which a layer may lack: a leaf without parameters or buffers that keeps
        the shape, or a norm with an activation of its own, before the next layer runs.
        """
        trace: list[tuple[nn.Module, bool]] = []  # every leaf that ran, and whether it may be an activation

        def note(module: nn.Module, given: Any, out: Any) -> None:
            trace.append((module, may_act(module, given, out)))

        wanted = set(layers)
        leaves = [m for m in self.model.modules() if m in wanted or next(m.children(), None) is None]
        handles = [module.register_forward_hook(note) for module in leaves]
        try:
            self._run()
        finally:
            for handle in handles:
                handle.remove()
        order: list[nn.Module] = []
        points: dict[nn.Module, nn.Module] = {}
        for at, (module, _) in enumerate(trace):
            if module not in wanted or module in order:
                continue
            order.append(module)
            if not behind:
                points[module] = module
                continue
            for follower, acts in trace[at + 1 :]:
                if follower in wanted:
                    break
                if acts:
                    points[module] = follower
                    break
        return order, points

    def readings(self, points: Iterable[nn.Module]) -> dict[nn.Module, Reading]:
        """What each module gives at its first call; nothing of one that gives no floating-point tensor."""
        found: dict[nn.Module, Reading | None] = {}

        def read(module: nn.Module, given: Any, out: Any) -> None:
            if module not in found:
                found[module] = reading_of(out)

        handles = [module.register_forward_hook(read) for module in set(points)]
        try:
            self._run()
        finally:
            for handle in handles:
                handle.remove()
        return {module: reading for module, reading in found.items() if reading is not None}

    def reading(self, point: nn.Module) -> Reading | None:
        return self.readings([point]).get(point)


def may_act(module: nn.Module, given: tuple[Any, ...], out: Any) -> bool:
    """Whether a module that just ran can be the activation of the layer before it."""
    own = getattr(module, "activation", None)
    fused = isinstance(own, Activation) and own.active
    if isinstance(module, NO_ACTIVATIONS) or not (given and isinstance(given[0], Tensor) and isinstance(out, Tensor)):
        return False
    bare = next(module.parameters(), None) is None and next(module.buffers(), None) is None
    return given[0].shape == out.shape and (bare or fused)


def reading_of(out: Any) -> Reading | None:
    if not isinstance(out, Tensor) or not out.is_floating_point():
        return None
    if out.numel() == 0:
        return Reading(math.nan, math.nan, math.nan, math.nan)
    mean, std, _ = activation_stats(out)
    return Reading(float(mean), float(std), float(out.min()), float(out.max()))
