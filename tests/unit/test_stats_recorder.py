"""ActivationStats: what the hooks record, when, and what is made of it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnorm
from fastnorm import ActivationStats, GeneralRelu


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), GeneralRelu(0.1, 0.4), nn.Conv2d(4, 8, 3), GeneralRelu(0.1, 0.4), nn.Flatten()
    )


def batch(seed: int = 0) -> Tensor:
    return torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_records_what_plain_torch_sees() -> None:
    model = net()
    with ActivationStats(model, GeneralRelu) as stats:
        for seed in range(3):
            model(batch(seed))
    assert [layer.label for layer in stats.layers] == ["1 GeneralRelu", "3 GeneralRelu"]
    for layer, until in zip(stats.layers, (2, 4), strict=True):
        for seed in range(3):
            y = model[:until](batch(seed)).detach()
            torch.testing.assert_close(layer.means[seed], y.mean())
            torch.testing.assert_close(layer.stds[seed], y.std())
            hist = torch.histc(y.abs(), 40, 0, 10)
            assert torch.equal(layer.hists[seed].float(), hist)
            assert float(layer.smallest[seed]) == pytest.approx(float(hist[0]) / y.numel())


def test_other_bins() -> None:
    model = net()
    with ActivationStats(model, GeneralRelu, bins=7, range=(0.5, 2.5)) as stats:
        model(batch())
    y = model[:2](batch()).detach()
    assert torch.equal(stats["1"].hists[0].float(), torch.histc(y.abs(), 7, 0.5, 2.5))


@pytest.mark.parametrize(
    "filter, names",
    [
        (None, ["0", "1", "2", "3", "4"]),
        (nn.Conv2d, ["0", "2"]),
        ((nn.Conv2d, nn.Flatten), ["0", "2", "4"]),
        (lambda m: isinstance(m, GeneralRelu), ["1", "3"]),
        ("given", ["2"]),
        ("given_tuple", ["0", "3"]),
    ],
    ids=["none", "type", "types", "function", "modules", "tuple"],
)
def test_filter(filter: Any, names: list[str]) -> None:
    model = net()
    given = {"given": [model[2]], "given_tuple": (model[0], model[3])}
    filter = given[filter] if isinstance(filter, str) else filter
    assert [layer.name for layer in ActivationStats(model, filter).layers] == names


def test_only_training_batches() -> None:
    model = net().eval()
    stats = ActivationStats(model, GeneralRelu)
    model(batch())
    assert not stats["1"].records
    model.train()
    model(batch())
    assert len(stats["1"].records) == 1
    always = ActivationStats(model.eval(), GeneralRelu, training_only=False)
    model(batch())
    assert len(always["1"].records) == 1 and len(stats["1"].records) == 1


def test_hooks_come_off() -> None:
    model = net()
    stats = ActivationStats(model)
    with stats:
        model(batch())
    assert not any(module._forward_hooks for module in model.modules())
    model(batch())
    assert len(stats["0"].records) == 1
    with pytest.raises(ZeroDivisionError), ActivationStats(model):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in model.modules())


def test_training_is_not_changed() -> None:
    """The same bits of outputs and gradients, and no activation is kept alive."""
    plain, hooked = net(), net()
    y = plain(batch())
    y.square().sum().backward()
    with ActivationStats(hooked) as stats:
        seen = hooked(batch())
        seen.square().sum().backward()
        alive = weakref.ref(seen)
        assert torch.equal(seen, y)
        del seen
        gc.collect()
        assert alive() is None
    for a, b in zip(plain.parameters(), hooked.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert not any(t.requires_grad for layer in stats.layers for record in layer.records for t in record)


def test_outputs_that_are_no_single_tensor() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[str, Tensor]:
            return "x", x

    class Indices(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1)

    for module, count in ((Pair(), 1), (Indices(), 0)):
        with ActivationStats(module) as stats:
            module(torch.randn(3, 4))
        assert len(stats[""].records) == count


def test_values_outside_and_nan_are_of_no_bin_but_count() -> None:
    model = nn.Sequential(nn.Identity())
    with ActivationStats(model) as stats:
        model(torch.tensor([0.0, 0.1, 20.0, torch.nan]))
    assert stats["0"].hists.tolist()[0] == [2] + [0] * 39
    assert float(stats["0"].smallest) == 0.5


def test_plain_data_and_reset() -> None:
    model = net()
    stats = ActivationStats(model, GeneralRelu)
    model(batch()), model(batch(1))
    plain = stats.to_dict()
    assert set(plain) == {"1", "3"} and set(plain["1"]) == {"mean", "std", "smallest", "hist"}
    assert plain["3"]["std"] == stats["3"].stds.tolist() and sum(plain["1"]["hist"][0]) == 16 * 4 * 36
    stats.reset()
    assert stats.to_dict()["1"] == {"mean": [], "std": [], "smallest": [], "hist": []}


def test_summary() -> None:
    model = net()
    stats = ActivationStats(model, GeneralRelu)
    empty = stats.summary().splitlines()
    assert len(empty) == 4 and empty[2].split()[2:] == ["0", "-", "-", "-", "-", "-", "-"]
    model(batch()), model(batch(1))
    row = stats.summary().splitlines()[3].split()
    layer = stats["3"]
    wanted = [f"{float(v[i]):.3f}" for v in (layer.means, layer.stds) for i in (0, 1)]
    wanted += [f"{float(layer.smallest[i]):.1%}" for i in (0, 1)]
    assert row == ["3", "GeneralRelu", "2", *wanted]


def test_errors() -> None:
    with pytest.raises(ValueError, match="leaves no module"):
        ActivationStats(net(), nn.Linear)
    with pytest.raises(ValueError, match="bins must be"):
        ActivationStats(net(), bins=0)
    with pytest.raises(ValueError, match="range must be"):
        ActivationStats(net(), range=(1.0, 1.0))
    with pytest.raises(KeyError):
        ActivationStats(net())["none"]


def test_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """No value is read on the host while batches run."""
    model = net()
    with ActivationStats(model), monkeypatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__"):
            patch.setattr(Tensor, name, lambda self, *a: pytest.fail("a value was read"))
        model(batch())


def test_figures_are_labelled() -> None:
    pytest.importorskip("matplotlib")
    model = net()
    with ActivationStats(model, GeneralRelu) as stats:
        for seed in range(5):
            model(batch(seed))
    for figure, axes in ((stats.plot_stats(), 2), (stats.color_dim(), 2), (stats.dead_chart(), 2)):
        drawn = [a for a in figure.axes if a.get_visible() and a.get_xlabel()]
        assert len(drawn) == axes and all(a.get_ylabel() and a.get_title() for a in drawn)
    image = stats.color_dim().axes[0].images[0]
    assert tuple(image.get_extent()) == (0, 5, 0.0, 10.0) and image.origin == "lower"
    wanted = stats["1"].hists.double().log1p().T
    torch.testing.assert_close(torch.tensor(image.get_array().tolist(), dtype=torch.float64), wanted)
    lines = stats.dead_chart().axes[1].lines[0]
    assert lines.get_ydata().tolist() == stats["3"].smallest.tolist()


def test_figures_of_an_odd_number_of_layers_and_of_nothing() -> None:
    pytest.importorskip("matplotlib")
    model = net()
    stats = ActivationStats(model, (nn.Conv2d, nn.Flatten))
    assert [a.get_visible() for a in stats.dead_chart().axes] == [True, True, True, False]
    stats.color_dim(), stats.plot_stats()


def test_import_draws_in_no_matplotlib() -> None:
    import subprocess
    import sys

    code = "import sys, fastnorm; assert 'matplotlib' not in sys.modules and fastnorm.ActivationStats"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert fastnorm.ActivationStats is ActivationStats
