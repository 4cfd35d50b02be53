"""What cannot be proven is left, and the report says why, in words."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnorm
from tests.unit.convert_blocks import Block
from tests.unit.refused_blocks import REASONS, Branching


@pytest.mark.parametrize(("kind", "reason"), REASONS.items(), ids=[kind.__name__ for kind in REASONS])
def test_the_reason(kind: type[Block], reason: str) -> None:
    model = kind()
    contents = dict(model.__dict__)
    state = torch.get_rng_state(), random.getstate()
    report = fastnorm.convert(model)
    assert report.fused == ()
    assert [record.reason for record in report.left] == [reason]
    assert type(model) is kind
    assert all(type(child) in (fastnorm.BatchNorm2d, nn.Conv2d, nn.ReLU, nn.Identity) for child in model.children())
    assert model.__dict__ == contents
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert "isinstance" not in vars(sys.modules[kind.__module__])


class ChangedBefore(Block):
    def forward(self, x: Tensor) -> Any:
        y = (x * 2).add_(1)
        return F.relu(self.bn1(x) + y) + y * 2


def test_a_summand_changed_before_the_sum_is_no_hindrance() -> None:
    assert len(fastnorm.convert(ChangedBefore()).fused) == 1


class Alpha(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(torch.add(self.bn1(x), x, alpha=2))


def test_a_scaled_sum_is_no_pattern() -> None:
    report = fastnorm.convert(Alpha())
    assert (report.fused, report.left) == ((), ())


def test_what_follows_no_norm_is_not_looked_at() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act = nn.LayerNorm(4), nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("nobody should trace this")

    report = fastnorm.convert(Plain())
    assert (len(report.replaced), report.left) == (1, ())


class Abstract(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x))


def test_torchs_functions_are_whole_after_a_trace() -> None:
    cat, call, look = torch.cat, nn.Module.__call__, nn.Module.__getattr__
    fastnorm.convert(Branching())
    fastnorm.convert(Abstract())
    assert torch.cat is cat
    assert nn.Module.__call__ is call
    assert nn.Module.__getattr__ is look
