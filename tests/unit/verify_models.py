"""Models for the tests of verify: small, with norms, dropout, and outputs of every kind of nesting; and its call."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastnorm
from fastnorm.verify import Verification


def convnet(*, dropout: float = 0.0, activation: nn.Module | None = None) -> nn.Sequential:
    """conv - batch norm - ReLU, twice, with a bias in front of the second norm, whose gradient is zero."""
    acts = [copy.deepcopy(activation) or nn.ReLU() for _ in range(2)]
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), acts[0], nn.Dropout(dropout),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), acts[1], nn.Flatten(), nn.Linear(288, 5),
    )  # fmt: skip


def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def verified(model: nn.Module, batch: Any, **options: Any) -> Verification:
    """Numbers alone, without times."""
    return fastnorm.verify(model, batch, steps=0, **options)


@dataclass
class Pair:
    left: Tensor
    right: Tensor


class Nested(nn.Module):
    """Takes two tensors and a number; gives a dict of a tensor, a tuple, a dataclass and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.linear = nn.Linear(12, 12)

    def forward(self, x: Tensor, y: Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        z = self.norm(x + y)
        return {
            "z": z, "more": (scale * z, [self.linear(z)]), "pair": Pair(z.exp(), z.detach()),
            "best": z.argmax(-1), "text": "none",
        }  # fmt: skip


class OnlySingle(nn.Module):
    """Mixes its parameters with fp32 numbers of its own: a float64 copy raises."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.linear = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.norm(x).float())
        return y


class Drawing(nn.Module):
    """Adds normal numbers, of which torch draws others in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x + torch.randn_like(x))
        return y


class ThroughSingle(nn.Module):
    """Rounds to fp32 on its way, also in a float64 copy, as models do that always normalise in fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.float().to(x.dtype))
        return y
