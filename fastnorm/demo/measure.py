"""What the fused layer changes, measured on the trained nets: bytes kept for backward, and its own time."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastnorm.demo.train import synchronise
from fastnorm.memory import saved_bytes

MIN_ROUNDS = 20
BUDGET_S = 1.0


def saved_by_training(net: nn.Module, x: Tensor) -> int:
    """Bytes that one training forward of net keeps for its backward. The net is left as it was."""
    net = copy.deepcopy(net).train()
    return saved_bytes(net, lambda: net(x))


def norm_act_seconds(nets: Mapping[str, nn.Sequential], x: Tensor) -> dict[str, float]:
    """Median seconds of all norm + activation layers of each net, forward and backward, on its own sizes.

    The nets take turns. Whole steps are mostly convolutions; this shows the part that differs.
    """
    inputs = _norm_inputs(next(iter(nets.values())), x)
    grads = [torch.randn_like(value) for value in inputs]
    layers = {name: [copy.deepcopy(block[1:]).train() for block in _blocks(net)] for name, net in nets.items()}
    times: dict[str, list[float]] = {name: [] for name in nets}
    end = time.perf_counter() + BUDGET_S
    while min(map(len, times.values())) < MIN_ROUNDS or time.perf_counter() < end:
        for name, group in layers.items():
            synchronise(x.device)
            start = time.perf_counter()
            for layer, value, grad in zip(group, inputs, grads, strict=True):
                torch.autograd.grad(layer(value), [value, *layer.parameters()], grad)
            synchronise(x.device)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _blocks(net: nn.Sequential) -> list[nn.Sequential]:
    return [block for block in net if isinstance(block, nn.Sequential)]


@torch.no_grad()
def _norm_inputs(net: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What arrives at each norm layer for x, as leaves that want a gradient."""
    inputs = []
    for block in _blocks(copy.deepcopy(net).train()):
        inputs.append(block[0](x))
        x = block(x)
    return [value.requires_grad_() for value in inputs]
