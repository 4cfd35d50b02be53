"""The modules beside torch.nn's: construction, running statistics, hooks, sharing, checkpointing."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from batch_norm_twins import buffers_of, random_norm, twin
from torch import Tensor, nn
from torch.testing import assert_close

import fastnorm

PAIRS = [
    (fastnorm.BatchNorm1d, nn.BatchNorm1d, (4, 3, 5)),
    (fastnorm.BatchNorm2d, nn.BatchNorm2d, (4, 3, 5, 6)),
    (fastnorm.BatchNorm3d, nn.BatchNorm3d, (4, 3, 5, 2, 3)),
]
every_pair = pytest.mark.parametrize("ours, theirs, shape", PAIRS, ids=[p[0].__name__ for p in PAIRS])
SYNC = (fastnorm.SyncBatchNorm, nn.SyncBatchNorm, (4, 3, 5, 6))
every_class = pytest.mark.parametrize("ours, theirs, shape", [*PAIRS, SYNC], ids=lambda p: getattr(p, "__name__", ""))


@every_class
def test_constructor_takes_torchs_arguments_in_its_order(ours: Any, theirs: Any, shape: tuple[int, ...]) -> None:
    own, reference = inspect.signature(ours), inspect.signature(theirs)
    shared = {name: own.parameters[name] for name in reference.parameters}
    assert list(own.parameters) == [*reference.parameters, "act", "unbiased"]
    for name, parameter in reference.parameters.items():
        assert (shared[name].kind, shared[name].default) == (parameter.kind, parameter.default), name
    assert own.parameters["act"].kind is own.parameters["unbiased"].kind is inspect.Parameter.KEYWORD_ONLY
    assert issubclass(ours, theirs)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"eps": 1e-3, "momentum": None}, {"affine": False}, {"bias": False}, {"track_running_stats": False}],
    ids=str,
)
@every_class
def test_repr_is_torchs(ours: Any, theirs: Any, shape: tuple[int, ...], kwargs: dict[str, Any]) -> None:
    assert repr(ours(3, **kwargs)) == repr(theirs(3, **kwargs))


def test_repr_names_what_is_fused() -> None:
    text = repr(fastnorm.BatchNorm2d(3, act=fastnorm.GeneralRelu(0.1, 0.4), unbiased=True))
    assert text.startswith("BatchNorm2d(3, eps=1e-05")
    assert "act=GeneralRelu(leak=0.1, sub=0.4)" in text and "unbiased=True" in text
    assert repr(fastnorm.GeneralRelu(0.1, maxv=6.0, inplace=True)) == "GeneralRelu(leak=0.1, maxv=6.0, inplace=True)"
    assert (
        repr(fastnorm.LessonBatchNorm(5, act=nn.ReLU())) == "LessonBatchNorm(5, mom=0.1, eps=1e-05, act=GeneralRelu())"
    )


@every_pair
def test_rank_is_checked_as_torch_does(ours: Any, theirs: Any, shape: tuple[int, ...]) -> None:
    for wrong in [(4,), (4, 3), (4, 3, 5), (4, 3, 5, 5), (4, 3, 5, 5, 5), (4, 3, 2, 2, 2, 2)]:
        x = torch.randn(wrong)
        try:
            theirs(3)(x)
        except ValueError as error:
            with pytest.raises(ValueError, match=str(error).replace("(", r"\(").replace(")", r"\)")):
                ours(3)(x)
        else:
            assert ours(3)(x).shape == wrong


@pytest.mark.parametrize("momentum", [None, 0.0, 0.1, 1.0])
@pytest.mark.parametrize("unbiased", [False, True])
def test_running_statistics_follow_torch(cpu_backend: str, momentum: float | None, unbiased: bool) -> None:
    theirs = random_norm(momentum=momentum)
    ours = twin(theirs, unbiased=unbiased)
    for step in range(3):
        x = torch.randn(4, 3, 5, 5) * (step + 1) + step
        theirs(x)
        ours(x)
        assert_close(buffers_of(ours), buffers_of(theirs))
        assert ours.num_batches_tracked.item() == step + 1
    ours.reset_running_stats()
    fresh = {
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
        "num_batches_tracked": torch.tensor(0),
    }
    assert_close(buffers_of(ours), fresh)


def test_cumulative_average_by_hand(cpu_backend: str) -> None:
    """B3: batches of means 1, 2, 3 and variances 1, 2, 3."""
    ours = fastnorm.BatchNorm1d(1, momentum=None)
    for value in (1.0, 2.0, 3.0):
        spread = (value / 2) ** 0.5
        ours(torch.tensor([[value - spread], [value + spread]]))  # unbiased variance: 2 * spread**2
    assert_close(ours.running_mean, torch.tensor([2.0]))
    assert_close(ours.running_var, torch.tensor([2.0]))


@pytest.mark.parametrize("default", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
def test_cumulative_average_is_as_exact_as_the_statistics(
    cpu_backend: str, dtype: torch.dtype, default: torch.dtype
) -> None:
    """A third is no number of any dtype: it must not have fewer digits than x, whatever dtype is the default."""
    ours, exact = (kind(4, momentum=None, dtype=dtype) for kind in (fastnorm.BatchNorm1d, nn.BatchNorm1d))
    batches = [torch.randn(9, 4, dtype=dtype) * 100 for _ in range(7)]
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        for x in batches:
            ours(x)
            exact(x)
    finally:
        torch.set_default_dtype(before)
    assert_close(buffers_of(ours), buffers_of(exact), rtol=8 * torch.finfo(dtype).eps, atol=0.0)


def test_momentum_none_does_not_synchronise() -> None:
    """The factor stays a tensor: on the meta device reading its value would raise."""
    ours = fastnorm.BatchNorm2d(3, momentum=None, device="meta")
    assert ours(torch.empty(2, 3, 4, 4, device="meta")).shape == (2, 3, 4, 4)


def test_unbiased_normalises_with_the_unbiased_variance(cpu_backend: str) -> None:
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=1, keepdim=True)
    ours = fastnorm.BatchNorm2d(3, dtype=torch.float64, unbiased=True)
    assert_close(ours(x), (x - mean) / (var + 1e-5).sqrt())
    assert_close(ours.running_var, 0.9 + 0.1 * var.flatten())


def test_track_running_stats_switched_off_later(cpu_backend: str) -> None:
    """B5: training leaves buffers and counter alone; evaluation still uses the buffers."""
    theirs = random_norm()
    ours = twin(theirs)
    x = torch.randn(4, 3, 5, 5)
    for layer in (ours, theirs):
        layer(x)
        layer.track_running_stats = False
    before = buffers_of(ours)
    assert_close(ours(x + 3), theirs(x + 3))
    assert_close(buffers_of(ours), before, rtol=0, atol=0)
    assert_close(ours.eval()(x), theirs.eval()(x))


def test_without_running_statistics_evaluation_uses_the_batch(cpu_backend: str) -> None:
    theirs = random_norm(track_running_stats=False)
    ours = twin(theirs)
    x = torch.randn(4, 3, 5, 5)
    assert_close(ours.eval()(x), theirs.eval()(x))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ours(x[:1, :, :1, :1])


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_empty_batch(cpu_backend: str, shape: tuple[int, ...]) -> None:
    """B2: empty result, zero gradients, statistics untouched, counter advanced."""
    ours = fastnorm.BatchNorm2d(3, act=nn.ReLU())
    x = torch.empty(shape, requires_grad=True)
    y = ours(x, torch.empty(shape))
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert torch.equal(ours.weight.grad, torch.zeros(3)) and torch.equal(ours.bias.grad, torch.zeros(3))
    assert torch.equal(ours.running_mean, torch.zeros(3)) and torch.equal(ours.running_var, torch.ones(3))
    assert ours.num_batches_tracked == 1


def test_one_value_per_channel(cpu_backend: str) -> None:
    """B1."""
    ours = fastnorm.BatchNorm2d(3)
    x = torch.randn(1, 3, 1, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        ours(x)
    assert torch.equal(ours.running_mean, torch.zeros(3))
    assert_close(ours.eval()(x), nn.BatchNorm2d(3).eval()(x))


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_every_combination_of_weight_and_bias(cpu_backend: str, weighted: bool, biased: bool) -> None:
    """B13, also a bias without weight, which the constructors cannot make."""
    theirs = random_norm()
    theirs.weight = theirs.weight if weighted else None
    theirs.bias = theirs.bias if biased else None
    ours = fastnorm.BatchNorm2d(3)
    ours.weight, ours.bias = theirs.weight, theirs.bias
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    dy = torch.randn(4, 3, 5, 5)
    inputs = [x, *theirs.parameters()]
    assert_close(ours(x), theirs(x))
    assert_close(torch.autograd.grad(ours(x), inputs, dy), torch.autograd.grad(theirs(x), inputs, dy))


@pytest.mark.parametrize(
    "act, composed",
    [
        (None, lambda z: z),
        (nn.ReLU(), F.relu),
        (nn.ReLU(inplace=True), F.relu),
        (nn.LeakyReLU(0.2), lambda z: F.leaky_relu(z, 0.2)),
        (nn.ReLU6(), F.relu6),
        (fastnorm.GeneralRelu(0.1, 0.4, 1.0), lambda z: (F.leaky_relu(z, 0.1) - 0.4).clamp_max(1.0)),
    ],
    ids=["none", "relu", "relu-inplace", "leaky", "relu6", "general"],
)
@pytest.mark.parametrize("training", [True, False])
def test_fused_activation_and_residual(cpu_backend: str, act: Any, composed: Any, training: bool) -> None:
    theirs = random_norm().train(training)
    ours = twin(theirs, act=act)
    x, r = (torch.randn(4, 3, 5, 5, requires_grad=True) for _ in range(2))
    dy = torch.randn(4, 3, 5, 5)
    for residual in (None, r):
        expected = composed(theirs(x) if residual is None else theirs(x) + residual)
        y = ours(x, residual)
        assert_close(y, expected)
        inputs = [x] if residual is None else [x, residual]
        found = torch.autograd.grad(y, [*inputs, *ours.parameters()], dy)
        wanted = torch.autograd.grad(expected, [*inputs, *theirs.parameters()], dy)
        assert_close(found, wanted)
        assert_close(buffers_of(ours), buffers_of(theirs))


def lesson(x: Tensor, layer: fastnorm.LessonBatchNorm) -> Tensor:
    """The lessons' layer as they write it, moving the layer's buffers."""
    if layer.training:
        with torch.no_grad():
            mean = x.mean((0, 2, 3), keepdim=True)
            var = x.var((0, 2, 3), keepdim=True)
            layer.means.lerp_(mean, layer.mom)
            layer.vars.lerp_(var, layer.mom)
    else:
        mean, var = layer.means, layer.vars
    return (x - mean) / (var + layer.eps).sqrt() * layer.mults + layer.adds


@pytest.mark.parametrize("training", [True, False])
def test_lesson_batch_norm(cpu_backend: str, training: bool) -> None:
    ours = fastnorm.LessonBatchNorm(3, 0.2, 1e-3).double().train(training)
    with torch.no_grad():
        ours.mults.uniform_(0.5, 1.5), ours.adds.uniform_(-1, 1)
        ours.vars.uniform_(0.5, 1.5), ours.means.uniform_(-1, 1)
    theirs = copy.deepcopy(ours)
    shapes = {name: tuple(t.shape) for name, t in ours.state_dict().items()}
    assert shapes == {"mults": (3, 1, 1), "adds": (3, 1, 1), "vars": (1, 3, 1, 1), "means": (1, 3, 1, 1)}
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    dy = torch.randn_like(x)
    y, expected = ours(x), lesson(x, theirs)
    assert_close(y, expected)
    assert_close(buffers_of(ours), buffers_of(theirs))
    found = torch.autograd.grad(y, [x, *ours.parameters()], dy)
    assert_close(found, torch.autograd.grad(expected, [x, *theirs.parameters()], dy))
