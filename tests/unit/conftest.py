"""What the unit tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import fastnorm


@pytest.fixture(params=["eager", "native"])
def cpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend that must serve CPU tensors, chosen for the test; a missing one is an error."""
    with fastnorm.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
