"""Run as a script: every tensor against a page that must not be touched; a read or write astray ends it.

    python guarded.py BACKEND FIRST LAST [STEP]

The name of each case is printed before it runs, so that the last line of a crash names it.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from fastnorm.testing import NormCase, ReluCase, RowCase, StatsCase, run
from fastnorm.testing.cases import DTYPES, LAYOUTS, Case, fits
from fastnorm.testing.layouts import extent
from fastnorm.testing.problems import Problem, build
from fastnorm.testing.row_tables import FORMS, FUSED, KINDS
from fastnorm.testing.stats import stats_problem, stats_results
from fastnorm.testing.streams import past_caches

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
SHAPES = (
    (5, 7, 3, 11),
    (2, 17, 8, 8),
    (3, 3, 13, 1),
    (7, 33, 1, 1),
    (2, 1, 5, 7),
    (11, 13),
    (3, 5, 29),
    (2, 3, 5, 7, 3),
)


def between_guards(t: Tensor, at_end: bool) -> Tensor:
    """A copy of t, same strides, whose last (or first) byte is next to a page without access."""
    count = extent(t.shape, t.stride())
    size = count * t.element_size()
    pages = -(-max(size, 1) // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    start = PAGE + (pages * PAGE - size if at_end else 0)
    flat = torch.frombuffer(memory, dtype=t.dtype, count=count, offset=start)
    flat.copy_(t.as_strided((count,), (1,)))
    for guard in (address, address + (pages + 1) * PAGE):
        if _libc.mprotect(guard, PAGE, mmap.PROT_NONE if hasattr(mmap, "PROT_NONE") else 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    return flat.as_strided(t.shape, t.stride())


def cases() -> Iterator[Case | StatsCase]:
    for dtype, count in itertools.product(DTYPES, (*range(1, 70), 127, 1023, 4097, 33_001)):
        yield ReluCase((count,), "contiguous", dtype, "max_leak")
    for shape, layout, dtype in itertools.product(SHAPES, LAYOUTS, DTYPES):
        if fits(shape, layout):
            yield ReluCase(shape, layout, dtype)
            yield NormCase(shape, layout, dtype, dtype, dtype)
            yield NormCase(shape, layout, dtype, act="full", residual="same", stats=dtype, dy="contiguous")
            yield NormCase(shape, layout, dtype, act="leaky", training=False, vectors="every_second")
    for channels, rows, dtype in itertools.product(range(1, 36), (2, 5), DTYPES):
        yield NormCase((rows, channels), dtype=dtype, act="full")
        yield NormCase((rows, channels, 1, 3), "channels_last", dtype, act="full", residual="same")
        yield NormCase((rows, 3, channels), dtype=dtype, act="full", residual="same")
    yield from row_cases()
    yield from stats_cases()


def row_cases() -> Iterator[RowCase]:
    for base, layout, (index, dtype) in itertools.product((*KINDS, *FORMS), LAYOUTS, enumerate(DTYPES)):
        if fits(base.shape, layout):
            case = base.but(layout=layout, dtype=dtype, weight=dtype, bias=None if base.rms else dtype)
            yield case.but(**FUSED, dy="contiguous") if (index + len(layout)) % 2 else case
    for count, rows, dtype in itertools.product(range(1, 36), (2, 5), DTYPES):
        yield RowCase((rows, count), "layer", dtype=dtype, act="full", vectors="every_second")
        yield RowCase((rows, 3, count), "layer", 2, dtype=dtype, **FUSED)
        yield RowCase((rows, 3, count + 1), "instance", dtype=dtype, **FUSED)
        yield RowCase((rows, 2 * count, 1, 3), "group", 2, "channels_last", dtype, **FUSED)
        yield RowCase((rows, 3 * count, 2, 2), "group", count, "channels_last", dtype, act="leaky")
        yield RowCase((rows, count, 1, 3), "position", layout="channels_last", dtype=dtype, **FUSED)
        yield RowCase((rows, 3, 1, count), "position", dtype=dtype, act="leaky")
    for count, dtype in itertools.product((127, 1023, 4097, 33_001), DTYPES):
        yield RowCase((2, count), "layer", dtype=dtype, **FUSED)
        yield RowCase((count, 5), "layer", dtype=dtype, act="full")
        yield RowCase((2, 6, count), "group", 3, dtype=dtype, act="full")


def stats_cases() -> Iterator[StatsCase]:
    for dtype, count in itertools.product(DTYPES, (*range(1, 70), 127, 1023, 16_383, 16_385)):
        yield StatsCase((count,), dtype=dtype)
    for shape, layout, dtype in itertools.product(SHAPES, LAYOUTS, DTYPES):
        if fits(shape, layout):
            yield StatsCase(shape, layout, dtype)


def main(backend: str, first: int, last: int, step: int = 1) -> None:
    for case in itertools.islice(cases(), first, last, step):
        print(f"{case.column} {case.name}", flush=True)
        tensors = {"x": stats_problem(case)[0]} if isinstance(case, StatsCase) else build(case).tensors()
        for at_end in (False, True):
            guarded = {name: between_guards(t, at_end) for name, t in tensors.items()}
            if isinstance(case, StatsCase):
                stats_results(case, guarded["x"], backend)
                continue
            run(case, Problem(**guarded), backend)
            with past_caches():
                run(case, Problem(**guarded), backend)


def crash() -> None:
    """Reads one element past the end: what the guard is there to stop."""
    t = between_guards(torch.ones(7), True)
    print("crash", flush=True)
    ctypes.c_float.from_address(t.data_ptr() + 7 * t.element_size()).value  # noqa: B018


def overrun() -> None:
    """Writes one byte behind an allocation of torch's: what the heap checker is there to report."""
    t = torch.empty(33, dtype=torch.uint8)
    ctypes.c_char.from_address(t.data_ptr() + 33).value = b"\x55"
    print("overrun", flush=True)
    del t


if __name__ == "__main__":
    if sys.argv[1] == "crash":
        crash()
    elif sys.argv[1] == "overrun":
        overrun()
    else:
        main(sys.argv[1], *map(int, sys.argv[2:]))
