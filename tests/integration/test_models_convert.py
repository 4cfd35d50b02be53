"""What convert and revert do to other people's models, and what they leave as it was."""

from __future__ import annotations

import copy
import io
from typing import NamedTuple

import pytest
import torch
from torch import nn
from zoo_models import HEAVY, assert_same_bits, each_model, norms_of, trained

import fastnorm
from fastnorm.testing.zoo import ZOO, ZooModel, call, loss_of

pytestmark = [pytest.mark.integration, pytest.mark.models]


class Counts(NamedTuple):
    """norms: by class. fused: activations taken into a norm, and how many of them with a sum before."""

    norms: dict[str, int]
    fused: int = 0
    residual: int = 0


BATCH, LAYER = "torch.nn.BatchNorm2d", "torch.nn.LayerNorm"
COUNTS = {
    "torchvision.resnet18": Counts({BATCH: 20}, 17, 8),  # 3 norms of shortcuts have no activation
    "torchvision.resnet50": Counts({BATCH: 53}, 49, 16),
    "torchvision.densenet121": Counts({BATCH: 121}, 120),  # the last norm's activation is in another module
    "torchvision.mobilenet_v2": Counts({BATCH: 52}, 35),
    "torchvision.convnext_tiny": Counts({LAYER: 18, "torchvision.models.convnext.LayerNorm2d": 5}),
    "timm.resnet26": Counts({BATCH: 29}, 25, 8),
    "timm.efficientnet_b0": Counts({"timm.layers.norm_act.BatchNormAct2d": 49}),
    "timm.mobilenetv3_small_100": Counts(
        {"timm.layers.norm_act.BatchNormAct2d": 34}, 5
    ),  # the others have hard swish, or nothing
    "timm.regnetx_002": Counts({"timm.layers.norm_act.BatchNormAct2d": 44}, 27),
    "timm.convnext_atto": Counts({"timm.layers.norm.LayerNorm2d": 17}),
    "timm.vit_tiny_patch16_224": Counts({"timm.layers.norm.LayerNorm": 25}),
    "transformers.bert": Counts({LAYER: 5}),
    "transformers.gpt2": Counts({LAYER: 5}),
    "transformers.llama": Counts({"transformers.models.llama.modeling_llama.LlamaRMSNorm": 5}),
    "transformers.vit": Counts({LAYER: 5}),
}


def test_every_model_is_counted() -> None:
    assert COUNTS.keys() == ZOO.keys()


@each_model()
def test_every_norm_is_in_the_report(entry: ZooModel) -> None:
    model, counts = entry.model(), COUNTS[entry.name]
    before = norms_of(model)
    assert len(before) == sum(counts.norms.values())
    report = fastnorm.convert(model)
    replaced = [record.name for record in report.replaced]
    assert len(set(replaced)) == len(replaced)
    left = [record.name for record in report.left if record.name in before]
    assert set(replaced) == set(before), f"left: {left}"
    found = {kind: sum(r.from_class == kind for r in report.replaced) for kind in counts.norms}
    assert found == counts.norms
    assert (len(report.fused), sum(bool(r.residual) for r in report.fused)) == (counts.fused, counts.residual), report
    again = fastnorm.convert(model)
    assert (again.replaced, again.fused) == ((), ())


@each_model()
def test_only_classes_change(entry: ZooModel) -> None:
    """No parameter, buffer, hook or attribute is another one, no key moves, and nothing random is drawn."""
    model = entry.model()
    modules = dict(model.named_modules())
    tensors = [*model.named_parameters(), *model.named_buffers()]
    state = model.state_dict()
    metadata, drawn = copy.deepcopy(state._metadata), torch.get_rng_state()
    fastnorm.convert(model)
    assert torch.equal(torch.get_rng_state(), drawn)
    after = [*model.named_parameters(), *model.named_buffers()]
    assert [(name, id(t)) for name, t in after] == [(name, id(t)) for name, t in tensors]
    assert {name for name, _ in model.named_modules()} == set(modules)
    for name, norm in norms_of(model).items():
        assert isinstance(norm, type(modules[name])) and norm is modules[name]
    assert list(model.state_dict()) == list(state) and model.state_dict()._metadata == metadata


@each_model(slow=HEAVY)
def test_revert_gives_the_original_back(entry: ZooModel) -> None:
    model, batch = entry.model(), entry.batch()
    original = copy.deepcopy(model)
    contents = {name: (type(m), dict(m.__dict__)) for name, m in model.named_modules()}
    fastnorm.convert(model)
    fastnorm.revert(model)
    assert list(contents) == [name for name, _ in model.named_modules()]
    for name, module in model.named_modules():
        kind, attributes = contents[name]
        assert type(module) is kind, name
        assert module.__dict__.keys() == attributes.keys(), name
        assert all(module.__dict__[key] is value for key, value in attributes.items()), name
    assert repr(model) == repr(original)
    assert_same_bits(trained(model, batch), trained(original, batch))


@each_model(slow=HEAVY)
def test_copies_are_converted_models(entry: ZooModel) -> None:
    """deepcopy, and torch.save and load of the whole model: same classes, same bits."""
    model, batch = entry.model(), entry.batch()
    fastnorm.convert(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), torch.load(file, weights_only=False)]
    classes, expected = [type(m) for m in model.modules()], trained(model, batch)
    for another in copies:
        assert [type(m) for m in another.modules()] == classes
        assert_same_bits(trained(another, batch), expected)


@each_model(slow=HEAVY)
def test_state_dicts_load_both_ways(entry: ZooModel) -> None:
    original, converted = entry.model(seed=1), entry.model(seed=2)
    fastnorm.convert(converted)
    for source, target in ((original, converted), (entry.model(seed=3), original)):
        target.load_state_dict(source.state_dict(), strict=True)
        assert_same_bits(target.state_dict(), source.state_dict())
    original.load_state_dict(converted.state_dict(), strict=True)
    assert_same_bits(original.state_dict(), converted.state_dict())


@each_model(slow=HEAVY)
def test_an_optimizer_built_before(entry: ZooModel) -> None:
    """It holds the parameters that the converted model trains."""
    model, batch = entry.model(), entry.batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    fastnorm.convert(model)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in model.parameters()]
    loss_of(call(model, batch)).backward()
    before = [p.detach().clone() for p in held]
    optimizer.step()
    for p, old in zip(held, before, strict=True):
        assert p.grad is not None and torch.equal(optimizer.state[p]["momentum_buffer"], p.grad)
        assert_same_bits(p.detach(), old.add(p.grad, alpha=-0.1))


def test_the_root_itself() -> None:
    norm = nn.BatchNorm2d(3)
    report = fastnorm.convert(norm)
    assert type(norm) is fastnorm.BatchNorm2d and [record.name for record in report.replaced] == [""]
