"""The parts of the demo: nets, training, measurements, settings, verdicts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastnorm.demo import data, learn_lr, measure, model, report, settings, train
from fastnorm.demo.progress import Progress
from fastnorm.demo.settings import RECIPES, DemoError, make_recipe

CPU = torch.device("cpu")


@pytest.mark.parametrize("norm", list(model.NORMS))
@pytest.mark.parametrize(("ks", "side"), [(3, 16), (5, 28)])
def test_both_nets_are_the_same_function(ks: int, side: int, norm: str) -> None:
    nets = model.build_pair(ks=ks, seed=1, norm=norm, side=side, device=CPU)
    theirs, ours = nets["torch.nn"].state_dict(), nets["fastnorm"].state_dict()
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    x = torch.randn(8, 1, side, side)
    outs = [net.double()(x.double()) for net in nets.values()]
    assert outs[0].shape == (8, 10)
    torch.testing.assert_close(outs[0], outs[1])
    # The norm asked for, and in both nets the same layers: without it instance norm's activation stands alone.
    kinds = [
        [type(layer).__name__ for layer in net.modules() if "Norm" in type(layer).__name__] for net in nets.values()
    ]
    blocks = 3 if norm == "instance" and side == 16 else 4
    assert kinds == [[model.norm_name(norm)] * blocks] * 2


def test_composed_general_relu_leaves_its_input_alone() -> None:
    x = torch.randn(100)
    before = x.clone()
    y = model.ComposedGeneralRelu(0.1, 0.4, 1.0)(x)
    assert torch.equal(y, (F.leaky_relu(before, 0.1) - 0.4).clamp_max(1.0))
    assert torch.equal(x, before)


def test_convolutions_start_with_kaiming_std_for_the_leak() -> None:
    torch.manual_seed(0)
    layer = model.conv(64, 256, 3, bias=True)
    expected = (2 / (1 + model.LEAK**2) / (64 * 9)) ** 0.5
    assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert layer.bias is not None and not layer.bias.any()


class Doubling(nn.Module):
    """Saves x once for the square and, twice over, the square for the product; saves its parameter too."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (x * self.w) ** 2  # saves x, w and their product
        return y * y.view(-1)  # saves y, seen through two tensors


def test_saved_bytes_counts_each_storage_once_and_no_parameters() -> None:
    # An input without gradient would spare the parameter from being saved, and this test from testing that.
    assert measure.saved_by_training(Doubling(), torch.ones(1000, requires_grad=True)) == 3 * 4000


def test_saved_bytes_counts_the_whole_storage_behind_a_view() -> None:
    assert measure.saved_by_training(Doubling(), torch.ones(5000)[:1000]) == 20000 + 2 * 4000


def test_measuring_leaves_the_nets_as_they_were() -> None:
    nets = model.build_pair(ks=3, seed=0, norm="batch", side=16, device=CPU)
    before = {key: value.clone() for key, value in nets["fastnorm"].state_dict().items()}
    x = torch.randn(4, 1, 16, 16)
    seconds = measure.norm_act_seconds(nets, x)
    assert measure.saved_by_training(nets["fastnorm"], x) < measure.saved_by_training(nets["torch.nn"], x)
    assert list(seconds) == list(nets) and all(value > 0 for value in seconds.values())
    assert all(torch.equal(before[key], value) for key, value in nets["fastnorm"].state_dict().items())
    assert all(parameter.grad is None for net in nets.values() for parameter in net.parameters())


def test_training_gives_both_nets_the_same_batches_and_the_schedule() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(10, 4), torch.arange(10)
    nets = {name: nn.Linear(4, 10) for name in ("torch.nn", "fastnorm")}
    nets["fastnorm"].load_state_dict(nets["torch.nn"].state_dict())
    recipe = settings.Recipe(epochs=(2, 1), lrs=(0.1, 1e-30), batch_size=4, momentum=0.0, first_kernel=3, target=0.0)
    weights = []
    histories: dict[str, train.History] = {}
    for epoch in train.train(nets, data.Data(x, y, x, y), recipe, seed=0):
        histories = epoch
        weights.append(nets["fastnorm"].weight.detach().clone())
    assert histories["torch.nn"].losses == histories["fastnorm"].losses
    assert len(histories["fastnorm"].losses) == len(histories["fastnorm"].seconds) == 9
    assert len(histories["fastnorm"].accuracy) == 3
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2]), "the second phase has its own learning rate"


def test_a_loss_that_is_not_finite_stops_training() -> None:
    x, y = torch.full((4, 4), float("nan")), torch.arange(4)
    recipe = dataclasses.replace(RECIPES["digits"], epochs=(1,), batch_size=2)
    with pytest.raises(DemoError, match=r"fastnorm net's loss became infinite or NaN in epoch 1.*--lr"):
        list(train.train({"fastnorm": nn.Linear(4, 10)}, data.Data(x, y, x, y), recipe, seed=0))


def test_accuracy_is_counted_in_eval_mode() -> None:
    net = nn.Sequential(nn.Dropout(0.999), nn.Identity())
    assert train.accuracy(net, torch.eye(10).repeat(300, 1), torch.arange(10).repeat(300)) == 1.0


def test_recipe_overrides() -> None:
    assert make_recipe("digits", epochs=None, lr=None, batch_size=None) == RECIPES["digits"]
    changed = make_recipe("fashion-mnist", epochs="3+2", lr="0.5", batch_size=32)
    assert (changed.epochs, changed.lrs, changed.batch_size) == ((3, 2), (0.5,), 32)


