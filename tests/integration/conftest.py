"""What the integration tests share."""

from __future__ import annotations

import pytest
import torch

from fastnorm.autograd import route
from fastnorm.ops import native


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["nodes", "functions"])
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who records calls for autograd: the compiled nodes, or what serves without them."""
    assert native.nodes_missing() is None, native.nodes_missing()
    monkeypatch.setattr(route, "_NODES", request.param == "nodes")
    return str(request.param)
