"""Every kernel once: what compute-sanitizer looks at on a GPU (docs/gpu.md)."""

from __future__ import annotations

import pytest

from fastnorm.testing.cases import Case
from fastnorm.testing.short_list import SHORT_LIST

from .backends import FAST, Backend


@pytest.mark.parametrize("backend", FAST, ids=str)
@pytest.mark.parametrize("case", SHORT_LIST, ids=lambda case: f"{case.column}-{case.name}")
def test_short_list(case: Case, backend: Backend) -> None:
    backend.conform(case)
