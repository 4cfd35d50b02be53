"""Every mistake with the row family: the exception that torch raises, and a message that says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnorm
from fastnorm import functional

NAN = float("nan")
ones = torch.ones


def x() -> Tensor:
    return torch.randn(4, 6, 5)


Call = Callable[[Any], Tensor]
# name -> a call of torch.nn.functional or of ours, the exception of both, what our message says
AS_TORCH: dict[str, tuple[Call, type[Exception], str]] = {
    "layer shape": (
        lambda f: f.layer_norm(x(), (4,)),
        RuntimeError,
        r"normalized_shape=\[4\], expected input with shape \[\*, 4\], but got input of size ?\[4, 6, 5\]",
    ),
    "layer of too many dims": (
        lambda f: f.layer_norm(ones(()), (1,)),
        RuntimeError,
        r"normalized_shape=\[1\].*size ?\[\]",
    ),
    "rms of no dims": (lambda f: f.rms_norm(ones(()), (1,)), ValueError, "must have at least 1 dim"),
    "layer without a shape": (lambda f: f.layer_norm(x(), ()), RuntimeError, "normalized_shape to be at least 1-dim"),
    "layer shape of a number": (lambda f: f.layer_norm(x(), 5), TypeError, "normalized_shape.*must be"),
    "layer weight": (
        lambda f: f.layer_norm(x(), (5,), ones(4)),
        RuntimeError,
        r"weight to be of same shape as normalized_shape, but got weight of shape \[4\] and normalized_shape = \[5\]",
    ),
    "layer weight, flat": (lambda f: f.layer_norm(x(), (6, 5), ones(30)), RuntimeError, r"weight of shape \[30\]"),
    "layer bias": (lambda f: f.layer_norm(x(), (5,), ones(5), ones(6)), RuntimeError, r"bias of shape \[6\]"),
    "rms shape": (lambda f: f.rms_norm(x(), (4,)), RuntimeError, r"normalized_shape=\[4\], expected input"),
    "rms weight": (lambda f: f.rms_norm(x(), (5,), ones(4)), RuntimeError, r"weight of shape \[4\]"),
    "groups that do not divide": (
        lambda f: f.group_norm(x(), 4),
        RuntimeError,
        r"divisible by num_groups, but got input of shape \[4, 6, 5\] and num_groups=4",
    ),
    "negative groups": (lambda f: f.group_norm(x(), -2), RuntimeError, "num groups to be greater than 0, got -2"),
    "group rank": (lambda f: f.group_norm(ones(6), 3), RuntimeError, "at least 2 dimensions.*received 1"),
    "group weight": (
        lambda f: f.group_norm(x(), 3, ones(5)),
        RuntimeError,
        r"weight of shape \[5\] and input of shape \[4, 6, 5\]",
    ),
    "group weight of two dims": (
        lambda f: f.group_norm(x(), 3, ones(6, 1)),
        RuntimeError,
        r"weight of shape \[6, 1\]",
    ),
    "one value in all": (
        lambda f: f.group_norm(ones(1, 6, 1, 1), 6),
        ValueError,
        r"more than 1 value per channel when training, got input size \[1, 6, 1, 1\]",
    ),
    "one position": (
        lambda f: f.instance_norm(ones(4, 6, 1, 1)),
        ValueError,
        r"more than 1 spatial element when training, got input size torch.Size\(\[4, 6, 1, 1\]\)",
    ),
    "no positions": (lambda f: f.instance_norm(ones(4, 6)), ValueError, "more than 1 spatial element"),
    "instance weight": (lambda f: f.instance_norm(x(), weight=ones(5)), RuntimeError, "weight should contain"),
    "one buffer": (
        lambda f: f.instance_norm(x(), ones(6)),
        ValueError,
        "running_mean and running_var must either both",
    ),
    "no buffers": (lambda f: f.instance_norm(x(), use_input_stats=False), RuntimeError, "running_mean.*defined"),
    "running mean": (lambda f: f.instance_norm(x(), ones(5), ones(6)), RuntimeError, "running_mean should contain"),
    "integers, layer": (lambda f: f.layer_norm(ones(4, 5).int(), (5,)), NotImplementedError, "dtype torch.int32|'Int'"),
    "integers, rms": (lambda f: f.rms_norm(ones(4, 5).int(), (5,)), NotImplementedError, "dtype torch.int32|'Int'"),
    "integers, instance": (lambda f: f.instance_norm(x().int()), NotImplementedError, "dtype torch.int32|'Int'"),
}


@pytest.mark.parametrize("name", AS_TORCH)
def test_same_exception_as_torch(name: str) -> None:
    call, kind, message = AS_TORCH[name]
    for module in (F, functional):
        with pytest.raises(kind, match=message) as caught:
            call(module)
        assert caught.type is kind


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "layer_norm": lambda t, **more: functional.layer_norm(t, (5,), **more),
    "rms_norm": lambda t, **more: functional.rms_norm(t, (5,), **more),
    "group_norm": lambda t, **more: functional.group_norm(t, 3, **more),
    "instance_norm": functional.instance_norm,
    "layer_norm_2d": functional.layer_norm_2d,
}
SIZES = {"layer_norm": 5, "rms_norm": 5}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def size_of(name: str) -> int:
    return SIZES.get(name, 6)


@every_function
def test_correct_calls_are_correct(cpu_backend: str, name: str) -> None:
    """Otherwise the wrong ones below would be refused for another reason."""
    more = {} if name == "rms_norm" else {"bias": ones(size_of(name))}
    assert FUNCTIONS[name](x(), weight=ones(size_of(name)), residual=x(), **more).shape == (4, 6, 5)


@every_function
def test_eps_that_is_no_number(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} eps must be a number, but got nan"):
        FUNCTIONS[name](x(), eps=NAN)


@every_function
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_dtype_of_the_input(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(NotImplementedError, match=f"{name} takes.*input has dtype {dtype}"):
        FUNCTIONS[name](ones(4, 6, 5).to(dtype))
    with pytest.raises(NotImplementedError, match=f"residual.* dtype {dtype}"):
        FUNCTIONS[name](x(), residual=ones(4, 6, 5).to(dtype))


@every_function
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_dtype_of_the_weight(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match=f"weight must be fp64, fp32, bf16 or fp16, got {dtype}"):
        FUNCTIONS[name](x(), weight=ones(size_of(name), dtype=dtype))


@every_function
def test_device_mix(name: str) -> None:
    with pytest.raises(RuntimeError, match="weight is on meta, but input is on cpu"):
        FUNCTIONS[name](x(), weight=ones(size_of(name), device="meta"))
    with pytest.raises(RuntimeError, match="residual is on meta, but input is on cpu"):
        FUNCTIONS[name](x(), residual=ones(4, 6, 5, device="meta"))
    with fastnorm.use_backend("eager"), pytest.raises(RuntimeError, match="is on cpu, but input is on meta"):
        FUNCTIONS[name](x().to("meta"), weight=ones(size_of(name)))


@every_function
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (1, 6, 5), (4, 6, 6), (6, 4, 5), (120,), ()])
def test_shape_of_the_residual(name: str, shape: tuple[int, ...]) -> None:
    """It is never broadcast."""
    with pytest.raises(ValueError, match=r"residual must have input's shape \(4, 6, 5\), got \(") as caught:
        FUNCTIONS[name](x(), residual=torch.randn(shape))
    assert str(tuple(shape)) in str(caught.value)


@every_function
def test_sparse(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"{name} takes dense strided tensors.*sparse_coo"):
        FUNCTIONS[name](x().to_sparse())
    with pytest.raises(RuntimeError, match=r"weight.*sparse"):
        FUNCTIONS[name](x(), weight=ones(size_of(name)).to_sparse())


@every_function
@pytest.mark.parametrize("argument", ["input", "weight", "residual"])
def test_what_is_no_tensor(name: str, argument: str) -> None:
    given = [1.0, 2.0]
    with pytest.raises(TypeError, match=argument):
        FUNCTIONS[name](given) if argument == "input" else FUNCTIONS[name](x(), **{argument: given})


@every_function
@pytest.mark.parametrize("act", [nn.Sigmoid(), "relu", torch.relu, 0.1], ids=["Sigmoid", "str", "function", "float"])
def test_type_of_act(name: str, act: Any) -> None:
    with pytest.raises(ValueError, match=r"act must be a GeneralRelu.*or None, got") as caught:
        FUNCTIONS[name](x(), act=act)
    assert repr(act) in str(caught.value)


def test_type_of_act_of_modules() -> None:
    makers: list[Callable[[], object]] = [
        lambda: fastnorm.LayerNorm(5, act=nn.Sigmoid()),
        lambda: fastnorm.RMSNorm(5, act=nn.Sigmoid()),
        lambda: fastnorm.GroupNorm(2, 6, act=nn.Sigmoid()),
        lambda: fastnorm.InstanceNorm2d(6, act=nn.Sigmoid()),
        lambda: fastnorm.LayerNorm2d(6, act=nn.Sigmoid()),
        lambda: fastnorm.LessonLayerNorm(6, act=nn.Sigmoid()),
    ]
    for make in makers:
        with pytest.raises(ValueError, match="act must be"):
            make()


def test_zero_groups() -> None:
    """torch divides by it."""
    with pytest.raises(RuntimeError, match="num groups to be greater than 0, got 0"):
        functional.group_norm(x(), 0)


def test_unbiased_variance_of_one_value(cpu_backend: str) -> None:
    for shape, groups in (((4, 6), 6), ((4, 6, 1, 1), 6), ((4, 1), 1)):
        with pytest.raises(ValueError, match="unbiased variance needs more than 1 value per group") as caught:
            functional.group_norm(ones(shape), groups, unbiased=True)
        assert str(list(shape)) in str(caught.value)
    with pytest.raises(ValueError, match="more than 1 value per group"):
        fastnorm.LessonLayerNorm(1)(ones(4, 1, 1, 1))
    assert functional.group_norm(ones(0, 6), 6, unbiased=True).shape == (0, 6)


def test_layer_norm_2d() -> None:
    with pytest.raises(RuntimeError, match=r"at least 2 dimensions.*received 1"):
        functional.layer_norm_2d(ones(6))
    with pytest.raises(RuntimeError, match=r"weight of shape \[5\] and input of shape \[4, 6, 5\]"):
        functional.layer_norm_2d(x(), ones(5))
    with pytest.raises(RuntimeError, match=r"weight of shape \[6\] and input of shape \[4, 3, 5\]"):
        fastnorm.LayerNorm2d(6)(ones(4, 3, 5))


@pytest.mark.parametrize("dims, wrong", [(1, (4, 6, 5, 5)), (2, (6, 5)), (3, (4, 6, 5))])
def test_rank_of_instance_norm_modules(dims: int, wrong: tuple[int, ...]) -> None:
    ours, theirs = (getattr(m, f"InstanceNorm{dims}d")(6) for m in (fastnorm, nn))
    messages = []
    for layer in (ours, theirs):
        with pytest.raises(ValueError, match="D input") as caught:
            layer(torch.randn(wrong))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("affine", [True, False])
def test_channels_of_instance_norm_modules(affine: bool) -> None:
    """An error where there are parameters, a warning where the number means nothing."""
    layer = fastnorm.InstanceNorm1d(5, affine=affine)
    if affine:
        with pytest.raises(ValueError, match=r"size at dim=1 to match num_features \(5\), but got: 6"):
            layer(x())
    else:
        with pytest.warns(UserWarning, match="does not match num_features"):
            assert layer(x()).shape == (4, 6, 5)


def test_failed_calls_leave_the_statistics_alone(cpu_backend: str) -> None:
    mean, var = torch.zeros(6), ones(6)
    bad: list[dict[str, Any]] = [
        {"weight": ones(4)},
        {"residual": ones(4, 6)},
        {"eps": NAN},
        {"act": "relu"},
        {"backend": "no such"},
    ]
    for given in bad:
        with pytest.raises((ValueError, RuntimeError)):
            functional.instance_norm(x(), mean, var, **given)
    assert torch.equal(mean, torch.zeros(6)) and torch.equal(var, ones(6))
