"""Uninitialised memory is NaN throughout: a result that was not written everywhere shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


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