@pytest.mark.parametrize(
    ("epochs", "lr", "batch_size", "words"),
    [
        ("3+x", None, None, "3\\+x"),
        ("1.5", None, None, "whole numbers"),
        ("0", None, None, "positive"),
        (None, "nan", None, "positive"),
        (None, "inf", None, "positive"),
        ("", None, None, "not a number"),
        (None, None, 1, "--batch-size must be at least 2"),
    ],
)
def test_senseless_recipes(epochs: str | None, lr: str | None, batch_size: int | None, words: str) -> None:
    with pytest.raises(DemoError, match=words):
        make_recipe("digits", epochs=epochs, lr=lr, batch_size=batch_size)


def test_a_missing_package_names_the_install_command() -> None:
    with pytest.raises(DemoError, match=r"no_such_package.*pip install scikit-learn matplotlib"):
        settings.require("no_such_package.part")


def summary(theirs: float, ours: float, first: float = 0.0) -> report.Summary:
    pair = {"torch.nn": 2.0, "fastnorm": 1.0}
    return report.Summary(
        data="digits",
        norm="batch",
        opt="sgd",
        device="cpu",
        threads=1,
        backend="eager",
        seed=0,
        batch_size=64,
        valid_count=360,
        target=0.97,
        accuracy={"torch.nn": theirs, "fastnorm": ours},
        first_loss_difference=first,
        step_seconds=pair,
        images_per_second={"torch.nn": 100.0, "fastnorm": 250.0},
        train_seconds=pair,
        norm_act_seconds={"torch.nn": 4.0, "fastnorm": 1.0},
        saved_bytes={"torch.nn": 3 << 20, "fastnorm": 2 << 20},
    )


@pytest.mark.parametrize(
    ("theirs", "ours", "first", "words"),
    [
        (0.98, 0.9701, 1e-7, []),
        (0.98, 0.96, 0.0, ["below the target 0.97"]),
        (0.98, 0.98, 2e-5, ["first batch's losses differ"]),
        (0.98, 0.98, float("nan"), ["first batch's losses differ"]),
        (1.0, 0.96, 0.0, ["differ by more than noise", "below the target"]),
        (1.0, 1.0, 0.0, []),
    ],
)
def test_verdicts(theirs: float, ours: float, first: float, words: list[str]) -> None:
    found = report.failures(summary(theirs, ours, first), enforce_target=True)
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))


def test_the_target_is_not_enforced_on_other_settings() -> None:
    assert report.failures(summary(0.5, 0.5), enforce_target=False) == []


def test_summary_ratios_say_how_much_better_fastnorm_is() -> None:
    lines = "\n".join(report.summary_lines(summary(0.98, 0.98)))
    assert "2.50x as fast" in lines and "4.00x as fast" in lines and "1.50x less memory" in lines


def test_progress_prints_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastnorm.demo.progress.LINE_S", 0.0)
    with Progress(4, "epoch 1") as progress:
        progress.advance()
        progress.advance(label="epoch 2")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0].split() for line in lines] == [["25%", "epoch", "1"], ["50%", "epoch", "2"]]
    assert "\r" not in "".join(lines)


def test_the_optimizers_of_the_demo() -> None:
    """sgd is the same one twice; the others are the lessons' and the nearest of torch.optim."""
    recipe = make_recipe("digits", epochs=None, lr="0.01", batch_size=None)
    nets = [nn.Linear(4, 3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    pair = [train.torch_optimizer("sgd", nets[0], recipe), train.fastnorm_optimizer("sgd", nets[1], recipe)]
    for _ in range(30):
        for net, optimizer in zip(nets, pair, strict=True):
            optimizer.zero_grad()
            net(torch.ones(2, 4)).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(nets[0].weight, nets[1].weight)
    lesson = {opt: train.fastnorm_optimizer(opt, nets[0], recipe).param_groups[0] for opt in settings.OPTS}
    assert lesson["momentum"]["lerp"] and lesson["adam"]["eps_inside_sqrt"]
    assert lesson["rmsprop"]["init"] == "first_grad"
    assert all(type(train.torch_optimizer(opt, nets[0], recipe)).__module__.startswith("torch") for opt in lesson)


def test_the_optimizers_have_the_lessons_rates() -> None:
    assert set(settings.OPTS) == {"sgd", "momentum", "rmsprop", "adam"}
    assert make_recipe("digits", epochs=None, lr=None, batch_size=None, opt="adam").lrs == (6e-3, 1e-3)
    assert make_recipe("digits", epochs=None, lr="0.5", batch_size=None, opt="adam").lrs == (0.5,)


def test_the_learning_rate_is_learned_through_adams_steps() -> None:
    """From too low and too high; and the derivative is a finite difference's."""
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(40, 5, generator=generator) for _ in range(2))
    problem = (x, (x[:, 0] > 0).long(), other, (other[:, 0] > 0).long())
    for start in (1e-3, 20.0):
        found = learn_lr.learn(start, 15, *problem)
        assert found[-1][1] < found[0][1]
    lr = torch.tensor(0.1, requires_grad=True)
    (grad,) = torch.autograd.grad(learn_lr.loss_after(lr, 4, *problem), lr)
    above, below = (learn_lr.loss_after(torch.tensor(0.1 + h), 4, *problem) for h in (1e-2, -1e-2))
    assert abs(float(grad) - float((above - below) / 2e-2)) < 0.02 * abs(float(grad))
