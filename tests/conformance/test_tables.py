"""Every case of the table on every backend, forward and backward, judged by the one rule."""

from __future__ import annotations

import pytest

from fastnorm.testing import NormCase, ReluCase, tables

from .backends import Backend, over


@over(tables.layout_cases(), interpret_every=3)
def test_batch_norm_layouts(case: NormCase, backend: Backend) -> None:
    backend.conform(case)


@over(tables.dtype_cases(), interpret_every=2)
def test_batch_norm_dtypes(case: NormCase, backend: Backend) -> None:
    backend.conform(case)


@over(tables.option_cases(), interpret_every=2)
def test_batch_norm_options(case: NormCase, backend: Backend) -> None:
    backend.conform(case)


@over(tables.data_cases(), interpret_every=2)
def test_batch_norm_data(case: NormCase, backend: Backend) -> None:
    backend.conform(case)


@over(tables.non_finite_cases(), interpret_every=7)
def test_batch_norm_non_finite(case: NormCase, backend: Backend) -> None:
    backend.conform(case)


@over(tables.upstream_cases(), interpret_every=3)
def test_batch_norm_upstream(case: NormCase, backend: Backend) -> None:
    backend.conform(case)


@over(tables.relu_cases(), interpret_every=5)
def test_general_relu(case: ReluCase, backend: Backend) -> None:
    backend.conform(case)


@pytest.mark.slow
@over(tables.long_cases())
def test_long_reductions(case: NormCase, backend: Backend) -> None:
    backend.conform(case)
