"""The zoo itself: models and batches are drawn from their seeds, and torchvision imports beside any torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fastnorm.testing.zoo import ZOO, ZooModel, call, loss_of

pytestmark = [pytest.mark.integration, pytest.mark.models]
each_model = pytest.mark.parametrize("entry", ZOO.values(), ids=ZOO)


@each_model
def test_model_and_batch_come_from_the_seed(entry: ZooModel) -> None:
    before = torch.get_rng_state()
    first, again, other = entry.model(), entry.model(), entry.model(seed=1)
    batch, same = entry.batch(), entry.batch()
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(batch, same, rtol=0, atol=0)
    assert first.training and first.state_dict().keys() == other.state_dict().keys()
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@each_model
def test_the_loss_moves_every_parameter(entry: ZooModel) -> None:
    model = entry.model()
    loss_of(call(model, entry.batch())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    finite = [name for name, p in model.named_parameters() if not bool(p.grad.isfinite().all())]
    assert finite == []


def test_a_fresh_process_imports() -> None:
    """In whatever order a program comes to it: torchvision, which timm imports, is made ready first."""
    lines = "from fastnorm.testing.zoo import import_package; import_package('timm'); import torchvision.models"
    subprocess.run([sys.executable, "-c", lines], check=True, timeout=300)
