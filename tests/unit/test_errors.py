"""Every mistake: the exception's type, and a message with the argument, what came and what was expected."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import fastnorm
from fastnorm.functional import batch_norm, general_relu

NAN = float("nan")


def call(shape: tuple[int, ...] = (4, 3, 5), training: bool = True, **given: Any) -> Tensor:
    """A correct call of batch_norm but for what is given."""
    arguments = {
        "input": torch.randn(shape),
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
        "weight": torch.ones(3),
        "bias": torch.zeros(3),
        "training": training,
    }
    return batch_norm(**(arguments | given))


both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def test_the_correct_call_is_correct(cpu_backend: str) -> None:
    assert call().shape == (4, 3, 5)


@both_modes
@pytest.mark.parametrize("shape", [(), (3,)])
def test_rank(cpu_backend: str, training: bool, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"input \[N, C, \*\].*at least 2 dims.*got shape \((3,)?\)"):
        call(shape, training)


@pytest.mark.parametrize(
    "layer, shape, message",
    [
        (fastnorm.BatchNorm1d(3), (4, 3, 5, 5), "expected 2D or 3D input \\(got 4D input\\)"),
        (fastnorm.BatchNorm2d(3), (4, 3, 5), "expected 4D input \\(got 3D input\\)"),
        (fastnorm.BatchNorm3d(3), (4, 3, 5, 5), "expected 5D input \\(got 4D input\\)"),
    ],
    ids=["1d", "2d", "3d"],
)
def test_rank_of_modules(layer: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(shape))


@both_modes
@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
@pytest.mark.parametrize("size", [0, 2, 4])
def test_channel_count(cpu_backend: str, training: bool, name: str, size: int) -> None:
    with pytest.raises(RuntimeError, match=rf"{name} should contain 3 elements not {size} \(shape \({size},\)\)"):
        call(training=training, **{name: torch.ones(size)})


@both_modes
def test_channel_count_of_modules(cpu_backend: str, training: bool) -> None:
    x = torch.randn(4, 5, 2, 2)
    with pytest.raises(RuntimeError, match="should contain 5 elements not 3"):
        fastnorm.BatchNorm2d(3).train(training)(x)
    with pytest.raises(RuntimeError, match="should contain 5 elements not 3"):
        fastnorm.LessonBatchNorm(3).train(training)(x)
    with pytest.raises(RuntimeError, match="weight should contain 5 elements not 3"):
        fastnorm.BatchNorm2d(3, track_running_stats=False).train(training)(x)


@both_modes
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_dtype_of_the_input(cpu_backend: str, training: bool, dtype: torch.dtype) -> None:
    x = torch.ones(4, 3).to(dtype)
    with pytest.raises(NotImplementedError, match=f"batch_norm.*input has dtype {dtype}"):
        call(training=training, input=x)
    with pytest.raises(NotImplementedError, match=f"general_relu.*input has dtype {dtype}"):
        general_relu(x, 0.1)
    with pytest.raises(NotImplementedError, match=f"general_relu.*input has dtype {dtype}"):
        general_relu(x, 0.1, inplace=True)
    with pytest.raises(NotImplementedError, match=f"residual has dtype {dtype}"):
        call((4, 3), training, residual=x)


@both_modes
@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_dtype_of_a_vector(cpu_backend: str, training: bool, name: str, dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match=f"{name} must be fp64, fp32, bf16 or fp16, got {dtype}"):
        call(training=training, **{name: torch.ones(3, dtype=dtype)})


@both_modes
@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
def test_device_mix(cpu_backend: str, training: bool, name: str) -> None:
    with pytest.raises(RuntimeError, match=f"{name} is on meta, but input is on cpu"):
        call(training=training, **{name: torch.ones(3, device="meta")})


def test_device_mix_of_the_residual_and_of_the_input(cpu_backend: str) -> None:
    with pytest.raises(RuntimeError, match="residual is on meta, but input is on cpu"):
        call(residual=torch.empty(4, 3, 5, device="meta"))
    with fastnorm.use_backend("eager"), pytest.raises(RuntimeError, match="is on cpu, but input is on meta"):
        call(input=torch.empty(4, 3, 5, device="meta"))


@pytest.mark.parametrize(
    "eps, training, message",
    [
        (0.0, True, "eps must be positive during training, but got 0.0"),
        (-1.0, True, "eps must be positive during training, but got -1.0"),
        (NAN, True, "eps must be positive during training, but got nan"),
        (-1.0, False, "eps must be non-negative, but got -1.0"),
        (NAN, False, "eps must be non-negative, but got nan"),
    ],
)
def test_eps(cpu_backend: str, eps: float, training: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(training=training, eps=eps)
    with pytest.raises(ValueError, match=message):
        fastnorm.BatchNorm1d(3, eps=eps).train(training)(torch.randn(4, 3))
    with pytest.raises(ValueError, match=message):
        fastnorm.LessonBatchNorm(3, eps=eps).train(training)(torch.randn(4, 3, 2, 2))


def test_eps_of_zero_is_right_in_evaluation(cpu_backend: str) -> None:
    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(call(training=False, input=x, eps=0.0), x)


def test_running_statistics_come_together(cpu_backend: str) -> None:
    """B9."""
    for missing in ("running_mean", "running_var"):
        with pytest.raises(ValueError, match="running_mean and running_var must either both be None"):
            call(**{missing: None})
        with pytest.raises(RuntimeError, match=f"{missing} must be defined in evaluation mode"):
            call(training=False, **{missing: None})
    with pytest.raises(RuntimeError, match="running_mean must be defined in evaluation mode"):
        call(training=False, running_mean=None, running_var=None)


@both_modes
@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_running_statistics_are_not_differentiable(cpu_backend: str, training: bool, name: str) -> None:
    with pytest.raises(RuntimeError, match=f"not differentiable with respect to.*{name}"):
        call(training=training, **{name: torch.ones(3, requires_grad=True)})


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1), (1, 3, 5), (4, 3, 6), (3, 4, 5), (4, 3, 5, 1), (60,), ()])
def test_shape_of_the_residual(cpu_backend: str, shape: tuple[int, ...]) -> None:
    """It is never broadcast."""
    with pytest.raises(ValueError, match=r"residual must have input's shape \(4, 3, 5\), got \(") as caught:
        call(residual=torch.randn(shape))
    assert str(tuple(shape)) in str(caught.value)
    with pytest.raises(ValueError, match="residual must have input's shape"):
        fastnorm.BatchNorm1d(3)(torch.randn(4, 3, 5), torch.randn(shape))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1, 1)])
def test_one_value_per_channel(cpu_backend: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel when training, got input size") as caught:
        call(shape)
    assert str(list(shape)) in str(caught.value)
    assert call(shape, False).shape == shape


def test_no_channels_is_not_one_value_per_channel(cpu_backend: str) -> None:
    empty = torch.empty(0)
    given = {"running_mean": empty, "running_var": empty, "weight": empty, "bias": empty}
    for training in (True, False):
        assert call((4, 0), training, **given).shape == (4, 0)


@both_modes
def test_sparse_input(cpu_backend: str, training: bool) -> None:
    x = torch.randn(4, 3)
    for sparse in (x.to_sparse(), x.to_sparse_csr(), x.to_mkldnn()):
        with pytest.raises(NotImplementedError, match=f"dense strided tensors; input has layout {sparse.layout}"):
            call(training=training, input=sparse)
        with pytest.raises(NotImplementedError, match=f"general_relu.*layout {sparse.layout}"):
            general_relu(sparse, 0.1)
    with pytest.raises(NotImplementedError, match=r"residual has layout torch\.sparse_coo"):
        call((4, 3), training, residual=x.to_sparse())


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_sparse_vector(cpu_backend: str, name: str) -> None:
    with pytest.raises(RuntimeError, match=f"{name}.*sparse"):
        call(**{name: torch.ones(3).to_sparse()})


@pytest.mark.parametrize("momentum", [torch.ones(2), torch.ones(1, 3), torch.ones((), device="meta")], ids=str)
def test_tensor_momentum_must_be_one_number_on_the_inputs_device(cpu_backend: str, momentum: Tensor) -> None:
    with pytest.raises((ValueError, RuntimeError), match="momentum"):
        call(momentum=momentum)


@pytest.mark.parametrize("name", ["input", "weight", "bias", "running_mean", "running_var", "residual"])
def test_what_is_no_tensor(cpu_backend: str, name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a Tensor"):
        call(**{name: [1.0, 1.0, 1.0]})


@pytest.mark.parametrize("momentum", ["0.1", None, [0.1]], ids=repr)
def test_momentum_that_is_no_number(momentum: Any) -> None:
    with pytest.raises(TypeError, match="momentum must be a number"):
        call(momentum=momentum)


@pytest.mark.parametrize("momentum", [1, True, numpy.float32(0.5)], ids=repr)
def test_momentum_may_be_any_number(cpu_backend: str, momentum: Any) -> None:
    x, mean = torch.randn(4, 3, 5), torch.zeros(3)
    call(input=x, running_mean=mean, momentum=momentum)
    torch.testing.assert_close(mean, float(momentum) * x.mean((0, 2)))


def test_failed_calls_leave_the_statistics_alone(cpu_backend: str) -> None:
    mean, var = torch.zeros(3), torch.ones(3)
    bad: list[dict[str, Any]] = [
        {"weight": torch.ones(4)},
        {"residual": torch.ones(4, 3)},
        {"eps": -1.0},
        {"act": "relu"},
        {"backend": "no such"},
    ]
    for given in bad:
        with pytest.raises((ValueError, RuntimeError)):
            call(running_mean=mean, running_var=var, **given)
    assert torch.equal(mean, torch.zeros(3)) and torch.equal(var, torch.ones(3))
