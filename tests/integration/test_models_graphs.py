"""torch.fx and torch.compile take other people's models converted as they take them plain."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import fx
from torch.testing import assert_close
from zoo_models import HEAVY, each_model, trained

import fastnorm
from fastnorm.testing.beside import cast
from fastnorm.testing.zoo import ZOO, ZooModel

pytestmark = [pytest.mark.integration, pytest.mark.models]

TRACED = [name for name, entry in ZOO.items() if entry.package != "transformers"]  # those raise, converted or not
COMPILED = [name for name in ZOO if name != "torchvision.densenet121"]  # it compiles too, in minutes
QUICK = {"torchvision.resnet18", "timm.mobilenetv3_small_100", "timm.convnext_atto", "transformers.llama"}


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@each_model(TRACED, slow=HEAVY)
def test_symbolic_trace(entry: ZooModel) -> None:
    """In training: a trace keeps the mode in which it was made, of what is no layer of torch.nn."""
    model, batch = entry.model().double(), cast(entry.batch(), torch.float64)
    fastnorm.convert(model)
    traced = fx.symbolic_trace(copy.deepcopy(model))
    found, expected = trained(traced, batch), trained(model, batch)
    for name in expected:
        # timm counts batches in a way that a trace does not see; what a trace does not use it leaves out
        if name != "evaluated" and not (name.endswith("num_batches_tracked") and name not in found):
            assert_close(found[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")


@each_model(COMPILED, slow=frozenset(ZOO) - QUICK)
def test_compiles_without_a_break(entry: ZooModel) -> None:
    model, batch = entry.model().double(), cast(entry.batch(), torch.float64)
    fastnorm.convert(model)
    eager = copy.deepcopy(model)
    model.compile(fullgraph=True, backend="aot_eager")
    found, expected = trained(model, batch), trained(eager, batch)
    assert found.keys() == expected.keys()
    assert_close(found, expected)
