"""fastnorm.verify: what is compared, what is no fault, what is refused, that nothing of the user's changes."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn

import fastnorm
from fastnorm.verify import accuracy
from fastnorm.verify.question import Disturbance
from tests.unit.verify_models import Drawing, Nested, OnlySingle, convnet, images, verified

MODES = ("training", "training, float64", "eval", "eval, float64")


@pytest.mark.parametrize("fuse", [True, False])
def test_a_convnet_passes_and_everything_is_compared(fuse: bool) -> None:
    model = convnet(dropout=0.3)
    found = verified(model, images(), fuse=fuse)
    assert found.ok and not found.notes, str(found)
    gradients = {f"{i}.{name}" for i, name in ((0, "weight"), (4, "bias"), (1, "weight"), (5, "bias"), (8, "weight"))}
    for mode in MODES:
        names = {kind: {one.name for one in found.comparisons if (one.mode, one.kind) == (mode, kind)}
                 for kind in ("outputs", "gradients", "statistics")}  # fmt: skip
        assert names["outputs"] == {"output"}
        assert names["gradients"] >= gradients | {"input 0"}
        assert names["statistics"] == {name for name, _ in model.named_buffers()}
    assert bool(found.conversion.fused) is fuse


def test_nested_outputs_and_keyword_arguments() -> None:
    batch = {"x": torch.randn(4, 12), "y": torch.randn(4, 12), "scale": 2.0}
    found = verified(Nested(), batch)
    assert found.ok, str(found)
    outputs = {one.name for one in found.comparisons if one.kind == "outputs"}
    assert outputs == {f"output{tail}" for tail in (".z", ".more[0]", ".more[1][0]", ".pair.left", ".pair.right")}
    assert {one.name for one in found.comparisons if one.name.startswith("input")} == {"input 0", "input 1"}
    assert verified(Nested(), (batch["x"], batch["y"])).ok


def test_nothing_of_the_users_changes() -> None:
    model = convnet(dropout=0.3)
    model(images()).square().mean().backward()
    model[5].eval()  # frozen, in a model that trains
    model[5].weight.requires_grad_(False)
    x = images().requires_grad_()
    kept = copy.deepcopy(model)
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    given = {id(p) for p in model.parameters()}
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    found = fastnorm.verify(model, x, steps=1, time_budget=0.01)
    assert not [failure for failure in found.failures if "times the original's time" not in failure], str(found)
    assert torch.equal(torch.get_rng_state(), torch_state) and random.getstate() == python_state
    assert [module.training for module in model.modules()] == [module.training for module in kept.modules()]
    assert [type(module) for module in model.modules()] == [type(module) for module in kept.modules()]
    assert {id(p) for p in model.parameters()} == given and x.grad is None and torch.equal(x, images())
    for name, value in kept.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert (p.grad is None and grad is None) or torch.equal(p.grad, grad)


def test_a_frozen_norm_stays_in_eval() -> None:
    model = convnet()
    model[1].eval()
    found = verified(model, images())
    moved = [one for one in found.comparisons if (one.mode, one.name) == ("training", "1.num_batches_tracked")]
    assert found.ok and moved[0].size == 0
    assert verified(convnet().eval(), images()).ok


def test_the_loss_is_the_callers() -> None:
    seen = []

    def loss(output: Tensor) -> Tensor:
        seen.append(output.dtype)
        return nn.functional.cross_entropy(output, torch.arange(6) % 5)

    assert verified(convnet(), images(), loss=loss).ok
    assert {torch.float32, torch.float64} == set(seen)
    with pytest.raises(ZeroDivisionError):
        verified(convnet(), images(), loss=lambda output: output.sum() / (1 // 0))


def test_a_sum_as_loss_would_see_no_gradient() -> None:
    """Hence the default: of a norm's sum the gradient is zero, and a wrong one would pass for rounding."""
    model = nn.Sequential(nn.Linear(12, 12), nn.LayerNorm(12, elementwise_affine=False))
    sizes = [
        max(one.size for one in verified(model, torch.randn(4, 12), loss=loss).comparisons if one.kind == "gradients")
        for loss in (None, lambda output: output.sum())
    ]
    assert sizes[0] > 0.1 and sizes[1] < 1e-3


