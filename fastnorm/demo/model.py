"""The lessons' small convnet, built twice: from torch.nn alone, and with fastnorm's fused layer."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnorm
from fastnorm.demo.data import CLASSES

FILTERS = (8, 16, 32, 64)
LEAK, SUB = 0.1, 0.4


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


def norm_act(nf: int, *, fused: bool) -> OrderedDict[str, nn.Module]:
    """Batch norm and activation over nf channels; both forms have the same state_dict keys."""
    if fused:
        return OrderedDict(norm=fastnorm.BatchNorm2d(nf, act=fastnorm.GeneralRelu(LEAK, SUB)))
    return OrderedDict(norm=nn.BatchNorm2d(nf), act=ComposedGeneralRelu(LEAK, SUB))


def conv(ni: int, nf: int, ks: int, *, bias: bool) -> nn.Conv2d:
    """A convolution that halves its input, with Kaiming normal weights for the activation's leak."""
    layer = nn.Conv2d(ni, nf, ks, stride=2, padding=ks // 2, bias=bias)
    nn.init.kaiming_normal_(layer.weight, a=LEAK)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def build(*, fused: bool, ks: int, seed: int) -> nn.Sequential:
    """[N, 1, H, W] -> logits [N, 10]; ks is the first kernel's size. The weights depend on seed only."""
    torch.manual_seed(seed)
    net = nn.Sequential()
    for i, (ni, nf) in enumerate(zip((1, *FILTERS[:-1]), FILTERS, strict=True)):
        first = conv(ni, nf, ks if i == 0 else 3, bias=False)
        net.add_module(f"block{i}", nn.Sequential(OrderedDict(conv=first, **norm_act(nf, fused=fused))))
    net.add_module("head", conv(FILTERS[-1], CLASSES, 3, bias=True))
    net.add_module("flatten", nn.Flatten())
    return net


def build_pair(*, ks: int, seed: int, device: torch.device) -> dict[str, nn.Sequential]:
    """The torch.nn net and the fastnorm net, the second loaded with the first's state_dict, key for key."""
    ours, theirs = build(fused=True, ks=ks, seed=seed), build(fused=False, ks=ks, seed=seed)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return {"torch.nn": theirs.to(device), "fastnorm": ours.to(device)}
