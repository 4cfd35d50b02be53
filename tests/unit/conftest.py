"""What the unit tests share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastnorm.ops.optim_watch import Watch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What every question to a watch was answered."""
    found: list[int] = []
    take = Watch.take

    def recorded(self: Watch, *args: Any) -> int:
        found.append(take(self, *args))
        return found[-1]

    monkeypatch.setattr(Watch, "take", recorded)
    return found
