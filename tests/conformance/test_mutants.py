"""Every kind of check bites: wrong kernels, and the test that stops each."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastnorm.testing import NormCase, ReluCase, conform

from . import batch_mutants as batch
from . import test_determinism, test_graph, test_memory, test_ties
from .mutants import (
    EAGER,
    Killer,
    Mutant,
    check_is_caught,
    conforms,
    each_mutant,
    gradgradcheck,
    install,
    saves_the_output,
)

BASE = NormCase((5, 7, 3, 11))
BIG = NormCase((17, 33, 13, 11))

MUTANTS: list[tuple[Mutant, Killer]] = [
    (batch.uncentred_variance, conforms(BASE.but(data="offset_1e2"))),
    (batch.uncentred_variance, conforms(BIG.but(data="offset_1e4"))),
    (batch.bf16_statistics, conforms(BASE)),
    (batch.bf16_statistics, conforms(BASE.but(dtype="bf16"))),
    (batch.unbiased_normalisation, conforms(BIG)),
    (batch.one_accumulator, conforms(NormCase((400_009, 1), data="uniform"))),
    (batch.momentum_reversed, conforms(BASE)),
    (batch.eps_outside_the_root, conforms(BASE)),
    (batch.biased_running_variance, conforms(BASE)),
    (batch.forgets_the_layout, conforms(BASE.but(layout="channels_last"))),
    (batch.ignores_strides, conforms(BASE.but(layout="every_second"))),
    (batch.ignores_strides, conforms(BASE.but(layout="transposed"))),
    (batch.ignores_upstream_strides, conforms(BASE.but(dy="channels_last"))),
    (batch.ignores_upstream_strides, conforms(BASE.but(dy="every_second"))),
    (batch.skips_the_tail, conforms(BASE)),
    (batch.writes_past_the_buffer, conforms(BASE)),
    (batch.rounds_twice, conforms(BASE.but(dtype="bf16", act="full"))),
    (batch.flushes_denormals, conforms(BASE.but(data="denormal"))),
    (batch.drops_nan, conforms(ReluCase((67,), data="nan"))),
    (batch.uncentred_dweight, conforms(BASE.but(data="offset_1e4", dy="centred"))),
    (batch.forgets_the_average_of_dy, conforms(BASE)),
    (batch.bf16_dbias, conforms(BIG)),
    (batch.clamps_only_positive, conforms(ReluCase((67,), act="low_max"))),
    (batch.residual_gradient_behind_the_activation, conforms(BASE.but(act="full", residual="same"))),
    (
        batch.bound_blocks_the_gradient,
        lambda: test_ties.test_general_relu(test_ties.EXACT_ACTS["full"], torch.float32, EAGER),
    ),
    (
        batch.slope_one_at_zero,
        lambda: test_ties.test_general_relu(test_ties.EXACT_ACTS["relu"], torch.bfloat16, EAGER),
    ),
    (batch.not_deterministic, lambda: test_determinism.test_repeat(BASE, EAGER)),
    (saves_the_output, lambda: test_graph.test_saved_bytes("batch", EAGER)),
    (batch.second_derivative_without_statistics, gradgradcheck("full")),
]


@each_mutant(MUTANTS)
def test_mutant_is_caught(mutant: Mutant, killer: Killer) -> None:
    check_is_caught(mutant, killer)


def test_flushing_denormals_is_noticed() -> None:
    torch.set_flush_denormal(True)
    try:
        with pytest.raises(AssertionError):
            test_memory.test_denormals_are_kept()
    finally:
        torch.set_flush_denormal(False)


def test_writing_into_dy_is_noticed() -> None:
    """Also where the value comes back: an expanded dy that is scaled in place is scaled many times."""

    def wrong(dy: Tensor, *a: Any) -> Any:
        dy.as_strided((1,), (1,), dy.storage_offset()).add_(0.5)
        return batch.bwd(dy, *a)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="memory of dy"):
        install(patch, batch_norm_bwd=wrong)
        conform(BASE, "eager")


def test_dependence_on_threads_is_noticed(threads: None) -> None:
    def wrong(*a: Any) -> Any:
        dx, dweight, *rest = batch.bwd(*a)
        return dx, dweight * (1 + math.ulp(1.0) * 2**29 * torch.get_num_threads()), *rest

    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="threads"):
        install(patch, batch_norm_bwd=wrong)
        test_determinism.test_threads(BASE, EAGER, None)
