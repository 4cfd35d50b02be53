"""What an entry of the zoo is: a model that was written elsewhere, with random weights, its batch and its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10
WORDS = 64  # of a language model's vocabulary
Size = Literal["small", "bench"]
Batch = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class Scale:
    """How large: of the batch, and of those models whose size is a matter of configuration."""

    batch: int
    length: int  # an image's side, or a sequence's length
    width: int = 0  # of a transformer that is configured
    layers: int = 0


@dataclass(frozen=True)
class ZooModel:
    """One model: `make(scale)` gives it, `draw(scale)` its batch.

    `small` is for tests (a step takes about a second on a slow core), `bench` is of a realistic size.
    """

    name: str
    package: str
    make: Callable[[Scale], nn.Module]
    draw: Callable[[Scale], Batch]
    small: Scale
    bench: Scale
    images: bool = True  # the batch is [N, 3, H, W]: channels_last means something
    smooth: bool = True  # no activation has a corner

    def scale(self, size: Size) -> Scale:
        return self.small if size == "small" else self.bench

    def model(self, size: Size = "small", *, seed: int = 0) -> nn.Module:
        """The model in training mode, its weights drawn from the seed; the global generator is left alone.

        Raises: ImportError where its package is missing.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make(self.scale(size)).train()
            wake_norms(model)
        return model

    def batch(self, size: Size = "small", *, seed: int = 0) -> Batch:
        """What `call` gives to the model: a tensor, or a dict of keyword arguments."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.draw(self.scale(size))


def wake_norms(model: nn.Module) -> None:
    """Draws the parameters of norms: as they start, at 1 and 0 or all at 0, what is wrong with them does not show."""
    for module in model.modules():
        if "norm" in type(module).__name__.lower():
            for name, p in module.named_parameters(recurse=False):
                if name == "weight":
                    nn.init.uniform_(p, 0.5, 1.5)
                elif name == "bias":
                    nn.init.uniform_(p, -0.5, 0.5)


def call(model: nn.Module, batch: Batch) -> Any:
    """The model's output for a batch: a tensor, or an object with `logits`."""
    return model(**batch) if isinstance(batch, dict) else model(batch)


def logits_of(output: Any) -> Tensor:
    """[*, classes], of whatever a model of the zoo returns."""
    logits = output if isinstance(output, Tensor) else output.logits
    assert isinstance(logits, Tensor)
    return logits


def loss_of(output: Any) -> Tensor:
    """Cross entropy against fixed classes, one after the other: a scalar that every logit moves."""
    logits = logits_of(output).flatten(0, -2)  # [rows, classes]
    classes = torch.arange(logits.shape[0], device=logits.device) % logits.shape[1]
    return F.cross_entropy(logits, classes)


def images(scale: Scale) -> Tensor:
    return torch.randn(scale.batch, 3, scale.length, scale.length)


def pixels(scale: Scale) -> dict[str, Tensor]:
    return {"pixel_values": images(scale)}


def words(scale: Scale) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(WORDS, (scale.batch, scale.length))}
