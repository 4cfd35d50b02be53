"""Norms that timm, torchvision and transformers define: their twins compute the same, keep names, and go back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastnorm
from fastnorm.testing.zoo.packages import import_package
from tests.unit.convert_models import check_graphs, check_same, check_saved, copies, spread, tree

pytestmark = [pytest.mark.integration, pytest.mark.models]
IMAGES, ROWS = (4, 8, 5, 3), (4, 3, 8)


def _timm(name: str, *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(import_package("timm.layers"), name)(*args, **kwargs)


def _torchvision(module: str, name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(import_package(f"torchvision.{module}"), name)(8)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "FrozenBatchNorm2d": (_torchvision("ops.misc", "FrozenBatchNorm2d"), IMAGES, ""),
    "torchvision LayerNorm2d": (_torchvision("models.convnext", "LayerNorm2d"), IMAGES, ""),
    "GroupNorm": (_timm("GroupNorm", 8, num_groups=4), IMAGES, ""),
    "GroupNorm1": (_timm("GroupNorm1", 8), IMAGES, ""),
    "LayerNorm": (_timm("LayerNorm", 8), ROWS, ""),
    "LayerNormFp32": (_timm("LayerNormFp32", 8), ROWS, ""),
    "LayerNorm2d": (_timm("LayerNorm2d", 8), IMAGES, ""),
    "LayerNorm2dFp32": (_timm("LayerNorm2dFp32", 8), IMAGES, ""),
    "RmsNorm": (_timm("RmsNorm", 8), ROWS, ""),
    "RmsNormFp32": (_timm("RmsNormFp32", 8), ROWS, ""),
    "BatchNormAct2d": (_timm("BatchNormAct2d", 8), IMAGES, "GeneralRelu()"),
    "BatchNormAct2d, no act": (_timm("BatchNormAct2d", 8, apply_act=False), IMAGES, ""),
    "BatchNormAct2d, silu": (_timm("BatchNormAct2d", 8, act_layer=nn.SiLU), IMAGES, ""),
    "BatchNormAct2d, relu6": (_timm("BatchNormAct2d", 8, act_layer=nn.ReLU6), IMAGES, "GeneralRelu(maxv=6.0)"),
    "FrozenBatchNormAct2d": (_timm("FrozenBatchNormAct2d", 8), IMAGES, "GeneralRelu()"),
    "GroupNormAct": (_timm("GroupNormAct", 8, num_groups=2, act_layer="leaky_relu"), IMAGES, "GeneralRelu(leak=0.01)"),
    "GroupNorm1Act": (_timm("GroupNorm1Act", 8), IMAGES, "GeneralRelu()"),
    "LayerNormAct": (_timm("LayerNormAct", 8), ROWS, "GeneralRelu()"),
    "LayerNormAct2d": (_timm("LayerNormAct2d", 8), IMAGES, "GeneralRelu()"),
    "RmsNormAct": (_timm("RmsNormAct", 8), ROWS, "GeneralRelu()"),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_each_twin_computes_as_before(name: str, training: bool) -> None:
    make, shape, activation = LAYERS[name]
    original = spread(make()).train(training)
    model = nn.ModuleDict({"norm": copy.deepcopy(original)})
    before, names = tree(model), [name for name, _ in model.named_modules()]
    report = fastnorm.convert(model)
    assert [record.name for record in report.replaced] == ["norm"]
    assert [record.activation for record in report.fused] == ([activation] if activation else [])
    assert isinstance(model["norm"], type(original))
    assert [name for name, _ in model.named_modules()] == names
    assert model.state_dict().keys() == {f"norm.{key}" for key in original.state_dict()}
    x = torch.randn(shape)
    check_same(original, model["norm"], x)
    check_same(original, model["norm"], x.to(memory_format=torch.channels_last) if len(shape) == 4 else x.mT.mT)
    fastnorm.revert(model)
    assert tree(model) == before


@pytest.mark.parametrize("name", [name for name in LAYERS if "LayerNorm" in name and "2d" in name])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layer_norms_of_images_leave_the_originals_order(name: str, memory_format: torch.memory_format) -> None:
    """Which convolution runs behind them, and how fast, depends on it."""
    make, shape, _ = LAYERS[name]
    original = spread(make())
    twin = copy.deepcopy(original)
    fastnorm.convert(twin)
    x = torch.randn(shape).contiguous(memory_format=memory_format).requires_grad_()
    assert twin(x).stride() == original(x).stride()
    (ours,), (theirs,) = (torch.autograd.grad(norm(x).square().sum(), x) for norm in (twin, original))
    assert ours.stride() == theirs.stride()


def test_hooks_on_timms_own_activation_are_called() -> None:
    model = spread(LAYERS["BatchNormAct2d"][0]())
    fastnorm.convert(model)
    seen: list[torch.Tensor] = []
    model.act.register_forward_hook(lambda module, inputs, output: seen.append(output))
    y = model(torch.randn(IMAGES))
    assert len(seen) == 1
    assert torch.equal(seen[0], y)


def test_timms_fast_norms_stay_timms() -> None:
    norm = spread(LAYERS["LayerNorm"][0]())
    norm._fast_norm = True
    twin = copy.deepcopy(norm)
    fastnorm.convert(twin)
    x = torch.randn(ROWS)
    with torch.autocast("cpu", torch.bfloat16):
        assert twin(x).dtype == norm(x).dtype == torch.bfloat16


def test_a_frozen_norm_of_half_images_is_as_wide_as_its_buffers() -> None:
    norm = LAYERS["FrozenBatchNorm2d"][0]()
    twin = copy.deepcopy(norm)
    fastnorm.convert(twin)
    x = torch.randn(IMAGES, dtype=torch.bfloat16)
    assert twin(x).dtype == norm(x).dtype == torch.float32


def test_no_act_layers_take_in_what_follows_them() -> None:
    model = nn.Sequential(spread(LAYERS["BatchNormAct2d, no act"][0]()), nn.ReLU())
    original = copy.deepcopy(model)
    assert [record.name for record in fastnorm.convert(model).fused] == ["0"]
    check_same(original, model, torch.randn(IMAGES))


@pytest.mark.parametrize("name", ["BatchNormAct2d", "LayerNorm2d", "FrozenBatchNorm2d"])
def test_twins_are_copied_pickled_compiled_and_traced(name: str) -> None:
    make, shape, _ = LAYERS[name]
    model, x = spread(make()).eval(), torch.randn(shape)
    expected = model(x)
    fastnorm.convert(model)
    for twin in copies(model):
        torch.testing.assert_close(twin(x), expected)
    check_graphs(model, x, expected)


def test_a_saved_twin_loads_where_nothing_is_imported_yet(tmp_path: Path) -> None:
    model = spread(LAYERS["BatchNormAct2d"][0]()).eval()
    fastnorm.convert(model)
    check_saved(
        model, torch.randn(IMAGES), tmp_path,
        first="from fastnorm.testing.zoo.packages import import_torchvision; import_torchvision()",
        then="import fastnorm, timm.layers; fastnorm.revert(model); assert type(model) is timm.layers.BatchNormAct2d",
    )  # fmt: skip


def test_norm_layer_of_torchvision_takes_our_class() -> None:
    models = import_package("torchvision.models")
    model = models.resnet18(norm_layer=fastnorm.BatchNorm2d)
    assert type(model.layer1[0].bn1) is fastnorm.BatchNorm2d
    with fastnorm.patched():
        patched = models.resnet18()
    assert type(patched.layer1[0].bn1) is fastnorm.BatchNorm2d
    assert len(fastnorm.convert(model).fused) == len(fastnorm.convert(patched).fused) == 17


def test_norm_layer_of_timm_takes_our_class_or_replaces_it_by_name() -> None:
    """timm's norm-act factory maps a class to its own by the lower-cased name: such models are converted afterwards."""
    timm = import_package("timm")
    plain = timm.create_model("resnet18", norm_layer=fastnorm.BatchNorm2d)
    assert type(plain.layer1[0].bn1) is fastnorm.BatchNorm2d
    by_name = timm.create_model("regnetx_002", norm_layer=fastnorm.BatchNorm2d)
    assert type(by_name.stem.bn) is import_package("timm.layers").BatchNormAct2d
    assert "stem.bn" in {record.name for record in fastnorm.convert(by_name).replaced}


def test_llamas_norm_is_known_and_gemmas_is_left() -> None:
    llama = import_package("transformers.models.llama.modeling_llama").LlamaRMSNorm(8)
    gemma = import_package("transformers.models.gemma.modeling_gemma").GemmaRMSNorm(8)
    t5 = import_package("transformers.models.t5.modeling_t5").T5LayerNorm(8)
    report = fastnorm.convert(nn.ModuleList([llama, gemma, t5]))
    assert [record.name for record in report.replaced] == ["0"]
    assert [record.name for record in report.left] == ["1", "2"]
