"""What conversions of models have lost in the field: each test is a mistake that some library has made.

Hooks, shared modules, frozen layers, momentum=None, tied parameters, dtypes, and tools that look for classes.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.testing import assert_close

import fastnorm

pytestmark = pytest.mark.integration


class Block(nn.Module):
    """conv, norm, relu; conv, norm, sum, relu."""

    def __init__(self, channels: int = 6, *, act: nn.Module | None = None, **settings: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, **settings)
        self.relu = nn.ReLU(inplace=True) if act is None else act
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, **settings)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


def net(**settings: Any) -> nn.Sequential:
    """In float64, where the converted net must agree to its last digits."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, **settings), nn.ReLU(), Block(**settings), nn.Flatten())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.double()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, dtype=torch.float64)


def found(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    """Output, every gradient and the state after a step's forward and backward with a random upstream gradient."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape).sin())
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **gradients, **{name: t.clone() for name, t in model.state_dict().items()}}


def assert_trains_alike(converted: nn.Module, original: nn.Module, *, steps: int = 2) -> None:
    for _ in range(steps):
        x = images()
        assert_close(found(converted, x), found(original, x))


def pair(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """(converted, original)."""
    converted = copy.deepcopy(model)
    fastnorm.convert(converted)
    return converted, model


@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1, "momentum": 0.7}],
    ids=str,
)
def test_settings_survive(settings: dict[str, Any]) -> None:
    converted, original = pair(net(**settings))
    assert_trains_alike(converted, original)
    assert_trains_alike(converted.eval(), original.eval())
    for ours, theirs in zip(converted.modules(), original.modules(), strict=True):
        if isinstance(theirs, nn.BatchNorm2d):
            for name in ("eps", "momentum", "affine", "track_running_stats", "num_features", "training"):
                assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_see_what_they_saw(when: str) -> None:
    """On norms and activations that would be fused, too: a hook on a norm sees it before the activation."""

    def listen(model: nn.Module, seen: list[Any]) -> None:
        for name, module in model.named_modules():
            if isinstance(module, (nn.BatchNorm2d, nn.ReLU)):
                module.register_forward_hook(lambda m, x, y, name=name: seen.append((name, x[0].clone(), y.clone())))
                module.register_full_backward_hook(lambda m, dx, dy, name=name: seen.append((name, *dx, *dy)))

    original = net()
    original[3].relu.inplace = False  # torch refuses its full backward hooks on an in-place activation
    converted = copy.deepcopy(original)
    seen: list[Any] = []
    expected: list[Any] = []
    if when == "before":
        listen(converted, seen)
        fastnorm.convert(converted)
    else:
        fastnorm.convert(converted)
        listen(converted, seen)
    listen(original, expected)
    assert_trains_alike(converted, original)
    assert [record[0] for record in seen] == [record[0] for record in expected] and seen
    assert_close([record[1:] for record in seen], [record[1:] for record in expected])


def test_a_hook_that_changes_the_result_does_so() -> None:
    original = net()
    original[3].bn2.register_forward_hook(lambda module, args, y: y * 2)
    converted, original = pair(original)
    assert_trains_alike(converted, original)


def test_a_shared_norm_is_one_module() -> None:
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.ReLU(), nn.Conv2d(3, 3, 1), norm, nn.Flatten()).double()
    converted, original = pair(model)
    assert converted[0] is converted[3]
    assert_trains_alike(converted, original)
    assert int(converted[0].num_batches_tracked) == 4
    assert [r.name for r in fastnorm.convert(copy.deepcopy(model)).replaced] == ["0"]


def test_tied_parameters_stay_tied() -> None:
    model = net()
    model[3].bn2.weight = model[1].weight
    converted, original = pair(model)
    assert converted[3].bn2.weight is converted[1].weight
    assert_trains_alike(converted, original)


def test_frozen_norms_stay_frozen() -> None:
    """Fine-tuning with the statistics fixed: norms in evaluation inside a model that trains, without gradients."""
    model = net()
    found(model, images())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    converted, original = pair(model)
    before = {name: b.clone() for name, b in converted.named_buffers()}
    assert_trains_alike(converted, original)
    assert_close(dict(converted.named_buffers()), before, rtol=0, atol=0)
    for name, module in converted.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.training and not module.weight.requires_grad and module.weight.grad is None, name
    assert converted.training and converted[3].training


def test_frozen_after_conversion() -> None:
    converted, original = pair(net())
    for model in (converted, original):
        model[3].bn1.eval()
        model[3].bn2.weight.requires_grad_(False)
    assert_trains_alike(converted, original)
    assert int(converted[3].bn1.num_batches_tracked) == 0 and int(converted[3].bn2.num_batches_tracked) == 2


def test_dtypes_and_foreign_attributes_stay() -> None:
    model = net().to(torch.bfloat16)
    model[1].float()  # a norm kept in float32, as mixed precision by hand has it
    model[1]._is_hf_initialized, model[1].tag = True, "mine"
    kinds = {name: t.dtype for name, t in model.state_dict().items()}
    fastnorm.convert(model)
    assert {name: t.dtype for name, t in model.state_dict().items()} == kinds
    assert model[1]._is_hf_initialized and model[1].tag == "mine"
    y = model[1](torch.randn(2, 6, 3, 3, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16


def test_parametrized_convolutions_stay() -> None:
    model = net()
    model[3].conv1 = parametrizations.weight_norm(model[3].conv1)
    converted, original = pair(model)
    assert_trains_alike(converted, original)


@pytest.mark.parametrize("child", ["bn2", "relu", "bn1"])
def test_surgery_after_conversion(child: str) -> None:
    """A layer that is replaced later runs; nothing of the old one is remembered."""
    converted, original = pair(net())
    for model in (converted, original):
        setattr(model[3], child, nn.Tanh() if child == "relu" else nn.GroupNorm(2, 6).double())
    assert_trains_alike(converted, original)


def test_another_forward_on_the_instance() -> None:
    converted, original = pair(net())
    for model in (converted, original):
        block = model[3]
        block.forward = lambda x, block=block: block.bn2(x) - x
    assert_trains_alike(converted, original)


def test_instance_norm_is_not_taken_for_batch_norm() -> None:
    model = nn.Sequential(nn.InstanceNorm2d(3, affine=True, track_running_stats=True), nn.ReLU(), nn.Flatten()).double()
    converted, original = pair(model)
    assert type(converted[0]) is fastnorm.InstanceNorm2d
    assert_trains_alike(converted, original)


def test_weight_averaging_finds_the_norms() -> None:
    """update_bn resets and averages the statistics of whatever is a batch norm."""
    converted, original = pair(net())
    data = [images() for _ in range(3)]
    averaged = []
    for model in (converted, original):
        copied = AveragedModel(model)
        update_bn(data, copied)
        averaged.append(copied.state_dict())
    assert_close(averaged[0], averaged[1])
    assert int(averaged[0]["module.1.num_batches_tracked"]) == 3


def test_groups_by_class_are_the_same() -> None:
    """Weight decay is often kept from norms by their class; and `apply` reaches them by it."""

    def without_decay(model: nn.Module) -> list[str]:
        norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
        return [
            f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, norms) for p in dict(m.named_parameters())
        ]

    converted, original = pair(net())
    assert without_decay(converted) == without_decay(original) != []

    def reset(module: nn.Module) -> None:
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()

    converted.apply(reset)
    assert bool((converted[3].bn2.weight == 1).all())


@pytest.mark.parametrize("fuse", [True, False])
def test_converted_in_evaluation(fuse: bool) -> None:
    model = net()
    found(model, images())
    converted = copy.deepcopy(model).eval()
    fastnorm.convert(converted, fuse=fuse)
    assert not any(module.training for module in converted.modules())
    assert_trains_alike(converted, model.eval(), steps=1)
    assert_trains_alike(converted.train(), model.train(), steps=1)


def test_half_of_a_model() -> None:
    """Converting a part leaves the rest, and a second call takes what is left."""
    model = net()
    original = copy.deepcopy(model)
    assert len(fastnorm.convert(model[3]).replaced) == 2
    assert type(model[1]) is nn.BatchNorm2d
    assert [record.name for record in fastnorm.convert(model).replaced] == ["1"]
    assert_trains_alike(model, original)
