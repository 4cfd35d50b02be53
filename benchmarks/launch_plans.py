"""What the real Triton launchers would launch for the GPU's cases, on tensors without memory."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from benchmarks.cases import Case, all_cases
from fastnorm.ops import triton
from fastnorm.testing import triton_aot
from fastnorm.testing.cases import RowCase

ARCH = 90  # Hopper: what the GPU targets are for


def plan_lines() -> list[str]:
    """One line a distinct set of tensors: kernel, grid and warps of every launch of forward and backward.

    Raises RuntimeError where the kernels cannot be imported. Must not run under TRITON_INTERPRET.
    """
    reason = triton.missing()
    if reason is not None:
        raise RuntimeError(reason)
    cases = dict.fromkeys(launched(case) for case in all_cases("cuda"))
    return [f"{describe(case)}: {', '.join(launches(case))}" for case in cases]


def launched(case: Case) -> triton_aot.Case:
    """The tensors and options that a case gives to the launchers."""
    spec, channels_last = case.spec, case.layout == "channels_last"
    options = (case.shape, case.dtype, channels_last, spec.act, spec.residual, spec.training)
    problem = case.problem
    if not isinstance(problem, RowCase):
        return triton_aot.Case(*options)
    groups = case.shape[1] if spec.kind == "instance" else problem.groups
    return triton_aot.RowCase(*options, problem.dims, groups, problem.rms)


def describe(case: triton_aot.Case) -> str:
    parts = [
        "x".join(map(str, case.shape)),
        case.dtype,
        "channels_last" if case.channels_last else "contiguous",
    ]
    if isinstance(case, triton_aot.RowCase):
        parts += [f"rows of {case.dims} dims"] if case.dims else [f"{case.groups or 'no'} groups"]
        parts += ["rms"] * case.rms
    parts += [name for name in ("act", "residual") if getattr(case, name)]
    return " ".join([*parts, "training" if case.training else "eval"])


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
