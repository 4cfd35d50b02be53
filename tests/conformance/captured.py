"""What may be captured in a CUDA graph, as data: steps over buffers that stay where they are.

A new op joins by a row of STEPS: a function from a device and a backend to a Step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastnorm
from fastnorm.testing import ACTS

SHAPES = {"small": (5, 7, 3, 11), "large": (5, 33, 67, 61)}  # a channel that one program holds, and longer ones
ROWS = {"small": (67, 129), "large": (3, 20_011)}


@dataclass(frozen=True)
class Step:
    """buffers: what `load` overwrites. run() reads them and returns what it made; state: what it moves in place."""

    buffers: tuple[Tensor, ...]
    run: Callable[[], tuple[Tensor, ...]]
    state: tuple[Tensor, ...] = ()

    def load(self, seed: int) -> None:
        """New numbers in the same places."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for buffer in self.buffers:
                buffer.copy_(torch.randn(buffer.shape, generator=generator))


Make = Callable[[torch.device], Step]


def general_relu() -> nn.Module:
    return fastnorm.GeneralRelu(*ACTS["max_leak"].numbers[:3])


def norm_step(make: Callable[[], nn.Module], shape: tuple[int, ...], device: torch.device, layout: str) -> Step:
    """Forward and backward through a module, into gradients of x and of its parameters."""
    module = make().to(device)
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x, dy = (torch.empty(shape, device=device).to(memory_format=form) for _ in range(2))
    x.requires_grad_()
    parameters = tuple(module.parameters())

    def run() -> tuple[Tensor, ...]:
        y = module(x)
        return y.detach(), *torch.autograd.grad(y, (x, *parameters), dy)

    return Step((x, dy, *parameters), run, tuple(module.buffers()))


def optim_step(name: str, kwargs: dict[str, Any], device: torch.device) -> Step:
    """A whole step over a few parameters; each gradient is a buffer."""
    params = [nn.Parameter(torch.zeros(shape, device=device)) for shape in ((5, 7), (1025,), (3,))]
    grads = tuple(torch.zeros_like(p) for p in params)
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad
    optimizer = getattr(fastnorm.optim, name)(params, **kwargs)
    if device.type == "cuda" and "capturable" in optimizer.defaults:
        for group in optimizer.param_groups:
            group["capturable"] = True
    optimizer.step()  # makes the state
    state = (t for own in optimizer.state.values() for t in own.values() if isinstance(t, Tensor))

    def run() -> tuple[Tensor, ...]:
        optimizer.step()
        return tuple(p.detach().clone() for p in params)

    return Step(grads, run, (*params, *state))


def optim_row(name: str, kwargs: dict[str, Any]) -> Make:
    return lambda device: optim_step(name, kwargs, device)


def modules(
    shape: tuple[int, ...], rows: tuple[int, ...]
) -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    channels = shape[1]
    return {
        "general_relu": (general_relu, shape),
        "batch_norm": (lambda: fastnorm.BatchNorm2d(channels, act=general_relu()), shape),
        "batch_norm_cumulative": (lambda: fastnorm.BatchNorm2d(channels, momentum=None), shape),
        "batch_norm_eval": (lambda: fastnorm.BatchNorm2d(channels).eval(), shape),
        "group_norm": (lambda: fastnorm.GroupNorm(channels, channels, act=general_relu()), shape),
        "instance_norm": (lambda: fastnorm.InstanceNorm2d(channels, affine=True), shape),
        "layer_norm_2d": (lambda: fastnorm.LayerNorm2d(channels), shape),
        "layer_norm": (lambda: fastnorm.LayerNorm(rows[1:], act=general_relu()), rows),
        "rms_norm": (lambda: fastnorm.RMSNorm(rows[1:]), rows),
    }


def stats_row(shape: tuple[int, ...]) -> Make:
    def make(device: torch.device) -> Step:
        x = torch.empty(shape, device=device)
        return Step((x,), lambda: fastnorm.functional.activation_stats(x))

    return make


def norm_row(make: Callable[[], nn.Module], shape: tuple[int, ...], layout: str) -> Make:
    return lambda device: norm_step(make, shape, device, layout)


STEPS: dict[str, Make] = {
    f"{name}-{size}-{layout}": norm_row(make, shape, layout)
    for size in SHAPES
    for name, (make, shape) in modules(SHAPES[size], ROWS[size]).items()
    for layout in ("contiguous", "channels_last")
    if layout == "contiguous" or len(shape) == 4
}
STEPS |= {f"activation_stats-{size}": stats_row(shape) for size, shape in SHAPES.items()}
STEPS |= {
    "sgd_momentum": optim_row("SGD", {"lr": 0.1, "momentum": 0.9}),
    "rmsprop": optim_row("RMSprop", {"lr": 0.1, "momentum": 0.9, "centered": True}),
    "adam": optim_row("Adam", {"lr": 0.1, "max_norm": 1.0}),
    "adamw": optim_row("AdamW", {"lr": 0.1, "amsgrad": True}),
}
