"""Which backend serves a call: explicit argument, else use_backend, else FASTNORM_BACKEND, else measured preference."""

from __future__ import annotations

import os
from types import TracebackType

import torch
from torch import Tensor

from fastnorm.ops import BACKENDS, native, triton

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Fastest first. CPU: the compiled loops beat composed PyTorch on every benchmarked shape. CUDA: nothing is measured yet
# (docs/gpu.md). Triton is chosen over composed PyTorch for its launch count, and over `native` as the one of the two
# that has more tests behind it.
PREFERENCE: dict[str, tuple[str, ...]] = {"cpu": ("native", "eager"), "cuda": ("triton", "eager")}
_ELSEWHERE = ("eager",)


class _Choice:
    backend: str | None = None


def _checked(name: str, source: str) -> str | None:
    if name == "auto":
        return None
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of 'auto', {', '.join(map(repr, BACKENDS))}; got {name!r}")
    return name


_Choice.backend = _checked(os.environ.get("FASTNORM_BACKEND", "auto"), "FASTNORM_BACKEND")


class use_backend:
    """Choose the backend of every later call; as a context manager, for the block only.

    A call that the chosen backend cannot serve raises RuntimeError with the reason.

    Args:
        name: "eager", "native", "triton" or "auto" (the default: the fastest that can serve the call).

    Raises:
        ValueError: for another name.
    """

    def __init__(self, name: str) -> None:
        self._before = _Choice.backend
        _Choice.backend = _checked(name, "backend")

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _Choice.backend = self._before


def chosen() -> str | None:
    """The backend that use_backend or FASTNORM_BACKEND asks for; None where it is left open."""
    return _Choice.backend


def refusal(backend: str, device_type: str, dtype: torch.dtype, column: str | None = None) -> str | None:
    """Why this backend cannot serve an op on tensors of this device type and dtype; None where it can.

    column: the op, such as "batch_norm", without _fwd or _bwd; None asks about all ops.
    """
    if backend == "eager":
        return None
    if dtype not in DTYPES:
        return f"{dtype} is not one of the dtypes that kernels exist for ({', '.join(map(str, DTYPES))})"
    if backend == "native":
        if device_type == "cuda":
            return native.cuda_missing(column)
        if device_type != "cpu":
            return f"the native kernels run on CUDA and on the CPU, not on {device_type}"
        return native.missing()
    if device_type != "cuda" and not (device_type == "cpu" and triton.interpreted()):
        return f"Triton kernels run on CUDA (or on the CPU under TRITON_INTERPRET=1), not on {device_type}"
    return triton.missing()


def resolve(x: Tensor, backend: str | None = None, column: str | None = None) -> str:
    """The backend for an op on x. RuntimeError where an explicit choice cannot serve it."""
    chosen = _Choice.backend if backend is None else _checked(backend, "backend")
    device_type = "cpu" if x.is_cpu else x.device.type
    if chosen is not None:
        reason = refusal(chosen, device_type, x.dtype, column)
        if reason is not None:
            raise RuntimeError(f"backend {chosen!r} cannot serve this call: {reason}")
        return chosen
    for candidate in PREFERENCE.get(device_type, _ELSEWHERE):
        if refusal(candidate, device_type, x.dtype, column) is None:
            return candidate
    return "eager"


def available_backends(device_type: str = "cpu", column: str | None = None) -> list[str]:
    """The backends that can serve fp32 tensors of a device type here, fastest first.

    Args:
        device_type: "cpu", "cuda" or another of torch's.
        column: the op, such as "batch_norm", without _fwd or _bwd; None asks about all ops.

    Returns:
        Their names; "eager" is always among them.
    """
    order = PREFERENCE.get(device_type, _ELSEWHERE)
    names = [*order, *(b for b in BACKENDS if b not in order)]
    return [name for name in names if refusal(name, device_type, torch.float32, column) is None]
