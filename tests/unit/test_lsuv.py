"""lsuv_: it converges whatever the activation, says why where it cannot, and leaves everything else as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnorm
from fastnorm.init import LsuvReport, lsuv_

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "general_relu": lambda: fastnorm.GeneralRelu(0.1, 0.4),
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}
TOL = 1e-3


def images(seed: int = 0) -> Tensor:
    """Of a mean and a std that are not 0 and 1."""
    return torch.randn(32, 1, 12, 12, generator=torch.Generator().manual_seed(seed)) * 0.35 + 0.28


def convnet(act: Callable[[], nn.Module], *, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=bias), act(),
        nn.Conv2d(8, 16, 3, stride=2, bias=bias), act(),
        nn.Conv2d(16, 16, 3, stride=2, bias=bias), act(),
        nn.Flatten(), nn.Linear(64, 10, bias=bias), act(),
    )  # fmt: skip


def outputs(model: nn.Module, points: list[nn.Module], *args: Any) -> list[Tensor]:
    """What modules give, measured here and not by the library."""
    found: list[Tensor] = []
    handles = [m.register_forward_hook(lambda m, given, out: found.append(out.detach().double())) for m in points]
    model(*args)
    for handle in handles:
        handle.remove()
    return found


def layers_of(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def assert_unit(values: list[Tensor], *, mean: bool = True) -> None:
    for value in values:
        assert abs(float(value.std()) - 1) < TOL, value.std()
        assert not mean or abs(float(value.mean())) < TOL, value.mean()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_layers_converge_whatever_the_activation(name: str) -> None:
    net, x = convnet(ACTIVATIONS[name]), images()
    report = lsuv_(net, x)
    assert report.converged and len(report.rows) == 4
    assert_unit(outputs(net, layers_of(net), x))
    for row in report.rows:
        assert abs(row.after.std - 1) < TOL and abs(row.after.mean) < TOL and row.tries <= 2
        assert abs(row.before.std - 1) > 0.1, "there was something to do"


def test_behind_the_activation_as_the_lessons_do_it() -> None:
    net, x = convnet(ACTIVATIONS["general_relu"]), images()
    report = lsuv_(net, x, measure="activation")
    assert report.converged, report
    assert_unit(outputs(net, [m for m in net if isinstance(m, fastnorm.GeneralRelu)], x))


def test_dropout_is_no_activation() -> None:
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.Dropout2d(0.1), nn.Identity(), fastnorm.GeneralRelu(0.1, 0.4)),
        images(),
    )
    net.eval()
    assert lsuv_(net, x, measure="activation").converged
    assert_unit(outputs(net, [net[3]], x))


def test_behind_an_activation_that_is_fused_into_a_norm() -> None:
    """The norm undoes what the layer's scale does: said, after one try, and the weights are what they were."""
    norm = fastnorm.BatchNorm2d(8, act=fastnorm.GeneralRelu(0.1, 0.4))
    net = nn.Sequential(nn.Conv2d(1, 8, 3), norm)
    before = net[0].weight.clone()
    (row,) = lsuv_(net, images(), measure="activation").rows
    assert not row.converged and "a norm stands between" in row.reason and row.tries == 1
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize(
    "name, why", [("relu", "nothing behind it is below 0"), ("softplus", "below 0"), ("tanh", r"too narrow for mean 0")]
)
def test_what_cannot_be_reached_is_said_and_the_best_is_kept(name: str, why: str) -> None:
    net, x = convnet(ACTIVATIONS[name]), images()
    report = lsuv_(net, x, measure="activation", max_iter=20)
    assert not report.converged
    for row in report.rows:
        assert not row.converged and row.reason.replace("[-1, 1]", "") and why in row.reason
        assert max(abs(row.after.mean), abs(row.after.std - 1)) <= max(abs(row.before.mean), abs(row.before.std - 1))
    assert why in str(report)


def test_without_bias_only_the_std() -> None:
    net, x = convnet(ACTIVATIONS["relu"], bias=False), images()
    assert lsuv_(net, x).converged
    assert_unit(outputs(net, layers_of(net), x), mean=False)


