"""Blocks whose forwards call a norm and an activation, in the ways in which people write that."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnorm

SHAPE = (3, 4, 5, 5)


class Block(nn.Module):
    """Two norms around a convolution; a subclass says how."""

    scale: float = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Identity()
        self.downsample: nn.Module | None = None


class Basic(Block):
    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv(x)))
        out = self.bn2(self.conv(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Downsampling(Basic):
    def __init__(self) -> None:
        super().__init__()
        self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))


class Swapped(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.drop(self.bn1(self.conv(x))), inplace=True) * self.scale


class Torchy(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(torch.add(self.bn1(self.conv(x)), x))
        return F.leaky_relu(self.bn2(y), 0.3)


class Methods(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv(x)).relu()
        return operator.iadd(self.bn2(y), x).relu_()


class Sixes(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.hardtanh(self.bn2(F.relu6(self.bn1(x))), 0, 6)


class TwoNorms(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv(x)) + self.bn2(x))


class General(Block):
    def forward(self, x: Tensor) -> Tensor:
        return fastnorm.functional.general_relu(self.bn1(x), 0.1, sub=0.4, maxv=1.0)


class Modes(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        return y * 2 if self.training else F.dropout(y, 0.5, self.training)


class Defaults(Block):
    def forward(self, x: Tensor, factor: float = 2.0, mask: Tensor | None = None) -> Tensor:
        y = self.relu(self.bn1(x)) * factor
        return y if mask is None else y * mask


class Lists(Block):
    def gather(self, inputs: list[Tensor]) -> Tensor:
        return self.relu(self.bn1(torch.cat(inputs, 0)))

    def forward(self, inputs: Tensor | list[Tensor]) -> Tensor:
        return self.gather([inputs] if isinstance(inputs, Tensor) else inputs)


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = y
        y += 1
        y *= x
        y[0] = 1.5
        return self.relu(self.bn1(self.conv(x))) + z


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(2, 4), nn.LayerNorm(5), nn.InstanceNorm2d(4)])
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("shift", torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = F.relu(norm(x)) * self.gain + self.shift
        return x
