"""The lessons' small convnet, built twice: from torch.nn alone, and with fastnorm's fused layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnorm
from fastnorm.demo.data import CLASSES

FILTERS = (8, 16, 32, 64)
LEAK, SUB = 0.1, 0.4
GROUPS = 4


class ComposedGeneralRelu(nn.Module):
    """GeneralRelu as one writes it in plain PyTorch: leaky_relu, then subtract, then clamp from above.

    The later steps work in place on leaky_relu's own result, as the lessons do, to keep it fair.
    """

    def __init__(self, leak: float, sub: float | None = None, maxv: float | None = None) -> None:
        super().__init__()
        self.leak, self.sub, self.maxv = leak, sub, maxv

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(x, self.leak)
        if self.sub is not None:
            x -= self.sub
        return x if self.maxv is None else x.clamp_max_(self.maxv)


# From a library (torch.nn or fastnorm: the names are the same), channels and side of the image to the norm layer.
# Layer and RMS norm take a whole image of a sample together, all its channels, rows and columns.
NORMS: dict[str, Callable[..., nn.Module]] = {
    "batch": lambda library, nf, side, **act: library.BatchNorm2d(nf, **act),
    "layer": lambda library, nf, side, **act: library.LayerNorm((nf, side, side), **act),
    "group": lambda library, nf, side, **act: library.GroupNorm(GROUPS, nf, **act),
    "instance": lambda library, nf, side, **act: library.InstanceNorm2d(nf, affine=True, **act),
    "rms": lambda library, nf, side, **act: library.RMSNorm((nf, side, side), **act),
}


def norm_act(norm: str, nf: int, side: int, *, fused: bool) -> OrderedDict[str, nn.Module]:
    """Norm and activation over nf channels of side x side; both forms have the same state_dict keys.

    Instance norm has nothing to normalise where one pixel is left: there the activation stands alone.
    """
    if norm == "instance" and side == 1:
        return OrderedDict(act=fastnorm.GeneralRelu(LEAK, SUB) if fused else ComposedGeneralRelu(LEAK, SUB))
    if fused:
        return OrderedDict(norm=NORMS[norm](fastnorm, nf, side, act=fastnorm.GeneralRelu(LEAK, SUB)))
    return OrderedDict(norm=NORMS[norm](nn, nf, side), act=ComposedGeneralRelu(LEAK, SUB))


def norm_name(norm: str) -> str:
    """The class of the norm layers, as torch.nn and fastnorm both call it."""
    return type(NORMS[norm](nn, GROUPS, 1)).__name__


def conv(ni: int, nf: int, ks: int, *, bias: bool) -> nn.Conv2d:
    """A convolution that halves its input, with Kaiming normal weights for the activation's leak."""
    layer = nn.Conv2d(ni, nf, ks, stride=2, padding=ks // 2, bias=bias)
    nn.init.kaiming_normal_(layer.weight, a=LEAK)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def build(*, fused: bool, ks: int, seed: int, norm: str, side: int) -> nn.Sequential:
    """[N, 1, side, side] -> logits [N, 10]; ks is the first kernel's size. The weights depend on seed only.

    Before RMS norm, which neither takes the mean away nor adds a bias, the convolutions have one.
    """
    torch.manual_seed(seed)
    net = nn.Sequential()
    for i, (ni, nf) in enumerate(zip((1, *FILTERS[:-1]), FILTERS, strict=True)):
        first = conv(ni, nf, ks if i == 0 else 3, bias=norm == "rms")
        side = (side + 1) // 2
        net.add_module(f"block{i}", nn.Sequential(OrderedDict(conv=first, **norm_act(norm, nf, side, fused=fused))))
    net.add_module("head", conv(FILTERS[-1], CLASSES, 3, bias=True))
    net.add_module("flatten", nn.Flatten())
    return net


def build_pair(*, ks: int, seed: int, norm: str, side: int, device: torch.device) -> dict[str, nn.Sequential]:
    """The torch.nn net and the fastnorm net, the second loaded with the first's state_dict, key for key."""
    ours, theirs = (build(fused=fused, ks=ks, seed=seed, norm=norm, side=side) for fused in (True, False))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return {"torch.nn": theirs.to(device), "fastnorm": ours.to(device)}
