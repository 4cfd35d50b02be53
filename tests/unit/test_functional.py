"""The functional interface: signatures, dtypes, layouts, statistics in odd places, GeneralRelu's edges."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import fastnorm
from fastnorm.functional import batch_norm, general_relu

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")


def test_signatures() -> None:
    own, reference = inspect.signature(batch_norm).parameters, inspect.signature(F.batch_norm).parameters
    assert list(own)[: len(reference)] == list(reference)
    for name, parameter in reference.items():
        assert own[name].default == parameter.default and own[name].kind == parameter.kind
    for name in ("act", "residual", "unbiased", "backend"):
        assert own[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert list(inspect.signature(general_relu).parameters)[:5] == ["x", "leak", "sub", "maxv", "max_leak"]
    assert fastnorm.functional.__all__ == [
        "activation_stats", "batch_norm", "general_relu", "group_norm", "instance_norm", "layer_norm", "layer_norm_2d",
        "rms_norm", "synchronized_batch_norm",
    ]  # fmt: skip


def test_positional_call_is_torchs(cpu_backend: str) -> None:
    x, w, b = torch.randn(4, 3, 5), torch.randn(3), torch.randn(3)
    states = [(torch.zeros(3), torch.ones(3)) for _ in range(2)]
    arguments = (w, b, True, 0.3, 1e-3)
    assert_close(batch_norm(x, *states[0], *arguments), F.batch_norm(x, *states[1], *arguments))
    assert_close(*states)


def composed(x: Tensor, w: Tensor, b: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """In float64, moving the statistics in place."""
    return F.leaky_relu(F.batch_norm(x, mean, var, w, b, True, 0.1), 0.1)


@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_every_mix_of_dtypes(cpu_backend: str, x_dtype: torch.dtype, other: torch.dtype) -> None:
    """B14, and the mixes that torch refuses: weight, bias and the statistics each in a dtype of their own."""
    x = torch.randn(4, 3, 5).to(x_dtype).requires_grad_()
    w, b = (torch.rand(3).add(0.5).to(d).requires_grad_() for d in (other, torch.float32))
    mean, var = torch.zeros(3, dtype=other), torch.ones(3, dtype=torch.float32)
    dy = torch.randn(4, 3, 5).to(x_dtype)
    y = batch_norm(x, mean, var, w, b, True, act=nn.LeakyReLU(0.1))
    grads = torch.autograd.grad(y, [x, w, b], dy)
    exact_in = [t.detach().double().requires_grad_() for t in (x, w, b)]
    exact_mean, exact_var = torch.zeros(3).double(), torch.ones(3).double()
    exact = composed(*exact_in, exact_mean, exact_var)
    wanted = torch.autograd.grad(exact, exact_in, dy.double())
    assert [t.dtype for t in (y, *grads, mean, var)] == [
        x_dtype,
        x_dtype,
        other,
        torch.float32,
        other,
        torch.float32,
    ]
    pairs = zip((y, *grads, mean, var), (exact, *wanted, exact_mean, exact_var), strict=True)
    for found, expected in pairs:
        worst = (found.double() - expected).abs().max() / expected.abs().max()
        # The one rounding of the result, and sums of 20 values in the accumulator's dtype.
        accumulator = torch.float64 if x_dtype == torch.float64 else torch.float32
        assert worst <= torch.finfo(found.dtype).eps + 32 * torch.finfo(accumulator).eps


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1, 1), (1, 3)])
def test_vectors_of_any_shape(cpu_backend: str, shape: tuple[int, ...]) -> None:
    """As torch: the number of elements counts; statistics are written through the given tensors."""
    x = torch.randn(4, 3, 5, 5)
    w, b = (torch.randn(shape, requires_grad=True) for _ in range(2))
    mean, var = torch.zeros(shape), torch.ones(shape)
    flat = [t.detach().reshape(3).clone().requires_grad_(t.requires_grad) for t in (mean, var, w, b)]
    y, expected = batch_norm(x, mean, var, w, b, True), F.batch_norm(x, *flat, True)
    assert_close(y, expected)
    assert_close([mean.reshape(3), var.reshape(3)], flat[:2])
    dy = torch.randn_like(y)
    grads = torch.autograd.grad(y, [w, b], dy)
    assert [g.shape for g in grads] == [shape, shape]
    assert_close([g.reshape(3) for g in grads], list(torch.autograd.grad(expected, flat[2:], dy)))


@pytest.mark.parametrize("training", [True, False])
def test_statistics_and_parameters_inside_larger_tensors(cpu_backend: str, training: bool) -> None:
    """M9: strided and at an offset; what lies between stays as it was."""
    store = torch.full((4, 8), 7.0)
    store[0, 1:7:2], store[1, 1:7:2] = 0.0, 1.0
    store[2:, 1:7:2] = torch.randn(2, 3)
    mean, var, w, b = (store[i, 1:7:2] for i in range(4))
    dense = [t.clone() for t in (mean, var, w, b)]
    x = torch.randn(4, 3, 5)
    assert_close(batch_norm(x, mean, var, w, b, training), F.batch_norm(x, *dense, training))
    assert_close([mean, var, w, b], dense)
    store[:, 1:7:2] = 7.0
    assert torch.equal(store, torch.full((4, 8), 7.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_momentum_as_a_tensor(cpu_backend: str, dtype: torch.dtype) -> None:
    x = torch.randn(4, 3, 5)
    states = [(torch.zeros(3), torch.ones(3)) for _ in range(2)]
    batch_norm(x, *states[0], training=True, momentum=torch.tensor(0.25, dtype=dtype))
    batch_norm(x, *states[1], training=True, momentum=0.25)
    assert_close(*states)


@pytest.mark.parametrize("momentum", [-1.2, 2.0])
def test_momentum_outside_of_0_to_1(cpu_backend: str, momentum: float) -> None:
    x = torch.randn(4, 3, 5)
    states = [(torch.zeros(3), torch.ones(3)) for _ in range(2)]
    batch_norm(x, *states[0], training=True, momentum=momentum)
    F.batch_norm(x, *states[1], training=True, momentum=momentum)
    assert_close(*states)


def test_expanded_statistics_in_evaluation(cpu_backend: str) -> None:
    """A stride of 0 is fine to read."""
    x = torch.randn(4, 3, 5)
    stats = [torch.tensor([0.5]).expand(3), torch.tensor([2.0]).expand(3)]
    assert_close(batch_norm(x, *stats, stats[0], stats[1]), F.batch_norm(x, *stats, stats[0], stats[1]))


def test_detach_stats_stops_the_gradient(cpu_backend: str) -> None:
    x, dy = torch.randn(4, 3, 5, requires_grad=True), torch.randn(4, 3, 5)
    y = batch_norm(x, None, None, training=True, detach_stats=True)
    var, mean = torch.var_mean(x.detach(), (0, 2), correction=0, keepdim=True)
    assert_close(torch.autograd.grad(y, x, dy)[0], dy / (var + 1e-5).sqrt())
    assert_close(y, (x - mean) / (var + 1e-5).sqrt())


def test_results_do_not_alias_the_input(cpu_backend: str) -> None:
    x = torch.randn(4, 3, 5)
    before = x.clone()
    batch_norm(x, torch.zeros(3), torch.ones(3)).zero_()
    batch_norm(x, None, None, training=True, residual=x).zero_()
    general_relu(x.abs()).zero_()
    general_relu(x, 1.0).zero_()
    assert torch.equal(x, before)


def compose(x: Tensor, leak: float | None, sub: float | None, maxv: float | None) -> Tensor:
    """As the lessons write it."""
    x = F.relu(x) if leak is None else F.leaky_relu(x, leak)
    x = x if sub is None else x - sub
    return x if maxv is None else x.clamp_max(maxv)


EDGES = [-INF, -6.0, -0.5, -1e-40, -0.0, 0.0, 1e-40, 0.5, 0.9, 1.4, 1.5, 6.0, 6.5, INF, NAN]
NUMBERS = list(itertools.product([None, 0.0, 0.1, -0.5, 1.0, 2.0], [None, 0.4, -0.5], [None, 0.5, 1.0, 6.0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_general_relu_at_its_edges(cpu_backend: str, dtype: torch.dtype) -> None:
    """S9, S10: ties, signed zeros, infinities and NaN, forward and backward, for every choice of numbers."""
    x = torch.tensor(EDGES, dtype=dtype).repeat(3).requires_grad_()
    dy = torch.randn(len(x)).to(dtype)
    for numbers in NUMBERS:
        exact_x = x.detach().double().requires_grad_()
        y, exact = general_relu(x, *numbers), compose(exact_x, *numbers)
        assert_close(y, exact.to(dtype), equal_nan=True, msg=f"{numbers}")
        if numbers[1:] == (None, None):
            assert torch.equal(y.signbit()[x == 0], exact.signbit()[x == 0]), numbers
        if dtype == torch.float64:  # where x - sub rounds in a narrow dtype, it may land on maxv exactly
            found, wanted = torch.autograd.grad(y, x, dy), torch.autograd.grad(exact, exact_x, dy)
            assert_close(found, wanted, equal_nan=True, msg=f"{numbers}")


def test_slope_above_the_maximum(cpu_backend: str) -> None:
    x = torch.tensor([-1.0, 0.5, 1.4, 2.4, INF, NAN], requires_grad=True)
    y = general_relu(x, 0.1, 0.4, 1.0, 0.5)
    assert_close(y, torch.tensor([-0.5, 0.1, 1.0, 1.5, INF, NAN]), equal_nan=True)
    y[:4].sum().backward()
    assert_close(x.grad[[0, 1, 3]], torch.tensor([0.1, 1.0, 0.5]))


def test_relu6_passes_the_gradient_at_6(cpu_backend: str) -> None:
    """As clamp_max and GeneralRelu do, and torch's relu6 does not: said in the documentation of act."""
    x = torch.tensor([0.0, 3.0, 6.0, 7.0], requires_grad=True)
    general_relu(x, maxv=6.0).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 4, 5, 6, 7)])
def test_general_relu_of_any_shape(cpu_backend: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    y, expected, dy = general_relu(x, 0.1, 0.4), compose(x, 0.1, 0.4, None), torch.randn(shape)
    assert y.shape == shape
    assert_close(y, expected)
    assert_close(torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, x, dy))


@pytest.mark.parametrize("dims", [4, 5])
def test_channels_last_stays(cpu_backend: str, dims: int) -> None:
    layout = torch.channels_last if dims == 4 else torch.channels_last_3d
    x = torch.randn(2, 3, *([4] * (dims - 2))).to(memory_format=layout).requires_grad_()
    y = general_relu(x, 0.1, 0.4)
    assert y.is_contiguous(memory_format=layout)
    (dx,) = torch.autograd.grad(y, x, torch.randn(x.shape))
    assert dx.is_contiguous(memory_format=layout)


def test_numbers_may_be_ints() -> None:
    assert_close(general_relu(torch.tensor([-2.0, 9.0]), 1, 1, 6), torch.tensor([-3.0, 6.0]))
    assert repr(fastnorm.GeneralRelu(0, 1)) == "GeneralRelu(leak=0, sub=1)"
