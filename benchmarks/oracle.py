"""The check before a candidate is timed: the conformance suite's float64 answers and its one rule."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from benchmarks.cases import DTYPES, Case
from benchmarks.peers import Results
from fastnorm.testing.cases import NormCase, ReluCase
from fastnorm.testing.compare import check
from fastnorm.testing.oracle import Expectations, norm_problem, relu_problem
from fastnorm.testing.problems import Problem


@functools.lru_cache(maxsize=1)  # forward and backward of a case share it; two of the largest are too much
def solved(case: NormCase | ReluCase) -> tuple[Problem, Expectations]:
    return norm_problem(case) if isinstance(case, NormCase) else relu_problem(case)


class Oracle:
    """The tensors of a case on its device, and what must come out of them.

    Channels do not depend on one another, so a few are solved in float64 and repeated to the case's number.
    """

    def __init__(self, case: Case) -> None:
        few, self.wanted = solved(case.problem)
        self.channels = case.distinct_channels
        count = case.shape[1] // self.channels
        every = {name: repeated(t, count) for name, t in few.tensors().items()}
        self.problem = Problem(**every).copy(case.device)
        self.peer_error = torch.finfo(DTYPES[case.dtype]).eps ** (1 / 3)

    def complaint(self, candidate: str, actual: Results) -> str:
        """What is wrong with a candidate's results, or nothing.

        fastnorm is held to the comparison rule, element by element. A peer must compute the same thing; how
        exactly is its own affair (bf16 rounded between the operations has a dweight that is off by 10 %): its
        relative error, in the norm of each result, may be the cube root of the dtype's spacing.
        """
        for name, got in actual.items():
            want = self.wanted[name]
            for index, block in enumerate(self.blocks(got)):
                label = f"{name}, channels from {index * self.channels}"
                try:
                    if candidate == "fastnorm":
                        check(block, want, label)
                        continue
                    error = float((block.double() - want.exact).norm() / want.exact.norm())
                    assert error <= self.peer_error, f"{label}: relative error {error:.3g}"
                except AssertionError as wrong:
                    return str(wrong)
        return ""

    def blocks(self, t: Tensor) -> tuple[Tensor, ...]:
        """A result [N, C, *] or [C], cut into blocks of the channels that were solved."""
        return t.detach().cpu().split(self.channels, dim=min(1, t.dim() - 1))


def repeated(t: Tensor, count: int) -> Tensor:
    """[N, C, *] or [C] repeated along the channels, in the memory format that it has."""
    if t.dim() == 1:
        return t.repeat(count)
    form = torch.contiguous_format if t.is_contiguous() else torch.channels_last
    return torch.cat([t] * count, dim=1).contiguous(memory_format=form)
