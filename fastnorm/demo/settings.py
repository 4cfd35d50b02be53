"""What one demo run is asked to do, with the defaults of each data set."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType


class DemoError(Exception):
    """The demo cannot go on; the message is one plain sentence for the user."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a data set is trained, with epochs and learning rates per phase, and the accuracy to reach."""

    epochs: tuple[int, ...]
    lrs: tuple[float, ...]
    batch_size: int
    momentum: float
    first_kernel: int
    target: float


# The lessons' own learning rates for their own optimizers; sgd takes the data set's.
OPTS: dict[str, tuple[float, ...] | None] = {
    "sgd": None,
    "momentum": (0.2, 0.05),
    "rmsprop": (3e-3, 1e-3),
    "adam": (6e-3, 1e-3),
}

RECIPES = {
    # Seeds 0..9 end between 0.983 and 0.994 with these; ten epochs of both nets take a few seconds.
    "digits": Recipe(epochs=(6, 4), lrs=(0.1, 0.02), batch_size=64, momentum=0.9, first_kernel=3, target=0.97),
    # Drawn here, for machines where nothing can be installed or fetched; the digits' recipe.
    "shapes": Recipe(epochs=(6, 4), lrs=(0.1, 0.02), batch_size=64, momentum=0.9, first_kernel=3, target=0.97),
    # The lessons' own: plain SGD, batch 256, three epochs at lr 1 and two at a lower one.
    "fashion-mnist": Recipe(epochs=(3, 2), lrs=(1.0, 0.2), batch_size=256, momentum=0.0, first_kernel=5, target=0.90),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run: the recipe (``is_default``: it is the data set's own, with batch norm) and everything around it."""

    data: str
    norm: str
    opt: str
    recipe: Recipe
    is_default: bool
    root: Path
    device: str
    backend: str | None
    seed: int
    threads: int | None
    out: Path
    plot: bool = True


def parse_phases(text: str) -> tuple[float, ...]:
    """Parse ``"3+2"`` into ``(3.0, 2.0)``: one positive, finite number per training phase.

    Raises ValueError naming the text when a part is not such a number.
    """
    try:
        values = tuple(float(part) for part in text.split("+"))
    except ValueError:
        raise ValueError(f"{text!r} is not a number or numbers joined by '+', such as 3+2") from None
    if not all(0 < value < float("inf") for value in values):
        raise ValueError(f"{text!r} must hold positive numbers only")
    return values


def make_recipe(data: str, *, epochs: str | None, lr: str | None, batch_size: int | None, opt: str = "sgd") -> Recipe:
    """The data set's recipe with the user's changes; with fewer rates than phases, the last repeats.

    Raises DemoError when a value makes no sense.
    """
    recipe = RECIPES[data]
    rates = OPTS[opt]
    if rates is not None:
        recipe = dataclasses.replace(recipe, lrs=rates)
    try:
        if epochs is not None:
            phases = parse_phases(epochs)
            if any(phase != int(phase) for phase in phases):
                raise ValueError(f"{epochs!r} must hold whole numbers of epochs")
            recipe = dataclasses.replace(recipe, epochs=tuple(int(phase) for phase in phases))
        if lr is not None:
            recipe = dataclasses.replace(recipe, lrs=parse_phases(lr))
    except ValueError as error:
        raise DemoError(f"bad --epochs or --lr: {error}") from None
    if batch_size is not None:
        if batch_size < 2:
            raise DemoError(f"--batch-size must be at least 2 for batch statistics, got {batch_size}")
        recipe = dataclasses.replace(recipe, batch_size=batch_size)
    return recipe


def require(module: str) -> ModuleType:
    """Import a package that only the demo needs; DemoError with the install command if missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DemoError(
            f"the demo cannot import {module.split('.')[0]} ({error}); "
            "install what it needs with: pip install scikit-learn matplotlib"
        ) from error
