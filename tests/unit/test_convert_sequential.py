"""norm -> activation in nn.Sequential: what is fused, what the norm and its neighbours still are, and what is not."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastnorm
from tests.unit.convert_models import chain, check_same, fusions, spread


@pytest.mark.parametrize(
    "act",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.LeakyReLU(0.2),
        nn.ReLU6(inplace=True),
        fastnorm.GeneralRelu(0.1, 0.4, 1.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("training", [True, False])
def test_fused_models_compute_as_before(act: nn.Module, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    original = chain(act).train(training)
    converted = copy.deepcopy(original)
    report = fastnorm.convert(converted)
    assert [(record.name, record.inside, record.residual) for record in report.fused] == [("1", "", False)]
    x = torch.randn(4, 3, 6, 6)
    check_same(original, converted, x)
    check_same(original.double(), converted.double(), x.double())
    assert fusions(converted, x.double(), monkeypatch) == 1


def test_without_fuse_nothing_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain()
    assert fastnorm.convert(model, fuse=False).fused == ()
    assert fusions(model, torch.randn(2, 3, 6, 6), monkeypatch) == 0


def test_identities_are_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Identity(), nn.Identity(), nn.ReLU())
    assert len(fastnorm.convert(model).fused) == 1
    assert fusions(model, torch.randn(2, 3, 6, 6), monkeypatch) == 1
    model[1].register_forward_hook(lambda *_: None)
    assert fusions(model, torch.randn(2, 3, 6, 6), monkeypatch) == 0


@pytest.mark.parametrize("act", [nn.GELU(), nn.SiLU(), nn.PReLU(), nn.RReLU(), nn.Hardtanh(0, 6), nn.ELU()], ids=repr)
def test_other_activations_are_not_fused(act: nn.Module) -> None:
    assert fastnorm.convert(chain(act)).fused == ()


def test_the_norm_alone_stays_a_plain_norm() -> None:
    model = chain()
    fastnorm.convert(model)
    assert (model[1](torch.randn(4, 4, 5, 5)) < 0).any()
    assert (model[:2](torch.randn(4, 3, 5, 5)) < 0).any()
    assert not (model[:3](torch.randn(4, 3, 5, 5)) < 0).any()


@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_see_what_they_saw(index: int, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = chain().eval(), torch.randn(2, 3, 6, 6)
    expected = model[: index + 1](x)
    seen: list[torch.Tensor] = []
    if when == "before":
        model[index].register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    report = fastnorm.convert(model)
    if when == "before":
        assert [record.reason for record in report.left] == ["it carries hooks" if index == 1 else "2 carries hooks"]
    else:
        assert len(report.fused) == 1
        model[index].register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    assert fusions(model, x, monkeypatch) == 0
    torch.testing.assert_close(seen[0], expected)


def test_backward_hooks_and_global_hooks_end_the_fusion(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = chain(), torch.randn(2, 3, 6, 6)
    model[2].inplace = False  # torch's backward hooks and in-place activations do not go together
    fastnorm.convert(model)
    handle = model[1].register_full_backward_hook(lambda *_: None)
    assert fusions(model, x, monkeypatch) == 0
    handle.remove()
    assert fusions(model, x, monkeypatch) == 1
    calls: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: calls.append(type(m).__name__))
    try:
        assert fusions(model, x, monkeypatch) == 0
    finally:
        handle.remove()
    assert calls == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "Sequential"]


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.__setitem__(2, nn.GELU()),
        lambda model: model.__setitem__(1, nn.BatchNorm2d(4)),
        lambda model: model.append(nn.Tanh()),
        lambda model: model.__delitem__(2),
        lambda model: model.insert(2, nn.Tanh()),
        lambda model: setattr(model[1], "activation", fastnorm.GeneralRelu(sub=1.0).activation),
        lambda model: setattr(model[2], "forward", torch.tanh),
    ],
    ids=["activation", "norm", "append", "delete", "insert", "own activation", "instance forward"],
)
def test_a_changed_model_does_what_it_now_says(change: object) -> None:
    model = chain().eval()
    fastnorm.convert(model)
    change(model)  # type: ignore[operator]
    x = torch.randn(2, 3, 6, 6)
    expected = x
    for module in model:
        expected = module(expected)
    assert torch.equal(model(x), expected)


def test_changed_numbers_of_an_activation_count() -> None:
    model = chain(nn.LeakyReLU(0.2)).eval()
    fastnorm.convert(model)
    model[2].negative_slope = 0.9
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(model(x), model[3](nn.functional.leaky_relu(model[:2](x), 0.9)))


def test_sync_batch_norm_conversion_keeps_the_activation() -> None:
    original, x = chain().eval(), torch.randn(2, 3, 6, 6)
    converted = copy.deepcopy(original)
    fastnorm.convert(converted)
    check_same(original, nn.SyncBatchNorm.convert_sync_batchnorm(converted), x)


class OwnChain(nn.Sequential):
    pass


class OwnForward(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self:
            x = module(x) + 1
        return x


class Registered(nn.Sequential):
    known: list[type] = []  # noqa: RUF012

    def __init_subclass__(cls) -> None:
        cls.known.append(cls)


class OwnPickle(nn.Sequential):
    def __reduce__(self) -> tuple[object, ...]:
        return OwnPickle, tuple(self)


def test_subclasses_of_sequential() -> None:
    model = OwnChain(nn.BatchNorm1d(4), nn.ReLU())
    assert len(fastnorm.convert(model).fused) == 1
    assert isinstance(model, OwnChain)
    assert type(model).__name__ == "OwnChain"
    assert "fused: 0 -> GeneralRelu()" in repr(model)
    fastnorm.revert(model)
    assert type(model) is OwnChain


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Registered, "its class acts on being subclassed"),
        (OwnPickle, "its class pickles itself in its own way"),
    ],
)
def test_classes_that_cannot_be_exchanged(make: type[nn.Sequential], reason: str) -> None:
    model = make(nn.BatchNorm1d(4), nn.ReLU())
    report = fastnorm.convert(model)
    assert report.fused == ()
    assert [record.reason for record in report.left] == [reason]
    assert type(model) is make


def test_a_sequential_with_a_forward_of_its_instance() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU())
    model.forward = torch.tanh  # type: ignore[method-assign]
    report = fastnorm.convert(model)
    assert [record.reason for record in report.left] == ["its forward was replaced on the instance"]


def test_an_activation_of_its_own_already() -> None:
    report = fastnorm.convert(nn.Sequential(fastnorm.BatchNorm1d(4, act=nn.ReLU()), nn.LeakyReLU()))
    assert [record.reason for record in report.left] == ["it has an activation of its own already"]


class Keeps(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = weakref.ref(x)
        return x + 1


class Looks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.gone = self.before() is None
        return x


def test_values_are_dropped_after_their_last_use() -> None:
    keeps, looks = Keeps(), Looks()
    looks.before = lambda: keeps.seen()
    model = nn.Sequential(nn.Linear(4, 4), keeps, nn.BatchNorm1d(4), nn.ReLU(), looks)
    assert len(fastnorm.convert(model).fused) == 1
    with torch.no_grad():
        model(torch.randn(3, 4))
    assert looks.gone


def test_a_pickle_of_other_code_loads_unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = OwnChain(nn.BatchNorm1d(4), nn.ReLU())
    fastnorm.convert(model)
    stored = pickle.dumps(model)
    monkeypatch.setattr(OwnChain, "added_later", lambda self: 1, raising=False)
    loaded = pickle.loads(stored)
    assert type(loaded) is OwnChain
    assert type(loaded[0]) is fastnorm.BatchNorm1d


def test_double_backward_and_checkpointing() -> None:
    original = spread(nn.Sequential(nn.BatchNorm1d(3), nn.LeakyReLU(0.2), nn.Linear(3, 2))).double()
    converted = copy.deepcopy(original)
    assert len(fastnorm.convert(converted).fused) == 1
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(converted, (x,))
    assert torch.autograd.gradgradcheck(converted, (x,))
    dy = torch.randn(4, 2, dtype=torch.float64)
    expected = torch.autograd.grad(converted(x), x, dy)[0]
    assert torch.equal(torch.autograd.grad(checkpoint(converted, x, use_reentrant=False), x, dy)[0], expected)
