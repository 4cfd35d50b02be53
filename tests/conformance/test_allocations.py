"""No hidden copies: an op allocates its results and numbers per set, whatever the memory format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fastnorm import GeneralRelu, LessonLayerNorm
from fastnorm.functional import general_relu

from .backends import REQUIRED, Backend, random
from .functions import LEAKY, Option

SHAPE = (8, 16, 20, 20)
QUARTER = 8 * 16 * 20 * 20  # bytes: a quarter of x
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
NORMS = {
    "batch": Option(),
    "evaluation": Option(training=False),
    "layer": Option("layer", 3),
    "rms": Option("rms", 3, bias=False),
    "group": Option("group", 4),
    "instance": Option("instance"),
    "position": Option("position"),
}
on_cpu = pytest.mark.parametrize("backend", [b for b in REQUIRED if b.name == "cpu"], ids=str)


def large_allocations(call: Callable[[], Any]) -> tuple[int, Any]:
    """How many allocations of a quarter of x or more a call makes, and what it returns."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    events = profiler.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return sum(size >= QUARTER for size in sizes), result


@on_cpu
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("norm", NORMS)
def test_norms(norm: str, form: str, backend: Backend) -> None:
    """y forward; dx and dresidual backward. With an activation and a residual, of the same format as x."""
    x, residual, dy = (random(*SHAPE, seed=s).contiguous(memory_format=FORMATS[form]) for s in range(3))
    option = replace(NORMS[norm], act=LEAKY)
    weight = random(*option.parameter_shape(SHAPE), seed=3).requires_grad_()
    buffers = (torch.zeros(16), torch.ones(16)) if norm in ("batch", "evaluation") else (None, None)
    leaves = (x.requires_grad_(), residual.requires_grad_(), weight)

    def forward() -> Tensor:
        return option.call(x, weight, None, residual, backend.namespace, buffers)

    count, y = large_allocations(forward)
    assert count == 1
    count, grads = large_allocations(lambda: torch.autograd.grad(y, leaves, dy))
    assert count == 2
    assert all(t.is_contiguous(memory_format=FORMATS[form]) for t in (y, *grads[:2]))


@on_cpu
@pytest.mark.parametrize("form", FORMATS)
def test_others(form: str, backend: Backend) -> None:
    x, dy = (random(*SHAPE, seed=s).contiguous(memory_format=FORMATS[form]).requires_grad_() for s in range(2))
    layer = LessonLayerNorm(16, act=GeneralRelu(0.1, 0.4))
    for call in (lambda: general_relu(x, 0.1, 0.4, backend=backend.namespace), lambda: layer(x)):
        count, y = large_allocations(call)
        assert count == 1
        count, _ = large_allocations(lambda y=y: torch.autograd.grad(y, x, dy.detach()))
        assert count == 1


@on_cpu
def test_a_copy_is_seen(backend: Backend) -> None:
    """x that lies as no kernel reads it is copied, and dy that does not lie as x does."""
    x = random(*SHAPE[:-1], 2 * SHAPE[-1])[..., ::2].requires_grad_()
    count, y = large_allocations(lambda: general_relu(x, 0.1, backend=backend.namespace))
    assert count == 2
    dense = random(*SHAPE).requires_grad_()
    y = general_relu(dense, 0.1, backend=backend.namespace)
    count, _ = large_allocations(lambda: torch.autograd.grad(y, dense, torch.ones(()).expand(SHAPE)))
    assert count == 2
