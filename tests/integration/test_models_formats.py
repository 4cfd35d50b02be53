"""Converted models in channels_last and under autocast."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo_models import each_model, is_norm

import fastnorm
from fastnorm.testing.beside import PEER_FACTOR, Trial, autocast_errors
from fastnorm.testing.zoo import ZooModel, call

pytestmark = [pytest.mark.integration, pytest.mark.models]

IMAGES = ["torchvision.resnet18", "torchvision.mobilenet_v2", "timm.mobilenetv3_small_100", "timm.convnext_atto"]
HALF = ["torchvision.resnet18", "timm.mobilenetv3_small_100", "timm.convnext_atto", "timm.vit_tiny_patch16_224"] + [
    "transformers.bert",
    "transformers.llama",
]


def channels_last(model: nn.Module) -> nn.Module:
    """The model with weights and (by a hook) images in that format."""

    def reformat(module: nn.Module, args: tuple[Tensor, ...]) -> Any:
        return tuple(t.to(memory_format=torch.channels_last) for t in args)

    model.register_forward_pre_hook(reformat)
    return model.to(memory_format=torch.channels_last)


@each_model(IMAGES)
def test_channels_last(entry: ZooModel) -> None:
    """The results of the contiguous original."""
    model = entry.model()
    trial = Trial(model, entry.batch(), smooth=entry.smooth)
    converted = copy.deepcopy(model).double()
    fastnorm.convert(converted)
    found = trial.distances(channels_last(converted), torch.float64)
    assert max(d.excess for d in found) <= 1, max(found, key=lambda d: d.excess)


@each_model(IMAGES)
def test_channels_last_stays(entry: ZooModel) -> None:
    """Every norm gives images in the formats in which the original gives them."""

    def formats(model: nn.Module) -> list[tuple[str, bool, bool]]:
        seen = []

        def note(name: str, y: Tensor) -> None:
            seen.append((name, y.is_contiguous(), y.is_contiguous(memory_format=torch.channels_last)))

        for name, module in model.named_modules():
            if is_norm(module):
                module.register_forward_hook(lambda m, args, y, name=name: note(name, y))
        call(channels_last(model), entry.batch())
        return seen

    original = entry.model()
    converted = copy.deepcopy(original)
    fastnorm.convert(converted)
    expected = formats(original)
    assert expected and formats(converted) == expected


@each_model(HALF)
def test_autocast(entry: ZooModel) -> None:
    """In bfloat16, no further from float64 than the original's outputs and gradients are, and of their dtypes."""
    model = entry.model()
    converted = copy.deepcopy(model)
    fastnorm.convert(converted)
    errors = autocast_errors(model, converted, entry.batch())
    for what, (peer, ours) in errors.items():
        assert ours <= PEER_FACTOR * peer, f"{what}: off by {ours:.3g}, the original by {peer:.3g}"
