"""Ten kinds of drawn shapes as images, made here: a data set that needs no package, no file and no download."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SIDE = 16
COUNT = 2000
NOISE = 0.25


def _between(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    return (x >= low) & (x <= high)


# From columns u and rows v relative to a centre (in pixels) and a half size r, whether a pixel is painted.
Shape = Callable[[Tensor, Tensor, Tensor], Tensor]
SHAPES: tuple[Shape, ...] = (
    lambda u, v, r: u**2 + v**2 <= r**2,  # disc
    lambda u, v, r: _between(u**2 + v**2, (r - 1.5) ** 2, r**2),  # ring
    lambda u, v, r: torch.maximum(u.abs(), v.abs()) <= 0.8 * r,  # square
    lambda u, v, r: _between(torch.maximum(u.abs(), v.abs()), 0.8 * r - 1.2, 0.8 * r),  # frame
    lambda u, v, r: (torch.minimum(u.abs(), v.abs()) <= 0.8) & (torch.maximum(u.abs(), v.abs()) <= r),  # plus
    lambda u, v, r: ((u.abs() - v.abs()).abs() <= 1) & (u.abs() <= 0.8 * r),  # diagonal cross
    lambda u, v, r: (v.abs() <= 1) & (u.abs() <= r),  # lying bar
    lambda u, v, r: (u.abs() <= 1) & (v.abs() <= r),  # standing bar
    lambda u, v, r: _between(v, -r, r) & (2 * u.abs() <= v + r),  # triangle
    lambda u, v, r: _between((u + v).abs(), 0, 1.4) & (u.abs() <= 0.8 * r),  # rising line
)


def draw(seed: int) -> tuple[Tensor, Tensor]:
    """Images [COUNT, 1, SIDE, SIDE] with noise, and labels [COUNT]: every kind at random places, in random sizes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(COUNT) % len(SHAPES)
    radius = 4.5 + 2 * torch.rand((COUNT, 1, 1), generator=generator)
    centre = SIDE / 2 - 0.5 + 3 * (torch.rand((COUNT, 2, 1, 1), generator=generator) - 0.5)
    rows, columns = torch.arange(SIDE)[:, None], torch.arange(SIDE)[None, :]
    u, v = columns - centre[:, 0], rows - centre[:, 1]  # [COUNT, SIDE, SIDE]
    painted = torch.stack([shape(u, v, radius) for shape in SHAPES])  # [kinds, COUNT, SIDE, SIDE]
    images = painted[labels, torch.arange(COUNT)].float()
    images += NOISE * torch.randn(images.shape, generator=generator)
    return images[:, None], labels
