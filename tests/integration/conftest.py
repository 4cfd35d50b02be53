"""What the integration tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import fastnorm
from fastnorm.autograd import route
from fastnorm.ops import native


@pytest.fixture(params=["eager", "native"])
def cpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend that must serve CPU tensors, chosen for the test; a missing one is an error."""
    with fastnorm.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["nodes", "functions"])
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who records calls for autograd: the compiled nodes, or what serves without them."""
    assert native.nodes_missing() is None, native.nodes_missing()
    monkeypatch.setattr(route, "_NODES", request.param == "nodes")
    return str(request.param)
