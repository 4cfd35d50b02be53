"""Fused models that are copied, pickled, saved, compiled, traced and exported."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import fastnorm
from tests.unit.convert_blocks import SHAPE, Basic, Downsampling
from tests.unit.convert_models import chain, check_graphs, check_saved, copies, fusions, spread

# What the other process runs: what it loaded is fused, and goes back to the classes of before.
REVERTED = """
import fastnorm
assert "fused" in repr(model)
fastnorm.revert(model)
assert type(model) is {}
assert all(type(module).__module__.split(".")[0] != "fastnorm" for module in model.modules())
"""


def test_copies_and_pickles_are_fused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = chain(), torch.randn(4, 3, 6, 6)
    fastnorm.convert(model)
    for twin in (*copies(model), copy.copy(model)):
        assert type(twin) is type(model)
        assert fusions(twin, x, monkeypatch) == 1


def test_a_saved_model_loads_in_another_process(tmp_path: Path) -> None:
    model = chain().eval()
    fastnorm.convert(model)
    check_saved(model, torch.randn(4, 3, 6, 6), tmp_path, then=REVERTED.format("torch.nn.Sequential"))


def test_compiled_exported_and_traced() -> None:
    model, x = chain().eval(), torch.randn(4, 3, 6, 6)
    expected = model(x)
    fastnorm.convert(model)
    check_graphs(model, x, expected)


def test_a_compiled_model_notices_a_hook() -> None:
    model, x = chain().eval(), torch.randn(4, 3, 6, 6)
    fastnorm.convert(model)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    model[2] = nn.Tanh()
    torch.testing.assert_close(compiled(x), model[3](torch.tanh(model[:2](x))))


def test_copies_pickles_compilers_and_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = spread(Downsampling()).eval(), torch.randn(SHAPE)
    expected = model(x)
    fastnorm.convert(model)
    for twin in copies(model):
        assert fusions(twin, x, monkeypatch) == 2
        torch.testing.assert_close(twin(x), expected)
    check_graphs(model, x, expected)


def test_a_saved_block_loads_in_another_process(tmp_path: Path) -> None:
    model = spread(Basic()).eval()
    fastnorm.convert(model)
    check_saved(model, torch.randn(SHAPE), tmp_path, then=REVERTED.format(f"sys.modules['{Basic.__module__}'].Basic"))
