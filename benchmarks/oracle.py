"""The check before a candidate is timed: the conformance suite's float64 answers and its one rule."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from benchmarks.cases import DTYPES, Case
from benchmarks.prepare import Results
from fastnorm.testing.cases import NormCase, ReluCase, RowCase
from fastnorm.testing.compare import Expectation, check
from fastnorm.testing.judge import Expectations
from fastnorm.testing.oracle import norm_problem, relu_problem
from fastnorm.testing.problems import Problem
from fastnorm.testing.row_oracle import row_problem
from fastnorm.testing.stats import StatsCase, stats_problem

LIKE_X = ("x", "y", "dy", "residual")


@functools.lru_cache(maxsize=1)  # forward and backward of a case share it; two of the largest are too much
def solved(case: NormCase | ReluCase | RowCase | StatsCase) -> tuple[Problem, Expectations]:
    if isinstance(case, StatsCase):
        x, wanted = stats_problem(case)
        return Problem(x, x), wanted
    if isinstance(case, ReluCase):
        return relu_problem(case)
    return norm_problem(case) if isinstance(case, NormCase) else row_problem(case)


class Oracle:
    """The tensors of a case on its device, and what must come out of them.

    Channels of a batch norm, or samples of a row norm, do not depend on one another: a few are solved in float64 and
    repeated to the case's number.
    """

    def __init__(self, case: Case) -> None:
        few, self.wanted = solved(case.problem)
        self.dim, self.distinct = case.repeated_dim, case.distinct
        self.count = case.shape[self.dim] // self.distinct
        every = {name: self.repeated(name, t) for name, t in few.tensors().items()}
        self.problem = Problem(**every).copy(case.device)
        self.peer_error = torch.finfo(DTYPES[case.dtype]).eps ** (1 / 3)

    def repeated(self, name: str, t: Tensor) -> Tensor:
        """x, dy, residual repeated in the memory format that they have; parameters along the channels, if those are."""
        if name not in LIKE_X:
            return t.repeat(self.count) if self.dim else t.clone()
        form = torch.contiguous_format if t.is_contiguous() else torch.channels_last
        return torch.cat([t] * self.count, dim=self.dim).contiguous(memory_format=form)

    def complaint(self, candidate: str, actual: Results) -> str:
        """What is wrong with a candidate's results, or nothing.

        fastnorm is held to the comparison rule, element by element. A peer must compute the same thing; how
        exactly is its own affair (bf16 rounded between the operations has a dweight that is off by 10 %): its
        relative error, in the norm of each result, may be the cube root of the dtype's spacing.
        """
        for name, got in actual.items():
            blocks, want = self.blocks(name, got)
            for index, block in enumerate(blocks):
                label = f"{name}, {'channels' if self.dim else 'samples'} from {index * self.distinct}"
                try:
                    if candidate.startswith("fastnorm"):
                        check(block, want, label)
                        continue
                    error = float((block.double() - want.exact).norm() / want.exact.norm())
                    assert error <= self.peer_error, f"{label}: relative error {error:.3g}"
                except AssertionError as wrong:
                    return str(wrong)
        return ""

    def blocks(self, name: str, t: Tensor) -> tuple[tuple[Tensor, ...], Expectation]:
        """A result cut into blocks of what was solved; a sum over repeated samples is so many times theirs."""
        t, want = t.detach().cpu(), self.wanted[name]
        if self.dim == 0 and name.removeprefix("d") not in LIKE_X:
            exact, peer, floor = (self.count * value for value in (want.exact, want.peer, want.floor))
            return (t,), Expectation(exact, peer, floor, want.dtype)
        return t.split(self.distinct, dim=self.dim if name.removeprefix("d") in LIKE_X else 0), want
