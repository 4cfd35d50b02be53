"""What a model's results are in float64, and how far rounding may move them."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastnorm.verify.question import OUTPUTS, Answers, Disturbance, Key, Question
from fastnorm.verify.rule import distance, noise_of, size_of
from fastnorm.verify.trees import is_inexact, named_tensors

# The float64 copy does something else, such as drawing other random numbers, where an output of the original is off
# by more than so many floors, and by more than the cube root of the dtype's spacing.
STRANGE = 8.0
# Two float64 results are compared without a finer one, and their sums have no wider type to add up in.
DOUBLE = 64.0


class Reference:
    """The original in one mode: its own answers, the exact ones, and a floor for each.

    is_double: whether the exact answers are those of a float64 copy, and not the original's own.
    note: why they are not, unless the model is float64 itself.
    exact_dtype: the coarsest dtype that they went through on their way: some models compute parts in fp32 always.
    """

    def __init__(self, model: nn.Module, question: Question, *, training: bool, samples: int) -> None:
        self._training = training
        self.original = question.answers(copy.deepcopy(model), training=training)
        _refuse_nan(self.original)
        self.dtype = coarsest(itertools.chain(model.parameters(), question.tensors, self.original.values()))
        self.is_double, self.note = False, ""
        if self.dtype != torch.float64:
            self.note = self._try_double(model, question, samples)
            self.is_double = not self.note
        if not self.is_double:
            self._adopt(model, question, samples)

    def _try_double(self, model: nn.Module, question: Question, samples: int) -> str:
        """Why the model has no float64 copy; nothing, if it has."""
        try:
            self._adopt(copy.deepcopy(model).double(), question.double(), samples)
        except Exception as error:  # whatever the model cannot do in float64
            return f"the original cannot run in float64 ({brief(error)})"
        for key, own in self.original.items():
            exact = self.exact.get(key)
            if exact is None or exact.shape != own.shape:
                return f"in float64 the original gives something else for {key[1]}"
            if bool(own.isinf().any()) and bool((own.isinf() & exact.isfinite()).any()):
                raise ValueError(f"the model overflows in {self.dtype}: {key[0]}, {key[1]} is infinite")
            off, least = distance(own, exact), torch.finfo(self.dtype).eps ** (1 / 3)
            if key[0] == OUTPUTS and off > STRANGE * self.floor[key] and off > least * size_of(exact):
                return f"in float64 the original computes another {key[1]}: random numbers, perhaps"
        return ""

    def _adopt(self, model: nn.Module, question: Question, samples: int) -> None:
        """Takes the answers of this model for exact."""
        self._model, self._question, self._samples = model, question, 0
        with CoarsestSeen() as seen:
            self.exact = question.answers(copy.deepcopy(model), training=self._training)
        self.exact_dtype = seen.dtype
        self.floor = {key: noise_of(self.dtype) * size_of(exact) for key, exact in self.exact.items()}
        self.sample_up_to(samples)

    def sample_up_to(self, samples: int) -> None:
        """Widens the floor to the largest of so many roundings."""
        while self._samples < samples:
            self._samples += 1
            disturb = Disturbance(noise_of(self.dtype), self._samples)
            moved = self._question.answers(copy.deepcopy(self._model), training=self._training, disturb=disturb)
            for key, exact in self.exact.items():
                off = distance(moved[key], exact) if key in moved else 0.0
                if math.isfinite(off):  # what a rounding drove to infinity measures nothing
                    self.floor[key] = max(self.floor[key], off)

    def double_floor(self) -> dict[Key, float]:
        """The floor for a converted model that runs in float64 as well: rounding is as much smaller as its spacing."""
        share = min(1.0, DOUBLE * torch.finfo(self.exact_dtype).eps / torch.finfo(self.dtype).eps)
        return {key: share * value for key, value in self.floor.items()}


class CoarsestSeen(TorchDispatchMode):
    """The coarsest floating dtype that any operation gave; float64 before the first."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        self.dtype = coarsest((t for _, t in named_tensors(given, "")), self.dtype)
        return given


def coarsest(tensors: Iterable[Tensor], dtype: torch.dtype = torch.float64) -> torch.dtype:
    """The floating dtype with the widest spacing among the tensors' and the one given."""
    found = {t.real.dtype if t.is_complex() else t.dtype for t in tensors if is_inexact(t)} | {dtype}
    return max(found, key=lambda one: torch.finfo(one).eps)


def _refuse_nan(answers: Answers) -> None:
    for (kind, name), t in answers.items():
        if is_inexact(t) and bool(t.isnan().any()):
            raise ValueError(f"the model itself gives NaN before any conversion: {kind}, {name}; nothing to compare")


def brief(error: Exception) -> str:
    """The kind of an exception and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
