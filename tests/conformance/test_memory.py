"""No kernel touches memory that is not its own: guard pages and heap checks, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastnorm.ops import native
from fastnorm.testing.streams import past_caches

from .backends import REQUIRED, SANITIZED, Backend, instruction_sets
from .guarded import cases

SCRIPT = Path(__file__).with_name("guarded.py")
TOTAL = sum(1 for _ in cases())
on_cpu = pytest.mark.parametrize("backend", [b for b in REQUIRED if b.name == "cpu"], ids=str)


def guarded(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", **env}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def report(result: subprocess.CompletedProcess[str]) -> str:
    last = result.stdout.strip().rpartition("\n")[2]
    return f"ended with {result.returncode} in {last}\n{result.stderr[-2000:]}"


def test_the_guard_bites() -> None:
    result = guarded("crash", ASAN_OPTIONS="detect_leaks=0:protect_shadow_gap=0")  # no report among those of real bugs
    assert result.stdout.strip() == "crash" and result.returncode != 0


def spans() -> Iterator[tuple[str, int, int, int]]:
    """Instruction set, first, last, step: all cases for the best, and for each in the sanitizer build; else a fifth."""
    for isa in instruction_sets():
        if SANITIZED or isa == instruction_sets()[-1]:
            yield from ((isa, TOTAL * part // 5, TOTAL * (part + 1) // 5, 1) for part in range(5))
        else:
            yield isa, 0, TOTAL, 5


@on_cpu
@pytest.mark.parametrize("isa, first, last, step", list(spans()))
def test_guard_pages(isa: str, first: int, last: int, step: int, backend: Backend) -> None:
    result = guarded(backend.namespace, str(first), str(last), str(step), FASTNORM_CPU=isa)
    assert result.returncode == 0, report(result)


def _malloc_debug() -> str | None:
    folders = (
        "/lib/x86_64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu",
        "/lib64",
        "/usr/lib64",
        "/lib/aarch64-linux-gnu",
    )
    found = (Path(folder) / "libc_malloc_debug.so.0" for folder in folders)
    return next((str(path) for path in found if path.exists()), None)


@on_cpu
@pytest.mark.skipif(SANITIZED, reason="the sanitizer watches the heap itself")
@pytest.mark.skipif(_malloc_debug() is None, reason="needs glibc's malloc checker (2.34 or later)")
def test_heap_stays_whole(backend: Backend) -> None:
    """Outputs are torch's own allocations: glibc's checker aborts at a byte written behind one."""
    checker = {"LD_PRELOAD": str(_malloc_debug()), "GLIBC_TUNABLES": "glibc.malloc.check=3", "MALLOC_CHECK_": "3"}
    bite = guarded("overrun", **checker)
    assert bite.stdout.strip() == "overrun" and bite.returncode != 0
    result = guarded(backend.namespace, "0", str(TOTAL), "5", **checker)
    assert result.returncode == 0, report(result)


@on_cpu
def test_the_end_of_the_caches_moves_and_comes_back(backend: Backend) -> None:
    """What brings small tensors to the streamed stores, here and in every conformance case of the native backend."""
    module = native.available()
    assert module is not None
    before = module.set_cached_bytes(5)
    try:
        assert before > 0
        with pytest.raises(RuntimeError, match="astray"), past_caches():
            assert module.set_cached_bytes(-1) == -1
            raise RuntimeError("astray")
        assert module.set_cached_bytes(before) == 5
    finally:
        module.set_cached_bytes(before)


def test_denormals_are_kept() -> None:
    """Loading the library must not switch the process to flush-to-zero, as -ffast-math objects do."""
    tiny = torch.full((17,), 1e-40)
    assert bool((tiny * 0.5 > 0).all())
