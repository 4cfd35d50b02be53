"""What every test shares: which backends are required, Triton's interpreter, hypothesis profiles."""

from __future__ import annotations

import os

if "triton" not in os.environ.get("FASTNORM_TEST_BACKENDS", "").split(","):
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before anything imports triton

from collections.abc import Iterator

import pytest
import torch

import fastnorm
from fastnorm.ops import native

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # a bare GPU machine; the tests that draw their cases import it themselves, and fail
    pass
else:
    _QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
    settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=_QUIET, database=None)
    settings.load_profile("ci")


@pytest.fixture(params=["eager", "native"])
def cpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend that must serve CPU tensors, chosen for the test; a missing one is an error."""
    with fastnorm.use_backend(request.param):
        yield request.param


@pytest.fixture
def threads() -> Iterator[None]:
    """For tests that set the number of threads: puts it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["nodes", "python"])
def optim_route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who looks whether an optimizer's plan still holds: the compiled nodes, or what serves without them."""
    assert native.nodes_missing() is None, native.nodes_missing()
    if request.param == "python":
        monkeypatch.setattr(native._State, "nodes", None)
    return str(request.param)
