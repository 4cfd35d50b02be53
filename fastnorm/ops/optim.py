"""The compiled optimizer steps: a plan holds an optimizer's tensors between two steps, so that a step only takes
gradients and numbers.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastnorm.eager.layout import memory_format_of
from fastnorm.ops import native

SGD, RMSPROP, ADAM = range(3)  # as OptimKind in csrc/bind/optim_plan.h
MASTER, STEP, FIRST, STOCHASTIC, CENTERED = (1 << i for i in range(5))  # as OptimPart there
STATE_SHIFT = 8
ADAM_SUMS = 7  # as AdamSum in csrc/math/adam.h


class TensorMoved(Exception):
    """A tensor of a plan lies elsewhere than when it was made. Nothing was done: make a new plan."""


@dataclass
class Row:
    """One parameter as a plan sees it; tensors: parameter, master, states, step, those that there are."""

    group: int
    parameter: int
    tensors: list[Tensor]
    states: int
    parts: int = 0  # of the flags above


@dataclass
class Plan:
    """Tensors of a whole optimizer, known to the kernels. Freed with this object."""

    kind: int
    rows: Sequence[Row]
    handle: int = field(init=False)

    def __post_init__(self) -> None:
        ops = torch.ops.fastnorm_optim
        tensors = [t for row in self.rows for t in row.tensors]
        numbers = [n for r in self.rows for n in (r.group, r.parts | r.states << STATE_SHIFT, r.parameter)]
        self.handle = ops.prepare(self.kind, tensors, numbers)
        self._step, self._grad_norm = ops.step.default, ops.grad_norm.default
        module = native.available()
        self._take_grads = getattr(module, "take_grads", None)
        self._take_hyper = getattr(module, "take_hyper", None)
        weakref.finalize(self, ops.release.default, self.handle).atexit = False

    def step(self, grads: list[Tensor], hyper: list[float], multiplier: float, seed: int) -> None:
        """Updates everything in place. Raises TensorMoved."""
        if not self._step(self.handle, self._left(grads), hyper, multiplier, seed):
            raise TensorMoved

    def take_hyper(self, groups: list[dict[str, Any]], keys: tuple[str, ...], words: dict[str, float]) -> bool:
        """Whether the next step's hyper-parameters were all numbers, and are in the plan: then `step` is given none.

        They stand under these keys of every group; a tuple is all of its members, a word the number that it means.
        """
        return self._take_hyper is not None and self._take_hyper(self.handle, groups, keys, words)

    def grad_norm(self, grads: list[Tensor]) -> float:
        """The norm of all gradients together. Raises TensorMoved."""
        norm = self._grad_norm(self.handle, self._left(grads))
        if norm < 0:
            raise TensorMoved
        return norm

    def shared(self) -> object | None:
        """The plan as the compiled nodes see it; None where the extension is too old to share it."""
        share = getattr(native.available(), "optim_steps", None)
        return None if share is None else share(self.handle)

    def _left(self, grads: list[Tensor]) -> list[Tensor]:
        """The gradients that have to be passed to the op: none where the plan can take them on the short way."""
        return [] if self._take_grads is not None and self._take_grads(self.handle, grads) else grads


def step_out(
    kind: int, tensors: list[Tensor], hyper: list[float], step: float = 0.0, first: bool = False
) -> list[Tensor]:
    """One step out of place: tensors are parameter, gradient, states; the new parameter and states come back."""
    return torch.ops.fastnorm_optim.step_out.default(kind, tensors, hyper, step, first)


def adam_bwd(
    tensors: list[Tensor], upstream: list[Tensor], hyper: list[float], step: float
) -> tuple[list[Tensor], Tensor]:
    """The gradients of Adam's inputs, and the sums that those of its numbers are made of (docs/math.md, O6)."""
    return torch.ops.fastnorm_optim.adam_bwd.default(tensors, upstream, hyper, step)


def _fake_step_out(kind: int, tensors: list[Tensor], hyper: list[float], step: float, first: bool) -> list[Tensor]:
    """Parameter and states, in the parameter's memory format."""
    layout = memory_format_of(tensors[0])
    return [torch.empty_like(t, memory_format=layout, requires_grad=False) for t in (tensors[0], *tensors[2:])]


def _fake_adam_bwd(
    tensors: list[Tensor], upstream: list[Tensor], hyper: list[float], step: float
) -> tuple[list[Tensor], Tensor]:
    param = tensors[0]
    layout = memory_format_of(param)
    grads = [torch.empty_like(param, memory_format=layout, requires_grad=False) for _ in tensors]
    return grads, param.new_empty(ADAM_SUMS, dtype=torch.float64)


_libraries: list[torch.library.Library] = []  # a Library unregisters its kernels when it is collected


def _register_fakes() -> None:
    """What the ops that compute give, for tracing and compiling; those of the plans are never traced."""
    library = torch.library.Library("fastnorm_optim", "FRAGMENT")
    torch.library.register_fake("fastnorm_optim::step_out", _fake_step_out, lib=library)
    torch.library.register_fake("fastnorm_optim::adam_bwd", _fake_adam_bwd, lib=library)
    _libraries.append(library)


if native.available() is not None:
    _register_fakes()


def same_objects(a: list, b: list) -> bool:
    """Whether two lists hold the very same objects."""
    module = native.available()
    if module is None:
        return len(a) == len(b) and all(map(operator.is_, a, b))
    return module.same_objects(a, b)


def same_values(dicts: list[dict], values: list) -> bool:
    """Whether the values of all dicts, one after the other, are the very objects of a list."""
    module = native.available()
    if module is None:
        return same_objects([value for d in dicts for value in d.values()], values)
    return module.same_values(dicts, values)


def same_items(dicts: list[dict], keys: tuple[str, ...], values: list) -> bool:
    """Whether these keys of all dicts, one dict after the other, have the very objects of a list (None: or lack it)."""
    ask = getattr(native.available(), "same_items", None)
    if ask is None:
        return same_objects([d.get(key) for d in dicts for key in keys], values)
    return ask(dicts, keys, values)


def grads_of(params: list[Tensor]) -> list[Tensor]:
    """The gradients of those parameters that have one."""
    module = native.available()
    if module is None:
        return [p.grad for p in params if p.grad is not None]
    return module.grads_of(params)
