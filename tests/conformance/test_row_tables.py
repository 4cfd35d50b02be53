"""Every case of the row family's table on every backend, forward and backward, judged by the one rule."""

from __future__ import annotations

import pytest

from fastnorm.testing import RowCase
from fastnorm.testing import row_tables as tables

from .backends import Backend, over


@over(tables.layout_cases(), interpret_every=4, eager_every=3)
def test_layouts(case: RowCase, backend: Backend) -> None:
    backend.conform(case)


@over(tables.dtype_cases(), interpret_every=4, eager_every=3)
def test_dtypes(case: RowCase, backend: Backend) -> None:
    backend.conform(case)


@over(tables.option_cases(), interpret_every=4, eager_every=3)
def test_options(case: RowCase, backend: Backend) -> None:
    backend.conform(case)


@over(tables.data_cases(), interpret_every=4, eager_every=3)
def test_data(case: RowCase, backend: Backend) -> None:
    backend.conform(case)


@over(tables.non_finite_cases(), interpret_every=6, eager_every=3)
def test_non_finite(case: RowCase, backend: Backend) -> None:
    backend.conform(case)


@over(tables.upstream_cases(), interpret_every=6, eager_every=3)
def test_upstream(case: RowCase, backend: Backend) -> None:
    backend.conform(case)


@pytest.mark.slow
@over(tables.long_cases(), eager_every=2)
def test_long_reductions(case: RowCase, backend: Backend) -> None:
    backend.conform(case)
