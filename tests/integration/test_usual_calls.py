"""Calls that go to the CPU kernels past torch's dispatcher, and what keeps a call from doing so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composed import ACT, SHAPE, leaf
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import fastnorm
from fastnorm.activation import IDENTITY
from fastnorm.autograd import route
from fastnorm.functional import batch_norm, general_relu, group_norm, layer_norm, layer_norm_2d, rms_norm
from fastnorm.ops import OPS, native

CALLS = native.nodes()
assert CALLS is not None

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": lambda x: layer_norm(x, SHAPE[2:], act=ACT),
    "rms_norm": lambda x: rms_norm(x, SHAPE[2:]),
    "group_norm": lambda x: group_norm(x, 3),
    "layer_norm_2d": lambda x: layer_norm_2d(x, act=ACT),
    "batch_norm": lambda x: batch_norm(x, None, None, training=True),
    "general_relu": lambda x: general_relu(x, 0.1),
}


class Seen(TorchDispatchMode):
    """Which of this library's ops the dispatcher was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace.startswith("fastnorm"):
            self.ops.append(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


class Unchanged(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


def row(x: Any, **given: Any) -> Tensor | None:
    """A call that is usual but for what is given."""
    usual: dict[str, Any] = {"shape": SHAPE[2:], "groups": None, "weight": None, "bias": None, "residual": None}
    usual |= {"eps": 1e-5, "rms": False, "unbiased": False, "act": IDENTITY}
    y: Tensor | None = CALLS.row_norm(x, *(usual | given).values())
    return y


def batch(x: Any, **given: Any) -> Tensor | None:
    usual: dict[str, Any] = {"mean": torch.zeros(3), "var": torch.ones(3), "weight": None, "bias": None}
    usual |= {"residual": None, "training": True, "momentum": 0.1, "eps": 1e-5}
    usual |= {"unbiased": False, "detach": False, "act": IDENTITY}
    y: Tensor | None = CALLS.batch_norm(x, *(usual | given).values())
    return y


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_usual_call_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = FUNCTIONS[name](x := leaf(*SHAPE))
    for op in vars(OPS["native"]):
        monkeypatch.setattr(OPS["native"], op, None)
    assert_close(FUNCTIONS[name](x), expected, rtol=0, atol=0)


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "dispatch mode": Seen,
    "function mode": Unchanged,
    "profiler": torch.profiler.profile,
    "below autograd": torch._C._AutoDispatchBelowAutograd,
}


@pytest.mark.parametrize("around", AROUND)
def test_it_is_not_taken_where_somebody_listens(around: str) -> None:
    x = leaf(*SHAPE)
    with AROUND[around]():
        found = [row(x), batch(x), CALLS.general_relu(x, None, None, None, None)]
    assert found == [None, None, None]
    assert row(x) is not None and batch(x) is not None


def test_transforms_and_dual_tensors_are_not_taken() -> None:
    x, found = torch.randn(SHAPE), []

    def inner(x: Tensor) -> Tensor:
        found.append(row(x))
        return x.sum()

    torch.func.grad(inner)(x)
    torch.func.vmap(inner)(x)
    with forward_ad.dual_level():
        found.append(row(forward_ad.make_dual(x, torch.ones_like(x))))
        found.append(row(x, residual=forward_ad.make_dual(x, torch.ones_like(x))))
    assert found == [None] * 4


@pytest.mark.parametrize(
    "x",
    [
        None,
        3.0,
        torch.ones(SHAPE).as_subclass(Subclass),
        torch.ones(SHAPE, dtype=torch.int64),
        torch.ones(SHAPE, dtype=torch.complex64),
        torch.ones(SHAPE).to_sparse(),
        torch.ones(SHAPE, device="meta"),
        torch._neg_view(torch.ones(SHAPE)),
    ],
    ids=["None", "number", "subclass", "int", "complex", "sparse", "meta", "negative"],
)
def test_only_plain_tensors_are_taken(x: Any) -> None:
    assert row(x) is None and batch(x) is None and CALLS.general_relu(x, None, None, None, None) is None
    if x is not None:
        plain = torch.ones(SHAPE)
        assert row(plain, residual=x) is None and row(plain, weight=x) is None and batch(plain, mean=x) is None


@pytest.mark.parametrize(
    "given",
    [
        {"shape": ()},
        {"shape": (SHAPE[3],) * 2},
        {"shape": list(SHAPE[2:])},
        {"shape": (1, *SHAPE)},
        {"shape": None, "groups": 0},
        {"shape": None, "groups": 2},
        {"shape": None, "groups": -1},
        {"shape": None, "groups": 2**70},
        {"shape": None, "groups": 3.0},
        {"weight": torch.ones(SHAPE[3])},
        {"bias": torch.ones(SHAPE[3])},
        {"weight": torch.ones(SHAPE[2:], dtype=torch.int64)},
        {"residual": torch.ones(SHAPE[1:])},
        {"residual": torch.ones(SHAPE, dtype=torch.float64)},
        {"eps": float("nan")},
        {"eps": None},
        {"eps": "small"},
        {"act": (True, 0.1)},
        {"act": nn.ReLU()},
        {"act": (True, "steep", None, None, None)},
    ],
    ids=str,
)
def test_what_the_longer_way_has_to_see_is_not_taken(given: dict[str, Any]) -> None:
    assert row(torch.ones(SHAPE)) is not None
    assert row(torch.ones(SHAPE), **given) is None


def test_integers_are_numbers() -> None:
    x = torch.ones(SHAPE)
    assert row(x, eps=1) is not None
    y = CALLS.general_relu(x * 9, None, 1, 6, None)
    assert y is not None and bool((y == 6).all())


@pytest.mark.parametrize(
    "given",
    [
        {"mean": None},
        {"var": None},
        {"mean": None, "var": None, "training": False},
        {"mean": torch.zeros(4)},
        {"mean": torch.zeros(3, requires_grad=True)},
        {"weight": torch.ones(1, 3)},
        {"momentum": torch.tensor(0.1)},
        {"eps": 0.0},
        {"eps": -1.0, "training": False},
        {"training": 1},
    ],
    ids=str,
)
def test_of_batch_norm_neither(given: dict[str, Any]) -> None:
    assert batch(torch.ones(SHAPE)) is not None
    assert batch(torch.ones(SHAPE), **given) is None


def test_values_too_few_for_a_variance_are_not_taken() -> None:
    assert batch(torch.ones(1, 3, 1)) is None
    assert row(torch.ones(1, 3), shape=None, groups=3) is None
    assert row(torch.ones(2, 3), shape=None, groups=3, unbiased=True) is None
    assert row(torch.ones(3), shape=None, groups=1) is None
    assert CALLS.general_relu(torch.ones(3), None, None, None, 0.1) is None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bits_are_those_of_the_dispatched_ops(name: str) -> None:
    x = leaf(*SHAPE)
    direct = FUNCTIONS[name](x)
    dx = torch.autograd.grad(direct.square().sum(), x)[0]
    with Seen() as seen:
        y = FUNCTIONS[name](x)
        found = torch.autograd.grad(y.square().sum(), x)[0]
    assert [op.rpartition("_")[2] for op in seen.ops] == ["fwd", "bwd"]
    assert_close([y, found], [direct, dx], rtol=0, atol=0)


def test_a_mode_around_backward_alone_sees_the_op() -> None:
    y = fastnorm.LayerNorm(SHAPE[3])(leaf(*SHAPE))
    with Seen() as seen:
        y.sum().backward()
    assert seen.ops == ["row_norm_bwd"]


def test_the_profiler_sees_the_ops() -> None:
    layer, x = fastnorm.LayerNorm(SHAPE[3]), leaf(*SHAPE)
    with torch.profiler.profile() as profile:
        layer(x).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"fastnorm_native::row_norm_fwd", "fastnorm_native::row_norm_bwd"} <= names
    assert any("RowNormFunctionBackward" in name for name in names)


