"""Uninitialised memory is NaN throughout: a result that was not written everywhere shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastnorm.ops import native


def pytest_configure(config: pytest.Config) -> None:
    for warning in (
        "ignore::RuntimeWarning:triton",  # the interpreter computes with numpy, which warns of every NaN
        "ignore::RuntimeWarning:numpy",
        "ignore::DeprecationWarning:triton",
    ):
        config.addinivalue_line("filterwarnings", warning)


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def column_of(item: pytest.Item) -> str | None:
    """The op that a test is about: its case's, the one its parameter or its mark names; None for several."""
    for value in item.callspec.params.values():
        if (column := getattr(value, "column", None)) is not None:
            return str(column)
        if isinstance(value, str) and value.partition("-")[0] in native.CUDA_COLUMNS:
            return value.partition("-")[0]
    mark = item.get_closest_marker("column")
    return None if mark is None else str(mark.args[0])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what a backend has no kernels for: not every op has them in CUDA C++."""

    def served(item: pytest.Item) -> bool:
        backend = item.callspec.params.get("backend") if hasattr(item, "callspec") else None
        columns = getattr(backend, "columns", ())
        return not columns or column_of(item) in columns

    unserved = [item for item in items if not served(item)]
    if unserved:
        config.hook.pytest_deselected(items=unserved)
        items[:] = [item for item in items if served(item)]
