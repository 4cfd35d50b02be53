"""What wrong kernels are made of, and how a test is shown to stop them.

The mutants take the eager backend's place; the library itself is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

from fastnorm.autograd import route
from fastnorm.eager import IMPLEMENTATIONS
from fastnorm.ops import OPS
from fastnorm.testing import NormCase, ReluCase, RowCase, conform

from . import functions, test_derivatives
from .backends import ALL

EAGER = ALL["eager"]
Patch: TypeAlias = pytest.MonkeyPatch
Mutant: TypeAlias = Callable[[Patch], None]
Killer: TypeAlias = Callable[[], object]  # a test that passes with the library as it is


def install(patch: Patch, **ops: Callable[..., Any]) -> None:
    patch.setattr(route, "_NODES", False)  # the compiled nodes call the registered ops, which no test can exchange
    patch.setitem(OPS, "eager", SimpleNamespace(**{**IMPLEMENTATIONS, **ops}))


def first_changed(right: Callable[..., Any], change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """An op whose first result (y, dx) is another one."""

    def wrong(*a: Any) -> Any:
        first, *rest = right(*a)
        return change(first), *rest

    return wrong


def dense(t: Tensor) -> Tensor:
    """What a kernel reads that takes every tensor for a contiguous one."""
    return t.as_strided(t.shape, torch.empty(t.shape).stride())


def saves_the_output(patch: Patch, norm: str = "batch_norm") -> None:
    """As a module does that composes the norm and the activation."""
    right = getattr(functions, norm)

    def wrong(*a: Any, act: Any = None, **k: Any) -> Tensor:
        y = right(*a, **k)
        return y if act is None else torch.nn.functional.leaky_relu(y, act.leak) - act.sub

    patch.setattr(functions, norm, wrong)


def conforms(case: NormCase | ReluCase | RowCase) -> Killer:
    return lambda: conform(case, "eager")


def gradgradcheck(option: str) -> Killer:
    def check() -> None:
        try:
            test_derivatives.test_gradgradcheck(option, EAGER)
        except RuntimeError as error:  # gradcheck's own kind of failure
            raise AssertionError(str(error)) from error

    return check


def each_mutant(table: list[tuple[Mutant, Killer]]) -> pytest.MarkDecorator:
    """Every mutant of a table, with the test that must stop it."""
    names = [f"{i}-{mutant.__name__}" for i, (mutant, _) in enumerate(table)]
    return pytest.mark.parametrize(("mutant", "killer"), table, ids=names)


def check_is_caught(mutant: Mutant, killer: Killer) -> None:
    killer()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError):
        mutant(patch)
        killer()
