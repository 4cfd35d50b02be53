"""Outputs written past the caches: the CPU kernels' other stores, which only large tensors reach by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastnorm.ops import native


@contextmanager
def past_caches() -> Iterator[None]:
    """Every native CPU kernel that can writes its outputs past the caches, however small they are."""
    module = native.available()
    if module is None:
        raise RuntimeError(f"past_caches is for the native backend, and {native.missing()}")
    before = module.set_cached_bytes(-1)  # less than nothing: so that no call fits
    try:
        yield
    finally:
        module.set_cached_bytes(before)