def test_inference_mode() -> None:
    x = torch.randn(SHAPE)
    with torch.inference_mode():
        y = row(x)
        again = row(torch.randn(SHAPE))
    assert y is not None and y.is_inference() and again is not None
    assert_close(y, row(x), rtol=0, atol=0)


def test_running_statistics_count_as_written() -> None:
    mean, x = torch.zeros(3), leaf(*SHAPE)
    product = mean * leaf(3)  # saves the buffer
    assert batch(x, mean=mean) is not None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_a_dual_tensor_given_to_the_op_itself_is_refused() -> None:
    with forward_ad.dual_level():
        x = forward_ad.make_dual(leaf(*SHAPE), torch.ones(SHAPE))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            OPS["native"].general_relu_fwd(x, None, None, None, None)


def test_what_this_library_has_switched_on_comes_first() -> None:
    assert route.usual(None) and not route.usual("native")
    with fastnorm.use_backend("native"):
        assert not route.usual(None)
    with fastnorm.recompute():
        assert not route.usual(None)
    assert route.usual(None)


def test_extensions_of_another_day_go_through_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native._State, "nodes", None)
    native._connect(SimpleNamespace())  # type: ignore[arg-type]
    assert native.nodes() is None
    monkeypatch.setattr(native._State, "module", SimpleNamespace())
    native._connect(CALLS)
    assert native.nodes() is None
