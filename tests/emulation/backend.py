"""The emulated kernels as a backend of the library, `emulated`, for tests: its ops take CPU tensors."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import torch

from fastnorm import ops
from fastnorm.ops import backend

NAME = "emulated"
LIBRARY = "FASTNORM_EMULATED_LIBRARY"  # what build.build_library made


def install() -> None:
    """Defines the ops, loads the library that implements them, and lets `backend="emulated"` choose them."""
    if NAME in ops.OPS:
        return
    ops.OPS[NAME] = ops._register(NAME)
    ctypes.CDLL(os.environ[LIBRARY])
    backend.BACKENDS = (*backend.BACKENDS, NAME)
    backend.refusal = _with_emulation(backend.refusal)


def _with_emulation(refusal: Callable[..., str | None]) -> Callable[..., str | None]:
    def asked(name: str, device_type: str, dtype: torch.dtype, column: str | None = None) -> str | None:
        if name != NAME:
            return refusal(name, device_type, dtype, column)
        return backend.native.cuda_missing(column) if column not in backend.native.CUDA_COLUMNS else None

    return asked
