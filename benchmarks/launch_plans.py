"""What the real Triton launchers would launch for the GPU's cases, on tensors without memory."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from benchmarks.cases import all_cases
from fastnorm.ops import triton
from fastnorm.testing import triton_aot

ARCH = 90  # Hopper: what the GPU targets are for


def plan_lines() -> list[str]:
    """One line a distinct set of tensors: kernel, grid and warps of every launch of forward and backward.

    Raises RuntimeError where the kernels cannot be imported. Must not run under TRITON_INTERPRET.
    """
    reason = triton.missing()
    if reason is not None:
        raise RuntimeError(reason)
    cases = {
        triton_aot.Case(
            case.shape,
            case.dtype,
            case.layout == "channels_last",
            case.spec.act,
            case.spec.residual,
            case.spec.training,
        ): None
        for case in all_cases("cuda")
    }
    return [f"{describe(case)}: {', '.join(launches(case))}" for case in cases]


def describe(case: triton_aot.Case) -> str:
    parts = (
        "x".join(map(str, case.shape)),
        case.dtype,
        "channels_last" if case.channels_last else "contiguous",
    )
    options = [name for name in ("act", "residual") if getattr(case, name)]
    return " ".join([*parts, *options, "training" if case.training else "eval"])


def launches(case: triton_aot.Case) -> list[str]:
    with recording() as recorded:
        triton_aot.launch(case)
    return recorded


@contextmanager
def recording() -> Iterator[list[str]]:
    """While this is open, every kernel launch is written down instead of made."""
    from triton.runtime.jit import JITFunction

    numbers = importlib.import_module("fastnorm.kernels.launch")
    recorded: list[str] = []

    def record(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        recorded.append(f"{self.fn.__name__}{list(grid)} {options['num_warps']} warps")

    sms = triton_aot.SMS[ARCH]
    with mock.patch.object(JITFunction, "run", record), mock.patch.object(numbers, "sm_count", lambda x: sms):
        yield recorded
