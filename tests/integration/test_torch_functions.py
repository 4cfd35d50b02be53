"""PyTorch's own sample and error inputs of functions (OpInfo), replayed against ours and torch's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_torch_databases import assert_no_worse, every_dtype
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db

import fastnorm


def _native_ours(x: Tensor, w: Any, b: Any, rm: Any, rv: Any, training: bool, momentum: float, eps: float) -> Tensor:
    return fastnorm.functional.batch_norm(x, rm, rv, w, b, training, momentum, eps)


def _native_theirs(*args: Any) -> Tensor:
    return torch.native_batch_norm(*args)[0]


def _updating_ours(x: Tensor, w: Any, b: Any, rm: Any, rv: Any, momentum: float, eps: float) -> Tensor:
    return fastnorm.functional.batch_norm(x, rm, rv, w, b, True, momentum, eps)


def _updating_theirs(*args: Any) -> Tensor:
    return torch.ops.aten._batch_norm_with_update(*args)[0]


def _leaky(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    return fastnorm.functional.general_relu(x, negative_slope)


def _relu6(x: Tensor) -> Tensor:
    return fastnorm.functional.general_relu(x, maxv=6.0)


# name in op_db, ours, torch's; batch norm's samples carry running statistics, which must move alike.
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "nn.functional.batch_norm": (fastnorm.functional.batch_norm, F.batch_norm),
    "native_batch_norm": (_native_ours, _native_theirs),
    "_batch_norm_with_update": (_updating_ours, _updating_theirs),
    "nn.functional.relu": (fastnorm.functional.general_relu, F.relu),
    "nn.functional.leaky_relu": (_leaky, F.leaky_relu),
    "nn.functional.relu6": (_relu6, F.relu6),
}
OP_INFOS = [op for op in op_db if op.name in FUNCTIONS and not op.variant_test_name]
every_function = pytest.mark.parametrize("op", OP_INFOS, ids=[op.name for op in OP_INFOS])


def function_outcome(function: Callable[..., Tensor], args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Result, gradient of every argument that asks for it, and every tensor argument afterwards."""
    args, kwargs = [own(a) for a in args], {name: own(a) for name, a in kwargs.items()}
    y = function(*args, **kwargs)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape, dtype=torch.float64).to(y.dtype))
    found: dict[str, Any] = {"y": y.detach()}
    for name, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, Tensor):
            found[f"argument {name}"], found[f"gradient {name}"] = value.detach(), value.grad
    return found


def own(value: Any) -> Any:
    """A tensor's copy: an in-place change of a running statistic must not reach the next call."""
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def as_double(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().double().requires_grad_(value.requires_grad)


def replay(op: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    ours, theirs = FUNCTIONS[op.name]
    exact = function_outcome(theirs, [as_double(a) for a in args], {n: as_double(a) for n, a in kwargs.items()})
    assert_no_worse(function_outcome(ours, args, kwargs), function_outcome(theirs, args, kwargs), exact)


@every_function
@every_dtype
@pytest.mark.parametrize("strided", [False, True], ids=["dense", "noncontiguous"])
def test_function_samples(cpu_backend: str, op: Any, dtype: torch.dtype, strided: bool) -> None:
    assert dtype in op.supported_dtypes("cpu")
    replayed = 0
    for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
        sample = sample.noncontiguous() if strided else sample
        args = [sample.input, *sample.args]
        if "batch_norm" in op.name and sample.input.dim() < 2:
            # torch lets an empty vector through as a batch of no channels; ours says that the rank is wrong.
            with pytest.raises(ValueError, match=re.escape("shape (0,)")):
                FUNCTIONS[op.name][0](*args, **sample.kwargs)
            continue
        replay(op, args, sample.kwargs)
        replayed += 1
    assert replayed >= 3


@every_function
def test_function_errors(cpu_backend: str, op: Any) -> None:
    """torch 2.13 lists none for these ops; what a later one lists must hold for ours."""
    if op.error_inputs_func is None:
        return
    for error in op.error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type):
            FUNCTIONS[op.name][0](sample.input, *sample.args, **sample.kwargs)


def test_the_database_was_found() -> None:
    assert {op.name for op in OP_INFOS} == set(FUNCTIONS)
