"""fastnorm's norms as `norm_layer=` of torchvision and timm, and what turns converted models into synchronized ones."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from zoo_models import assert_same_bits, is_norm, norms_of, trained

import fastnorm
from fastnorm.testing.zoo import CLASSES, ZOO, ZooModel, call, import_package, logits_of

pytestmark = [pytest.mark.integration, pytest.mark.models]


def torchvision_model(name: str, **settings: Any) -> nn.Module:
    return import_package("torchvision").models.get_model(name, num_classes=CLASSES, **settings)


def timm_model(name: str, **settings: Any) -> nn.Module:
    return import_package("timm").create_model(name, num_classes=CLASSES, **settings)


def classes_of_norms(model: nn.Module) -> dict[type, int]:
    return dict(Counter(type(module) for module in model.modules() if is_norm(module)))


@pytest.mark.parametrize(
    ("name", "norm_layer", "expected"),
    [
        ("resnet18", fastnorm.BatchNorm2d, {fastnorm.BatchNorm2d: 20}),
        ("resnet18", partial(fastnorm.GroupNorm, 8), {fastnorm.GroupNorm: 20}),
        ("mobilenet_v2", fastnorm.BatchNorm2d, {fastnorm.BatchNorm2d: 52}),
        ("convnext_tiny", partial(fastnorm.LayerNorm2d, eps=1e-6), {fastnorm.LayerNorm2d: 5, nn.LayerNorm: 18}),
        ("vit_b_16", partial(fastnorm.LayerNorm, eps=1e-6), {fastnorm.LayerNorm: 25}),
    ],
)
def test_torchvision(name: str, norm_layer: Callable[..., nn.Module], expected: dict[type, int]) -> None:
    """convnext's blocks take their layer norm from torch.nn whatever they are told: convert reaches those."""
    with torch.device("meta"):
        model = torchvision_model(name, norm_layer=norm_layer)
    assert classes_of_norms(model) == expected
    fastnorm.convert(model)
    assert all(type(norm).__module__.startswith("fastnorm.") for norm in norms_of(model).values())


@pytest.mark.parametrize(
    ("name", "norm_layer", "count"),
    [
        ("resnet26", fastnorm.BatchNorm2d, 29),
        ("convnext_atto", partial(fastnorm.LayerNorm2d, eps=1e-6), 17),
        ("vit_tiny_patch16_224", partial(fastnorm.LayerNorm, eps=1e-6), 25),
        ("vit_tiny_patch16_224", fastnorm.RMSNorm, 25),
    ],
)
def test_timm_keeps_the_class(name: str, norm_layer: Any, count: int) -> None:
    model = timm_model(name, norm_layer=norm_layer)
    assert classes_of_norms(model) == {getattr(norm_layer, "func", norm_layer): count}


@pytest.mark.parametrize("name", ["efficientnet_b0", "regnetx_002"])
def test_timm_takes_its_own_by_name(name: str) -> None:
    """Where norm and activation are one layer, timm looks the class up by its lower-cased name, and finds its own."""
    given, plain = timm_model(name, norm_layer=fastnorm.BatchNorm2d), timm_model(name)
    assert classes_of_norms(given) == classes_of_norms(plain)
    assert {kind.__module__ for kind in classes_of_norms(given)} == {"timm.layers.norm_act"}


def test_norm_layer_and_convert_agree() -> None:
    """Built with the layer or converted to it: the same bits."""
    entry = ZOO["torchvision.resnet18"]
    converted = entry.model()
    built = torchvision_model("resnet18", norm_layer=fastnorm.BatchNorm2d)
    built.load_state_dict(converted.state_dict(), strict=True)
    fastnorm.convert(converted, fuse=False)
    assert_same_bits(trained(built, entry.batch()), trained(converted, entry.batch()))


def synchronized_by_torch(model: nn.Module) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def synchronized_by_fastnorm(model: nn.Module) -> nn.Module:
    return fastnorm.SyncBatchNorm.convert_sync_batchnorm(model)


def synchronized_by_timm(model: nn.Module) -> nn.Module:
    return import_package("timm").layers.convert_sync_batchnorm(model)


def split_by_timm(model: nn.Module) -> nn.Module:
    return import_package("timm").layers.convert_splitbn_model(model)


def frozen_by_timm(model: nn.Module) -> nn.Module:
    return import_package("timm").layers.freeze_batch_norm_2d(model)


@pytest.mark.parametrize(
    ("name", "change", "kind"),
    [
        ("torchvision.resnet18", synchronized_by_torch, nn.SyncBatchNorm),
        ("torchvision.resnet18", synchronized_by_fastnorm, fastnorm.SyncBatchNorm),
        ("timm.mobilenetv3_small_100", synchronized_by_timm, nn.SyncBatchNorm),
        ("timm.mobilenetv3_small_100", split_by_timm, nn.BatchNorm2d),
        ("timm.mobilenetv3_small_100", frozen_by_timm, nn.Module),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_changed_after_convert(name: str, change: Callable[[nn.Module], nn.Module], kind: type) -> None:
    """Tools that exchange batch norms by class find the converted ones, and lose no activation."""
    entry: ZooModel = ZOO[name]
    original, batch = entry.model(), entry.batch()
    converted = copy.deepcopy(original)
    fastnorm.convert(converted)
    original, converted = change(original).double(), change(converted).double()
    assert all(isinstance(norm, kind) for norm in norms_of(converted).values())
    if kind is not fastnorm.SyncBatchNorm:
        assert classes_of_norms(converted) == classes_of_norms(original)
    assert isinstance(batch, torch.Tensor)
    for model in (original, converted):
        model.train()
    y, expected = call(converted, batch.double()), call(original, batch.double())
    torch.testing.assert_close(logits_of(y), logits_of(expected))
    torch.testing.assert_close(converted.state_dict(), original.state_dict())
