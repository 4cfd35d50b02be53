"""The backends under test, as data. A required one that is missing fails its tests; it is never skipped."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastnorm.ops import native
from fastnorm.testing import conform
from fastnorm.testing.cases import Named, tiny
from fastnorm.testing.streams import past_caches

# The ops whose CPU kernels have other stores for what does not fit the caches: each of their cases runs twice.
STREAMING = ("general_relu", "batch_norm", "row_norm")


@dataclass(frozen=True)
class Backend:
    name: str  # the test's name for it
    namespace: str  # the library's name for it
    device: str
    slow: bool = False  # interpreted: tiny cases only
    columns: tuple[str, ...] = ()  # the ops that it has; () is all

    def conform(self, case: Named) -> dict[str, Tensor]:
        if self.name == "cpu" and case.column in STREAMING:
            with past_caches():
                conform(case, self.namespace, self.device)
        return conform(case, self.namespace, self.device)

    def takes(self, case: Named) -> bool:
        if self.columns and case.column not in self.columns:
            return False
        if self.name == "cuda-emulated":
            return tiny(case)
        if not self.slow:
            return True
        # Triton 3.6's interpreter loses the low bits of a bf16 denormal that it converts to fp32.
        return tiny(case) and (case.data, case.dtype) != ("denormal", "bf16")

    def __str__(self) -> str:
        return self.name


ALL = {
    backend.name: backend
    for backend in (
        Backend("eager", "eager", "cpu"),
        Backend("cpu", "native", "cpu"),
        Backend("triton-interp", "triton", "cpu", slow=True),
        Backend("triton", "triton", "cuda"),
        Backend("cuda", "native", "cuda", columns=native.CUDA_COLUMNS),
        Backend("eager-cuda", "eager", "cuda"),
        # Tests in tests/emulation run it, in a process of its own.
        Backend("cuda-emulated", "emulated", "cpu", slow=True, columns=native.CUDA_COLUMNS),
    )
}
HAS_TRITON = platform.system() == "Linux" and platform.machine() == "x86_64"  # where the test command installs it
DEFAULT = ("eager", "cpu", "triton-interp") if HAS_TRITON else ("eager", "cpu")
_requested = os.environ.get("FASTNORM_TEST_BACKENDS", "")
REQUIRED = [ALL[name] for name in (_requested.split(",") if _requested else DEFAULT)]
if ALL["cuda-emulated"] in REQUIRED:
    from tests.emulation.backend import install

    install()
DEVICE = "cuda" if any(b.device == "cuda" for b in REQUIRED) else "cpu"
FAST = [b for b in REQUIRED if not b.slow]
# Those whose kernels are launched: on a GPU, by Triton's interpreter or in the emulation.
LAUNCHED = [b for b in REQUIRED if b.namespace in ("triton", "emulated") or b.name == "cuda"]
# In the process of the sanitizer build, see `make sanitize`.
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
on_launched = pytest.mark.skipif(not LAUNCHED, reason="no backend that launches kernels is to be tested")


def instruction_sets() -> tuple[str, ...]:
    """Those of the native CPU kernels that this CPU has, the best last: it is the one that the extension takes."""
    slowest_first = ("default", "avx2", "avx512")
    return slowest_first[: slowest_first.index(native.isa() or "default") + 1]


def each_backend(function: object = None, *, fast: bool = False) -> pytest.MarkDecorator:
    """Parametrize over the required backends; fast leaves out the interpreted one."""
    return pytest.mark.parametrize("backend", FAST if fast else REQUIRED, ids=str)


def over(cases: Sequence[Named], *, interpret_every: int = 1, eager_every: int = 1) -> pytest.MarkDecorator:
    """Parametrize over cases and, for each, the required backends that can take it.

    interpret_every thins out the cases of the interpreted backend, eager_every those of plain PyTorch. Backends vary
    fastest: each case is solved once.
    """

    def every(backend: Backend) -> int:
        return interpret_every if backend.slow else eager_every if backend.name == "eager" else 1

    pairs = [
        (case, backend)
        for index, case in enumerate(cases)
        for backend in REQUIRED
        if backend.takes(case) and index % every(backend) == 0
    ]
    return pytest.mark.parametrize("case, backend", pairs, ids=[f"{c.name}-{b}" for c, b in pairs])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)
