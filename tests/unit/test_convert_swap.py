"""`convert` exchanges classes and nothing else; `revert` undoes it to the last attribute."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import fastnorm
from tests.unit.convert_models import check_same, spread, tree

NORMS = [
    (nn.BatchNorm1d(6), (5, 6)),
    (nn.BatchNorm1d(6, affine=False), (5, 6, 3)),
    (nn.BatchNorm2d(6, eps=1e-3, momentum=None), (5, 6, 3, 2)),
    (nn.BatchNorm2d(6, track_running_stats=False), (5, 6, 3, 2)),
    (nn.BatchNorm3d(6), (2, 6, 3, 2, 2)),
    (nn.SyncBatchNorm(6), (5, 6, 3, 2)),
    (nn.InstanceNorm1d(6, affine=True, track_running_stats=True), (5, 6, 4)),
    (nn.InstanceNorm2d(6), (5, 6, 3, 2)),
    (nn.InstanceNorm3d(6), (5, 6, 3, 2, 2)),
    (nn.LayerNorm((3, 2)), (5, 6, 3, 2)),
    (nn.LayerNorm(6, bias=False), (5, 3, 6)),
    (nn.GroupNorm(3, 6), (5, 6, 3, 2)),
    (nn.RMSNorm(6), (5, 3, 6)),
]


def _label(value: object) -> str:
    return repr(value) if isinstance(value, nn.Module) else ""


@pytest.mark.parametrize(("norm", "shape"), NORMS, ids=_label)
@pytest.mark.parametrize("training", [True, False])
def test_each_norm_computes_as_before(norm: nn.Module, shape: tuple[int, ...], training: bool) -> None:
    if isinstance(norm, nn.SyncBatchNorm) and training:
        pytest.skip("torch's needs a GPU to train; tests/integration/test_sync_batch_norm.py compares them")
    original = spread(copy.deepcopy(norm)).train(training)
    converted = copy.deepcopy(original)
    report = fastnorm.convert(converted)
    assert [record.to_class for record in report.replaced] == [f"fastnorm.{type(norm).__name__}"]
    assert isinstance(converted, type(norm))
    check_same(original, converted, torch.randn(shape))


@pytest.mark.parametrize("norm", [norm for norm, _ in NORMS], ids=_label)
def test_revert_gives_back_every_attribute(norm: nn.Module) -> None:
    model = nn.Sequential(copy.deepcopy(norm), nn.ReLU())
    before, metadata = tree(model), model.state_dict()._metadata
    fastnorm.convert(model)
    assert tree(model) != before
    assert model.state_dict()._metadata == metadata
    report = fastnorm.revert(model)
    assert tree(model) == before
    assert {record.name for record in report.replaced} == {"", "0"}


def test_what_was_parametrized_since_keeps_its_class() -> None:
    model = nn.Sequential(nn.LayerNorm((4, 4)), nn.LayerNorm(4))
    fastnorm.convert(model)
    nn.utils.parametrizations.weight_norm(model[0])
    report = fastnorm.revert(model)
    assert [(record.name, record.reason) for record in report.left] == [("0", "parametrized since it was converted")]
    assert isinstance(model[0], fastnorm.LayerNorm)
    assert type(model[1]) is nn.LayerNorm
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    fastnorm.revert(model)
    assert type(model[0]) is nn.LayerNorm


def test_a_norm_built_as_ours_stays_ours() -> None:
    model = nn.Sequential(fastnorm.BatchNorm2d(4, act=nn.ReLU()), nn.BatchNorm2d(4))
    assert [record.name for record in fastnorm.convert(model).replaced] == ["1"]
    fastnorm.revert(model)
    assert [type(module) for module in model] == [fastnorm.BatchNorm2d, nn.BatchNorm2d]


def test_parameters_hooks_and_optimizers_are_the_same_objects() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[torch.Tensor] = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    before = dict(model.named_parameters())
    fastnorm.convert(model)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    weight = model[1].weight.detach().clone()
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    assert len(seen) == 1
    assert not torch.equal(model[1].weight, weight)


def test_state_dicts_load_both_ways() -> None:
    original = spread(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4)))
    converted = copy.deepcopy(original)
    fastnorm.convert(converted)
    with torch.no_grad():
        converted[0].running_mean += 1
    original.load_state_dict(converted.state_dict(), strict=True)
    assert torch.equal(original[0].running_mean, converted[0].running_mean)
    with torch.no_grad():
        original[0].weight += 1
    converted.load_state_dict(original.state_dict(), strict=True)
    assert torch.equal(original[0].weight, converted[0].weight)


def test_a_shared_norm_counts_once() -> None:
    norm = nn.LayerNorm(4)
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm)})
    report = fastnorm.convert(model)
    assert [record.name for record in report.replaced] == ["a"]
    assert type(model["b"][0]) is fastnorm.LayerNorm


def test_a_second_conversion_has_nothing_to_do_until_layers_are_added() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU())
    fastnorm.convert(model)
    again = fastnorm.convert(model)
    assert (again.replaced, again.fused, again.left) == ((), (), ())
    model.extend([nn.LayerNorm(4), nn.LeakyReLU(0.3)])
    added = fastnorm.convert(model)
    assert [record.name for record in added.replaced] == ["2"]
    assert {record.name for record in added.fused} == {"0", "2"}


class OwnNorm(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


class OddNorm(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.norm()


def _parametrized() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.LayerNorm((4, 4)))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: OwnNorm(4), "a subclass of torch.nn.BatchNorm2d that fastnorm does not know (.*OwnNorm)"),
        (OddNorm, "no layer that fastnorm knows"),
        (lambda: nn.LazyBatchNorm2d(), "lazy: it takes its class at its first batch; convert after that"),
        (lambda: torch.jit.script(nn.BatchNorm2d(4)), "a TorchScript module has no Python class to exchange"),
        (_parametrized, "parametrized: torch has exchanged its class already"),
    ],
    ids=["subclass", "unknown", "lazy", "scripted", "parametrized"],
)
def test_what_is_left_says_why(make: object, reason: str) -> None:
    module = make()  # type: ignore[operator]
    kind = type(module)
    report = fastnorm.convert(nn.ModuleList([module]))
    assert report.replaced == ()
    assert [record.name for record in report.left] == ["0"]
    pattern, _, name = reason.partition(" (.*")
    assert report.left[0].reason.startswith(pattern)
    assert name.rstrip(")") in report.left[0].reason
    assert type(module) is kind


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_dtypes(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()).to(dtype)
    fastnorm.convert(model)
    assert model(torch.randn(2, 4, 3, 3, dtype=dtype)).dtype == dtype


def test_meta_models() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, device="meta"), nn.ReLU())
    fastnorm.convert(model)
    assert model(torch.empty(2, 4, 3, 3, device="meta")).shape == (2, 4, 3, 3)


def test_pruned_layers_keep_their_hooks() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU())
    prune.l1_unstructured(model[0], "weight", amount=2)
    x = torch.randn(5, 4)
    expected = model.eval()(x)
    report = fastnorm.convert(model)
    assert [record.reason for record in report.left] == ["it carries hooks"]
    torch.testing.assert_close(model(x), expected)


def test_reports_are_data_and_text() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4), nn.ReLU(), OddNorm())
    report = fastnorm.convert(model)
    told = json.loads(json.dumps(report.to_dict()))
    assert told["replaced"][0] == {
        "name": "0",
        "from_class": "torch.nn.BatchNorm1d",
        "to_class": "fastnorm.BatchNorm1d",
    }
    assert told["left"][0]["name"] == "4"
    lines = str(report).splitlines()
    assert lines[0] == "2 replaced, 2 fused, 1 left"
    assert lines[1].split() == ["replaced", "2", "torch.nn.BatchNorm1d", "->", "fastnorm.BatchNorm1d", "[0,", "2]"]
    assert len(lines) == 4
    with pytest.raises(AttributeError):
        report.fused = ()  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(report)) == report


def test_models_only() -> None:
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got list"):
        fastnorm.convert([nn.BatchNorm2d(3)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got NoneType"):
        fastnorm.revert(None)  # type: ignore[arg-type]
