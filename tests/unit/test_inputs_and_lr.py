"""Normalize, from a tensor or from batches, and the learning-rate finder."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnorm
from fastnorm import LrCurve, Normalize, lr_find


def images() -> Tensor:
    return torch.rand(103, 1, 5, 7, generator=torch.Generator().manual_seed(0)) * 3 + 100


def test_of_a_tensor() -> None:
    x = images()
    norm = Normalize.of(x)
    assert norm.mean == pytest.approx(float(x.double().mean()), rel=1e-13)
    assert norm.std == pytest.approx(float(x.double().std()), rel=1e-12)
    assert abs(float(norm(x).mean())) < 1e-4 and abs(float(norm(x).std()) - 1) < 1e-5


@pytest.mark.parametrize("size", (1, 10, 64))
def test_of_batches(size: int) -> None:
    """Batches of different sizes are merged by their counts; labels do not matter, empty ones neither."""
    x = images()
    norm = Normalize.of((part, torch.zeros(len(part))) for part in (*x.split(size), x[:0]))
    assert norm.mean == pytest.approx(float(x.double().mean()), rel=1e-13)
    assert norm.std == pytest.approx(float(x.double().std()), rel=1e-12)
    plain = Normalize.of(list(x.split(size)))
    assert plain == norm


def test_batch_hook() -> None:
    x, y = images(), torch.arange(103)
    norm = Normalize(100.0, 2.0)
    got, *rest = norm.batch([x, y, "name"])
    assert torch.equal(got, (x - 100.0) / 2.0) and rest[0] is y and rest[1] == "name"
    assert torch.equal(norm(x), got)


@pytest.mark.parametrize("inputs", (torch.ones(5, 5), torch.ones(1), torch.full((4,), torch.nan), []), ids=str)
def test_what_cannot_be_normalised(inputs: Tensor) -> None:
    with pytest.raises(ValueError, match="std"):
        Normalize.of(inputs)


@pytest.mark.parametrize("mean, std", ((0.0, 0.0), (0.0, -1.0), (math.nan, 1.0), (0.0, math.inf)))
def test_wrong_numbers(mean: float, std: float) -> None:
    with pytest.raises(ValueError, match="must be finite, std above 0"):
        Normalize(mean, std)


def problem() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), fastnorm.BatchNorm1d(16), nn.Dropout(0.1), nn.Linear(16, 3))
    x = torch.randn(96, 8)
    y = (x[:, :3]).argmax(1)
    return model, list(zip(x.split(16), y.split(16), strict=True))


SGD = functools.partial(fastnorm.optim.SGD, momentum=0.9)


def test_the_sweep_is_exponential_and_stops_where_the_loss_blows_up() -> None:
    model, batches = problem()
    curve = lr_find(model, SGD, batches, start=1e-4, end=1e4, steps=200)
    assert curve.blew_up and len(curve.lrs) == len(curve.losses) < 200
    ratios = [b / a for a, b in zip(curve.lrs, curve.lrs[1:], strict=False)]
    assert curve.lrs[0] == 1e-4 and ratios == pytest.approx([1e8 ** (1 / 199)] * len(ratios), rel=1e-9)
    last = curve.losses[-1]
    assert not math.isfinite(last) or last > 3 * min(curve.losses)
    assert all(loss <= 3 * min(curve.losses[: i + 1]) for i, loss in enumerate(curve.losses[:-1]))
    assert curve.losses[curve.lrs.index(curve.lowest)] == min(v for v in curve.losses if math.isfinite(v))
    assert 1e-3 < curve.lowest < 1e2


def test_each_step_takes_its_own_rate() -> None:
    """Against the same steps taken by hand."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2), torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1])
    curve = lr_find(model, torch.optim.SGD, [(x, y)], start=0.01, end=1.0, steps=5)
    w, b = (p.detach().clone().requires_grad_() for p in model.parameters())
    for lr, seen in zip((0.01, 0.01 * 10**0.5, 0.1, 0.1 * 10**0.5, 1.0), curve.losses, strict=True):
        loss = F.cross_entropy(F.linear(x, w, b), y)
        assert seen == pytest.approx(float(loss.detach()), rel=1e-5)
        for p, grad in zip((w, b), torch.autograd.grad(loss, (w, b)), strict=True):
            p.data -= lr * grad
    assert not curve.blew_up


def test_everything_is_left_as_it_was() -> None:
    model, batches = problem()
    model(batches[0][0]).sum().backward()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    rng = torch.get_rng_state()
    with torch.no_grad():
        lr_find(model, SGD, batches)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), rng)


def test_lessons_optimizers_other_losses_and_few_batches() -> None:
    model, batches = problem()
    for factory in (fastnorm.optim.SGD.lesson, fastnorm.optim.RMSprop.lesson, fastnorm.optim.Adam.lesson):
        assert len(lr_find(model, factory, batches, steps=12, end=1e-2).lrs) == 12
    once = lr_find(model, SGD, iter(batches), end=1e-3)
    assert len(once.lrs) == len(batches) and not once.blew_up
    mean_square = lr_find(nn.Linear(8, 1), SGD, [(torch.ones(4, 8), torch.ones(4, 1))], loss=F.mse_loss, end=1e-4)
    assert len(mean_square.lrs) == 100


def test_a_loss_that_is_nan_at_once() -> None:
    curve = lr_find(nn.Linear(2, 2), SGD, [(torch.full((3, 2), torch.nan), torch.zeros(3, dtype=torch.int64))])
    assert curve.blew_up and len(curve.losses) == 1 and curve.lowest == curve.lrs[0]


@pytest.mark.parametrize("wrong", ({"start": 0.0}, {"start": 1.0, "end": 0.1}, {"steps": 1}, {"blow_up": 1.0}), ids=str)
def test_wrong_arguments(wrong: dict[str, float]) -> None:
    model, batches = problem()
    with pytest.raises(ValueError, match="0 < start < end"):
        lr_find(model, SGD, batches, **wrong)  # type: ignore[arg-type]


def test_no_batches() -> None:
    with pytest.raises(ValueError, match="batches are empty"):
        lr_find(nn.Linear(2, 2), SGD, [])


def test_plot() -> None:
    pytest.importorskip("matplotlib")
    axes = LrCurve([1e-3, 1e-2, 1e-1], [2.0, 1.0, 9.0], True).plot().axes[0]
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "learning rate" and axes.get_ylabel()
    assert list(axes.lines[0].get_ydata()) == [2.0, 1.0, 9.0] and axes.lines[1].get_xdata()[0] == 1e-2
