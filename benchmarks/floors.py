"""The floor: the least time in which this machine moves the tensors of a case once.

A forward reads x and writes y, a copy; a backward reads dy and x and writes dx, a triad a + b -> c; the
residual adds tensors to both. On a GPU the floor is a device copy of as many bytes. Elsewhere it is the best of
PyTorch's own loops and, where the compiled extension has them, of plain and of non-temporal stores: above the size of
the last cache the latter save reading what will be overwritten.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from benchmarks.cases import Case
from benchmarks.optim_cases import OptimCase
from fastnorm.timing import Run, rotate

Pass = Callable[..., object]


def make_floors(case: Case | OptimCase, *, sets: int = 1) -> dict[str, Run]:
    """`{"floor:NAME": run}`: each run moves the bytes that the case must, once, into memory it has.

    With several sets of buffers each run takes them in turn. The buffers are flat fp32 whatever the case's
    dtype: only their bytes matter.
    """
    if not case.traffic:
        return {}
    words = max(1, case.tensor_bytes // 4)
    # [reads..., write] of each pass of each set, every one a buffer of its own: random numbers, never zeros.
    buffers = [
        [[torch.rand(words, device=case.device) for _ in range(r + w)] for r, w in case.traffic] for _ in range(sets)
    ]
    floors: dict[str, Run] = {}
    for name, (copy, triad) in kernels(case.device).items():
        runs = [
            functools.partial(run_all, [functools.partial(copy if len(p) == 2 else triad, *p) for p in passes])
            for passes in buffers
        ]
        floors[f"floor:{name}"] = rotate(runs)
    return floors


def run_all(passes: Sequence[Run]) -> None:
    for one in passes:
        one()


def kernels(device: str) -> dict[str, tuple[Pass, Pass]]:
    """`{name: (copy(a, y), triad(a, b, y))}` of everything here that can move memory."""
    found: dict[str, tuple[Pass, Pass]] = {"torch": (torch_copy, torch_triad)}
    if device == "cuda":
        return {"copy": (fresh_copy, fresh_copy_of_bytes)}
    if device == "cpu" and native_bench_ops():
        for name, streaming in (("native", False), ("native_nt", True)):
            found[name] = (
                functools.partial(native_copy, streaming=streaming),
                functools.partial(native_triad, streaming=streaming),
            )
    return found


def fresh_copy(a: torch.Tensor, y: torch.Tensor) -> None:
    """A device copy into memory that was just asked for, as every candidate's outputs are."""
    a.clone()


def fresh_copy_of_bytes(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> None:
    """A copy that moves the bytes of two tensors read and one written: of a tensor and a half."""
    a.clone()
    b[: b.numel() // 2].clone()


def torch_copy(a: torch.Tensor, y: torch.Tensor) -> None:
    y.copy_(a)


def torch_triad(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> None:
    torch.add(a, b, out=y)


def native_bench_ops() -> bool:
    """Whether the compiled extension is here with its floor kernels."""
    try:
        import fastnorm  # noqa: F401  registers the ops
    except ImportError:
        return False
    return hasattr(torch.ops.fastnorm_bench, "copy") and hasattr(torch.ops.fastnorm_bench, "add")


def native_copy(a: torch.Tensor, y: torch.Tensor, *, streaming: bool) -> None:
    torch.ops.fastnorm_bench.copy(a, y, streaming)


def native_triad(a: torch.Tensor, b: torch.Tensor, y: torch.Tensor, *, streaming: bool) -> None:
    torch.ops.fastnorm_bench.add(a, b, y, streaming)
