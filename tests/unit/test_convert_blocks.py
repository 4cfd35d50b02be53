"""norm (+ residual) -> activation in forwards: what is fused, and that it stays right when things change."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnorm
from tests.unit.convert_blocks import (
    SHAPE,
    Basic,
    Block,
    Defaults,
    Downsampling,
    General,
    InPlace,
    Lists,
    Methods,
    Modes,
    Nested,
    Sixes,
    Swapped,
    Torchy,
    TwoNorms,
)
from tests.unit.convert_models import check_same, fusions, spread, tree

FUSED: list[tuple[type[nn.Module], list[tuple[str, bool]]]] = [
    (Basic, [("bn1", False), ("bn2", True)]),
    (Downsampling, [("bn1", False), ("bn2", True)]),
    (Swapped, [("bn1", True)]),
    (Torchy, [("bn1", True), ("bn2", False)]),
    (Methods, [("bn1", False), ("bn2", True)]),
    (Sixes, [("bn1", False), ("bn2", False)]),
    (TwoNorms, [("bn2", True)]),
    (General, [("bn1", False)]),
    (Modes, [("bn1", False)]),
    (Defaults, [("bn1", False)]),
    (Lists, [("bn1", False)]),
    (InPlace, [("bn1", False)]),
    (Nested, [("norms.0", False), ("norms.1", False), ("norms.2", False)]),
]


@pytest.mark.parametrize(("make", "expected"), FUSED, ids=[make.__name__ for make, _ in FUSED])
@pytest.mark.parametrize("training", [True, False])
def test_fused_blocks_compute_as_before(
    make: type[nn.Module], expected: list[tuple[str, bool]], training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = spread(make()).train(training)
    converted = copy.deepcopy(original)
    report = fastnorm.convert(converted)
    assert [(record.name, record.residual) for record in report.fused] == expected
    assert isinstance(converted, make)
    x = torch.randn(SHAPE)
    check_same(original, converted, x)
    check_same(original.double(), converted.double(), x.double())
    if make is not Nested:
        assert fusions(converted, x.double(), monkeypatch) == len(expected)
    before = tree(original)
    fastnorm.revert(converted)
    assert {name: kind for name, (kind, _) in tree(converted).items()} == {n: kind for n, (kind, _) in before.items()}


def test_lists_of_tensors_are_fused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Lists().eval()
    x = torch.randn(SHAPE)
    expected = model([x, x])
    fastnorm.convert(model)
    assert fusions(model, [x, x], monkeypatch) == 1  # type: ignore[arg-type]
    torch.testing.assert_close(model([x, x]), expected)


def test_arguments_other_than_the_defaults_take_the_original_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Defaults().eval(), torch.randn(SHAPE)
    expected = model(x), model(x, 3.0), model(x, mask=x)
    fastnorm.convert(model)
    for want, got in zip(expected, (model(x), model(x, 3.0), model(x=x, mask=x)), strict=True):
        torch.testing.assert_close(got, want)
    assert fusions(model, x, monkeypatch) == 1


class Broadcast(Block):
    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        return self.relu(self.bn1(x) + r)


@pytest.mark.parametrize(
    "residual",
    [torch.randn(4, 1, 1), torch.randn(SHAPE).double(), torch.randint(-3, 3, SHAPE), torch.randn(2, *SHAPE)],
    ids=["broadcast", "other dtype", "integers", "larger"],
)
def test_other_residuals_are_added_as_before(residual: Tensor) -> None:
    model = spread(Broadcast()).eval()
    x = torch.randn(SHAPE)
    expected = model(x, residual)
    assert len(fastnorm.convert(model).fused) == 1
    got = model(x, residual)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got.float(), expected.float())


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "bn1", nn.BatchNorm2d(4).eval()),
        lambda m: setattr(m, "relu", nn.GELU()),
        lambda m: setattr(m, "downsample", nn.Conv2d(4, 4, 1)),
        lambda m: setattr(m, "drop", nn.Tanh()),
        lambda m: setattr(m, "scale", 3.0),
        lambda m: m.bn1.register_forward_hook(lambda module, inputs, output: output * 2),
        lambda m: m.relu.register_forward_hook(lambda module, inputs, output: output * 2),
    ],
    ids=["norm", "activation", "downsample", "identity", "number", "hook on the norm", "hook on the activation"],
)
@pytest.mark.parametrize("make", [Basic, Swapped])
def test_a_changed_block_does_what_it_now_says(make: type[nn.Module], change: Callable[[nn.Module], object]) -> None:
    torch.manual_seed(3)
    original = spread(make()).eval()
    converted = copy.deepcopy(original)
    fastnorm.convert(converted)
    for model in (original, converted):
        torch.manual_seed(4)
        change(model)
    x = torch.randn(SHAPE)
    torch.testing.assert_close(converted(x), original(x))


class TypedChild(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        return self.drop(y) if isinstance(self.drop, nn.Identity) else y * 2


def test_a_child_of_another_class_counts() -> None:
    model, x = TypedChild().eval(), torch.randn(SHAPE)
    assert len(fastnorm.convert(model).fused) == 1
    model.drop = nn.Tanh()
    assert torch.equal(model(x), F.relu(model.bn1(x)) * 2)


def test_a_method_patched_into_the_class_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Swapped().eval(), torch.randn(SHAPE)
    fastnorm.convert(model)
    monkeypatch.setattr(Swapped, "forward", lambda self, x: x * 5)
    assert torch.equal(model(x), x * 5)


def test_the_block_is_what_it_was_to_everybody_else() -> None:
    original = spread(Basic())
    model = copy.deepcopy(original)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls: list[str] = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append("block"))
    model.conv.register_forward_hook(lambda module, inputs, output: calls.append("conv"))
    fastnorm.convert(model)
    assert (type(model).__name__, type(model).__qualname__, type(model).__module__) == (
        "Basic",
        "Basic",
        "tests.unit.convert_blocks",
    )
    assert "fused: bn1 -> GeneralRelu(), bn2 + residual -> GeneralRelu()" in repr(model)
    assert (model.bn1(torch.randn(SHAPE)) < 0).any()
    model(torch.randn(SHAPE)).square().sum().backward()
    optimizer.step()
    assert calls == ["block", "conv", "conv"]
    assert not torch.equal(model.bn1.weight, original.bn1.weight)
    model.half()
    assert model.bn1.weight.dtype == torch.float16
    assert model.train(False).bn2.training is False


def test_derivatives_of_a_block() -> None:
    model = spread(Basic()).double()
    fastnorm.convert(model)
    x = torch.randn(2, 4, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,))
    assert torch.autograd.gradgradcheck(model, (x,))


def test_functional_calls_see_the_parameters_that_they_are_given() -> None:
    original = spread(Downsampling()).eval()
    model = copy.deepcopy(original)
    fastnorm.convert(model)
    others = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    x = torch.randn(SHAPE)
    expected = torch.func.functional_call(original, others, (x,))
    torch.testing.assert_close(torch.func.functional_call(model, others, (x,)), expected)
