"""The norms as functions of their tensors alone, with the options that matter to a derivative: data for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastnorm.activation import Activation
from fastnorm.functional import batch_norm, group_norm, instance_norm, layer_norm, layer_norm_2d, rms_norm
from fastnorm.testing import ACTS

from .backends import Backend, random

Function = Callable[..., Tensor]
FULL, MAX_LEAK, LOW_MAX_LEAK = (Activation(True, *ACTS[name].numbers) for name in ("full", "max_leak", "low_max_leak"))
LEAKY = Activation(True, 0.1, 0.4)


@dataclass(frozen=True)
class Option:
    """A norm, and which tensors and activation it has. layer: over so many trailing dims; group: so many groups."""

    norm: str = "batch"
    size: int = 1
    act: Activation | None = None
    weight: bool = True
    bias: bool = True
    residual: bool = False
    training: bool = True
    unbiased: bool = False

    def parameter_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[-self.size :] if self.norm in ("layer", "rms") else (shape[1],)

    def call(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        backend: str,
        buffers: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> Tensor:
        """The norm, with an eps that finite differences can bear. The buffers are batch norm's."""
        more = {"eps": 1e-3, "act": self.act, "residual": residual, "backend": backend}
        if self.norm == "layer":
            return layer_norm(x, x.shape[-self.size :], weight, bias, **more)
        if self.norm == "rms":
            return rms_norm(x, x.shape[-self.size :], weight, **more)
        if self.norm == "group":
            return group_norm(x, self.size, weight, bias, unbiased=self.unbiased, **more)
        if self.norm == "instance":
            return instance_norm(x, weight=weight, bias=bias, **more)
        if self.norm == "position":
            return layer_norm_2d(x, weight, bias, **more)
        return batch_norm(x, *buffers, weight, bias, self.training, unbiased=self.unbiased, **more)


OPTIONS = {
    "bare": Option(),
    "leaky": Option(act=LEAKY),
    "full": Option(act=FULL),
    "max_leak": Option(act=MAX_LEAK),
    "low_max_leak": Option(act=LOW_MAX_LEAK),
    "residual": Option(residual=True),
    "residual_full": Option(act=FULL, residual=True),
    "unbiased": Option(unbiased=True),
    "evaluation": Option(training=False, act=FULL),
    "no_weight": Option(weight=False, act=FULL),
    "no_bias": Option(bias=False, act=FULL, residual=True),
    "layer": Option("layer", act=FULL, residual=True),
    "layer_2_dims": Option("layer", 2),
    "layer_every_dim": Option("layer", 3, bias=False, act=LEAKY),
    "layer_no_weight": Option("layer", 2, weight=False, act=MAX_LEAK),
    "rms": Option("rms", bias=False),
    "rms_2_dims": Option("rms", 2, bias=False, act=FULL, residual=True),
    "group": Option("group", 2, act=FULL, residual=True),
    "one_group": Option("group", 1),
    "one_group_unbiased": Option("group", 1, unbiased=True, act=LEAKY),
    "instance": Option("instance", act=FULL),
    "instance_no_weight": Option("instance", weight=False, residual=True),
    "position": Option("position", act=FULL, residual=True),
    "position_no_weight": Option("position", weight=False),
}


def function(name: str, backend: Backend, shape: tuple[int, ...] = (3, 2, 3)) -> tuple[Function, tuple[Tensor, ...]]:
    """A function of the tensors that the option has, and those tensors, in float64."""
    option = OPTIONS[name]
    present = (True, option.weight, option.bias, option.residual)
    parameters = option.parameter_shape(shape)
    shapes = (shape, parameters, parameters, shape)
    drawn = [random(*s, seed=seed, dtype=torch.float64) for seed, s in enumerate(shapes)]
    mean, var = (random(shape[1], seed=seed, dtype=torch.float64) for seed in (4, 5))
    buffers = (None, None) if option.training else (mean, var.abs() + 0.5)

    def call(*tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        x, weight, bias, residual = (next(rest) if there else None for there in present)
        return option.call(x, weight, bias, residual, backend.namespace, buffers)

    return call, tuple(t.requires_grad_() for t, there in zip(drawn, present, strict=True) if there)
