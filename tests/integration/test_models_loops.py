"""Training loops of other libraries over a converted model: two steps, on the CPU, leaving nothing behind."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from zoo_models import assert_same_bits

import fastnorm
from fastnorm.testing.zoo import ZOO, import_package, loss_of

pytestmark = [pytest.mark.integration, pytest.mark.models]

STEPS, LR = 2, 0.01


@pytest.fixture
def model() -> nn.Module:
    model = ZOO["torchvision.resnet18"].model()
    fastnorm.convert(model)
    return model


@pytest.fixture
def batches() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(2 * STEPS, 3, 64, 64)), batch_size=2)


@pytest.fixture
def expected(model: nn.Module, batches: DataLoader[Any]) -> dict[str, Tensor]:
    """The state after the same steps in a loop of our own."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    for (x,) in batches:
        optimizer.zero_grad()
        loss_of(model(x)).backward()
        optimizer.step()
    return model.state_dict()


def test_lightning(
    model: nn.Module,
    batches: DataLoader[Any],
    expected: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lightning = import_package("lightning.pytorch")
    monkeypatch.chdir(tmp_path)
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.ERROR)

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return loss_of(self.model(batch[0]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9)

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), batches)
    assert trainer.global_step == STEPS
    assert_same_bits(model.state_dict(), expected)
    assert list(tmp_path.iterdir()) == []


def test_accelerate(
    model: nn.Module,
    batches: DataLoader[Any],
    expected: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accelerate = import_package("accelerate")
    monkeypatch.chdir(tmp_path)
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, batches)
    for (x,) in loader:
        optimizer.zero_grad()
        accelerator.backward(loss_of(prepared(x)))
        optimizer.step()
    assert_same_bits(accelerator.unwrap_model(prepared).state_dict(), expected)
    assert list(tmp_path.iterdir()) == []
