"""How many kernels a step launches: one for all parameters of one combination of dtypes, however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

import fastnorm
from benchmarks.launch_count import launched_kernels
from fastnorm import optim
from tests.conformance.backends import DEVICE, LAUNCHED, on_launched

pytestmark = on_launched

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "rmsprop": ("RMSprop", {"lr": 0.1, "momentum": 0.9, "centered": True}),
    "adam": ("Adam", {"lr": 0.1, "amsgrad": True}),
    "adamw": ("AdamW", {"lr": 0.1}),
}
STEP = "optim_step_kernel"  # Triton's; CUDA C++'s has its types behind it
COUNTED_ON_DEVICE = 64  # kernels of PyTorch's that count steps and compute numbers of 1000 parameters, at most


@pytest.fixture(autouse=True, params=LAUNCHED, ids=str)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with fastnorm.use_backend(request.param.namespace):
        yield


def kernels_of(optimizer: Any) -> list[str]:
    """On a GPU every kernel of a step, PyTorch's too; under the interpreter those of Triton, which are not made."""
    if DEVICE == "cuda":
        return launched_kernels(optimizer.step)
    from triton.runtime.interpreter import InterpretedFunction

    launched: list[str] = []

    def record(self: Any, *args: Any, **kwargs: Any) -> None:
        launched.append(self.fn.__name__)

    with mock.patch.object(InterpretedFunction, "run", record):
        optimizer.step()
    return launched


def assert_steps(found: list[str], count: int) -> None:
    assert len(found) == count and all(STEP in kernel for kernel in found), found


def make(name: str, count: int, dtypes: tuple[torch.dtype, ...] = (torch.float32,), **more: Any) -> Any:
    """Two groups of `count` parameters of 64 elements in all, after three steps."""
    kind, options = OPTIMIZERS[name]
    params = [
        torch.nn.Parameter(torch.linspace(-1, 1, 64, device=DEVICE).to(dtypes[i % len(dtypes)])) for i in range(count)
    ]
    for p in params:
        p.grad = torch.ones_like(p)
    groups = [{"params": params[: count // 2]}, {"params": params[count // 2 :], "lr": 0.2}]
    optimizer = getattr(optim, kind)(groups, **options, **more)
    kernels_of(optimizer)
    kernels_of(optimizer)
    return optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_thousand_tensors_take_one_launch(name: str) -> None:
    optimizer = make(name, 1000)
    for lr in (0.1, 0.3):  # as a scheduler would
        optimizer.param_groups[0]["lr"] = lr
        assert_steps(kernels_of(optimizer), 1)


def test_gradients_elsewhere_take_one_launch_too() -> None:
    optimizer = make("adam", 10)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = p.grad.clone()
    assert_steps(kernels_of(optimizer), 1)


def test_each_combination_of_dtypes_takes_its_own() -> None:
    optimizer = make("adam", 10, (torch.float32, torch.bfloat16))
    assert_steps(kernels_of(optimizer), 2)


def test_counting_on_the_device_does_not_grow_with_the_parameters() -> None:
    """With capturable=True the numbers are computed by a few launches more, and not by some for each parameter."""
    optimizer = make("adam", 1000, capturable=DEVICE == "cuda")
    found = kernels_of(optimizer)
    assert sum(STEP in kernel for kernel in found) == 1 and len(found) <= COUNTED_ON_DEVICE