def test_a_model_that_cannot_run_in_float64() -> None:
    found = verified(OnlySingle(), torch.randn(4, 12))
    assert found.ok and {one.mode for one in found.comparisons} == {"training", "eval"}
    assert len(found.notes) == 2 and "cannot run in float64 (RuntimeError" in found.notes[0]
    assert all(one.original == 0 for one in found.comparisons)


def test_random_numbers_that_depend_on_the_dtype() -> None:
    found = verified(Drawing(), torch.randn(4, 12))
    assert found.ok and "random numbers, perhaps" in found.notes[0]


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"batch must be a tensor, a tuple of arguments or a dict.*got list"):
        verified(convnet(), [images()])
    with pytest.raises(RuntimeError, match="expected input"):
        verified(convnet(), torch.randn(2, 7, 8, 8))
    with pytest.raises(ValueError, match=r"NaN before any conversion: outputs, output"):
        verified(convnet(), images() * torch.nan)
    with pytest.raises(ValueError, match=r"overflows in torch.float16: outputs, output"):
        verified(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), Blow()).half(), torch.randn(2, 4).half())
    with pytest.raises(ValueError, match="steps must not be negative"):
        fastnorm.verify(convnet(), images(), steps=-1)
    with pytest.raises(ValueError, match=r"allowed.slowdown must be a positive number"):
        fastnorm.verify(convnet(), images(), allowed=fastnorm.Allowed(slowdown=0.0))
    with pytest.raises(ValueError, match="no output of the model depends on"):
        verified(nn.Sequential(nn.LayerNorm(4), Cut()), torch.randn(2, 4))


class Blow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 300) * 300


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def test_a_converted_model_is_refused() -> None:
    model = convnet()
    fastnorm.convert(model)
    with pytest.raises(ValueError, match="converted already"):
        verified(model, images())
    fastnorm.revert(model)
    assert verified(model, images()).ok


def test_no_norm_at_all() -> None:
    found = verified(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3))
    assert found.ok and not found.comparisons and "no norm was replaced" in str(found)


@pytest.mark.parametrize("rows", [64, 1024])
def test_gradients_that_nearly_vanish_are_no_failures(rows: int) -> None:
    """A norm behind a norm: only eps keeps the first one's gradients from zero, and means are zero but for rounding."""
    model = nn.Sequential(nn.LayerNorm(32), nn.BatchNorm1d(32), nn.Linear(32, 32), nn.BatchNorm1d(32, momentum=1.0))
    x = torch.randn(rows, 32)
    found = verified(model, x - x.mean(0))
    assert found.ok, str(found)
    assert any(one.vanishes for one in found.comparisons if one.name == "2.bias")


def test_more_samples_are_taken_before_anything_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a single one the zero gradient of the bias in front of a norm has no floor."""
    monkeypatch.setattr(accuracy, "SAMPLES", 0)
    assert verified(convnet(), images(), fuse=False).ok
    monkeypatch.setattr(accuracy, "ENOUGH_SAMPLES", 0)
    failures = verified(convnet(), images(), fuse=False).failures
    assert any("gradients, 4.bias" in failure for failure in failures)


def test_what_a_disturbance_does() -> None:
    """Elements, their mean and their gradients move, each by draws of their own; infinities stay."""
    x = torch.randn(100_000, dtype=torch.float64, requires_grad=True)
    y = Disturbance(1e-3, seed=1)(x)
    y.sum().backward()
    moved, slope = (y - x).detach(), x.grad - 1
    shift = moved.mean().abs()
    assert 1.1e-4 < shift < 1.4e-4  # an eighth of the noise; single elements average out to 2e-6
    relative = (moved - moved.mean()) / x.detach()
    large = x.detach().abs() > 0.1
    for drawn in (relative[large], slope):
        assert 0.5e-3 < drawn.std() < 0.65e-3 and drawn.abs().max() < 1.1e-3
    assert torch.corrcoef(torch.stack([relative[large], slope[large]]))[0, 1].abs() < 0.02
    assert torch.equal(Disturbance(0.0, seed=1)(x), x)
    masked = Disturbance(0.1, seed=1)(torch.tensor([-torch.inf, 1.0, torch.inf]))
    assert masked[0] == -torch.inf and masked[1] != 1 and masked[2] == torch.inf