class Twice(nn.Module):
    """One layer that runs twice, and one that runs before it was registered."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.shared, self.first = (nn.Linear(8, 8) for _ in range(3))
        self.unused = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.shared(torch.relu(self.shared(x)))))


def test_execution_order_and_shared_modules() -> None:
    torch.manual_seed(0)
    net, x = Twice(), torch.randn(64, 8)
    report = lsuv_(net, x)
    assert [row.name for row in report.rows] == ["first", "shared", "last", "unused"]
    assert [row.converged for row in report.rows] == [True, True, True, False]
    assert "does not run" in report.rows[-1].reason
    seen = outputs(net, [net.first, net.shared, net.last], x)
    assert_unit([seen[0], seen[1], seen[3]])  # shared: its first call


def test_tied_weights_are_adjusted_once() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    net[2].weight = net[0].weight
    report = lsuv_(net, torch.randn(64, 8))
    assert report.rows[0].converged and "also that of '0'" in report.rows[1].reason
    assert abs(report.rows[0].after.std - 1) < TOL


def test_dropout_is_the_same_at_every_try() -> None:
    """Otherwise the goal would move, and the outcome depend on how often it was tried."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 64))
    x = torch.randn(64, 8)
    rng = torch.get_rng_state()
    assert lsuv_(net, x).converged
    torch.set_rng_state(rng)
    assert_unit(outputs(net, [net[0], net[2]], x))


@pytest.mark.parametrize("how", ("types", "type", "given"))
def test_only_the_layers_asked_for(how: str) -> None:
    net, x = convnet(ACTIVATIONS["relu"]), images()
    before = [m.weight.clone() for m in layers_of(net)]
    asked: Any = {"types": (nn.Linear,), "type": nn.Linear, "given": [net[7]]}[how]
    report = lsuv_(net, x, modules=asked)
    assert [row.kind for row in report.rows] == ["Linear"] and report.converged
    same = [torch.equal(a, m.weight) for a, m in zip(before, layers_of(net), strict=True)]
    assert same == [True, True, True, False]


def test_arguments_of_the_model() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.layer(x + y)

    x, y = torch.randn(32, 4), torch.randn(32, 4)
    for batch in ((x, y), [x, y], {"y": y, "x": x}):
        net = Two()
        assert lsuv_(net, batch).converged
        assert_unit(outputs(net, [net.layer], x, y))


@pytest.mark.parametrize("layer", (nn.Conv1d(3, 8, 3), nn.Conv3d(3, 4, 2), nn.ConvTranspose2d(3, 4, 3)), ids=str)
def test_other_layers(layer: nn.Module) -> None:
    dims = {nn.Conv1d: (20,), nn.Conv3d: (5, 5, 5), nn.ConvTranspose2d: (6, 6)}[type(layer)]
    assert lsuv_(nn.Sequential(layer), torch.randn(16, 3, *dims)).converged


def test_parametrized_weight_is_refused_with_the_reason() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    (row,) = lsuv_(nn.Sequential(layer), torch.randn(8, 4)).rows
    assert "no parameter of its own" in row.reason


@pytest.mark.parametrize(
    "batch, why", [(torch.zeros(8, 4), "constant"), (torch.full((8, 4), torch.nan), "not finite")], ids=str
)
def test_hopeless_batches(batch: Tensor, why: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False))
    before = net[0].weight.clone()
    (row,) = lsuv_(net, batch).rows
    assert why in row.reason and torch.equal(net[0].weight, before)


def test_bf16() -> None:
    """Where the weight's dtype has no finer steps, the nearest is kept: a bf16 number is good to 1 / 512."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).bfloat16()
    report = lsuv_(net, torch.randn(128, 64).bfloat16(), tol=2 / 512)
    assert report.converged, report


def test_activation_that_no_module_computes() -> None:
    net = Twice()
    report = lsuv_(net, torch.randn(64, 8), measure="activation")
    assert all("no activation module" in row.reason for row in report.rows[:3])


def test_report_is_a_table() -> None:
    report = lsuv_(convnet(nn.ReLU), images())
    lines = str(report).splitlines()
    assert len(lines) == 5 and "before: mean" in lines[0] and "Conv2d" in lines[1] and "Linear" in lines[4]
    assert not LsuvReport([report.rows[0], *lsuv_(Twice(), torch.randn(9, 8)).rows]).converged


def test_wrong_arguments() -> None:
    net = convnet(nn.ReLU)
    with pytest.raises(ValueError, match="measure must be"):
        lsuv_(net, images(), measure="output")
    with pytest.raises(ValueError, match="must be positive"):
        lsuv_(net, images(), tol=0.0)
    with pytest.raises(ValueError, match="no layer"):
        lsuv_(nn.ReLU(), images())
    with pytest.raises(ValueError, match="ReLU has none"):
        lsuv_(net, images(), modules=[net[1]])
