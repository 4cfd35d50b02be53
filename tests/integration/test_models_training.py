"""Other people's models, converted and trained beside the original: the same outputs, gradients and statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from zoo_models import HEAVY, each_model

import fastnorm
from fastnorm.testing.beside import Distance, Trial
from fastnorm.testing.zoo import ZooModel

pytestmark = [pytest.mark.integration, pytest.mark.models]

# Hugging Face's RMS norm rounds to float32 inside, whatever its input: its float64 is exact to float32 only.
ROUNDS_TO_FLOAT32 = {"transformers.llama"}


def assert_near(found: list[Distance]) -> None:
    wrong = sorted((d for d in found if d.excess > 1), key=lambda d: d.excess, reverse=True)
    assert not wrong, f"{len(wrong)} of {len(found)} tensors:\n" + "\n".join(map(str, wrong[:5]))


@each_model(slow=HEAVY)
def test_trains_as_the_original(entry: ZooModel) -> None:
    model = entry.model()
    trial = Trial(model, entry.batch(), smooth=entry.smooth)
    for dtype in (torch.float64, torch.float32):
        converted = copy.deepcopy(model).to(dtype)
        fastnorm.convert(converted)
        judged_as = torch.float32 if entry.name in ROUNDS_TO_FLOAT32 else dtype
        assert_near(trial.distances(converted, dtype, judged_as))
    assert_near(trial.distances(copy.deepcopy(model), torch.float32))  # the rule asks no more than PyTorch gives
