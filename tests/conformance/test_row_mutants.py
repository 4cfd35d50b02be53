"""Wrong kernels of the row family, and the test that stops each."""

from __future__ import annotations

import torch

from fastnorm.testing import RowCase
from fastnorm.testing.row_tables import FUSED, GROUP, IMAGES, INSTANCE, LAYER, POSITION, RMS

from . import row_mutants as row
from . import test_batch_invariance as invariance
from . import test_graph, test_row_opcheck
from . import test_row_regressions as regressions
from . import test_row_state as state
from .mutants import EAGER, Killer, Mutant, check_is_caught, conforms, each_mutant, gradgradcheck

FUSED_LAYER = LAYER.but(**FUSED)

MUTANTS: list[tuple[Mutant, Killer]] = [
    (row.uncentred_variance, conforms(GROUP.but(data="offset_1e2"))),
    (row.uncentred_variance, conforms(LAYER.but(data="offset_1e4"))),
    (row.uncentred_variance, conforms(POSITION.but(data="offset_1e2"))),
    (row.bf16_statistics, conforms(LAYER)),
    (row.bf16_statistics, conforms(GROUP.but(dtype="bf16"))),
    (row.bf16_statistics, conforms(RMS.but(dtype="bf16"))),
    (row.one_accumulator, conforms(RowCase((2, 400_009), "layer", data="uniform"))),
    (row.eps_outside_the_root, conforms(LAYER)),
    (row.forgets_unbiased, conforms(GROUP.but(unbiased=True, shape=(5, 64, 28, 28)))),
    (row.rms_takes_the_mean_off, conforms(RMS)),
    (row.rms_gradient_of_layer_norm, conforms(RMS)),
    (row.groups_interleaved, conforms(RowCase((2, 6, 4, 5), "group", 3))),
    (row.statistics_of_the_first_sample, conforms(INSTANCE)),
    (row.forgets_the_layout, conforms(INSTANCE.but(layout="channels_last"))),
    (row.forgets_the_layout, conforms(IMAGES.but(layout="channels_last"))),
    (row.forgets_the_layout_of_dx, conforms(GROUP.but(layout="channels_last", dy="contiguous"))),
    (row.forgets_the_layout_of_dx, lambda: regressions.test_channels_last_is_kept("layer over images", EAGER)),
    (row.ignores_strides, conforms(LAYER.but(layout="every_second"))),
    (row.ignores_upstream_strides, conforms(GROUP.but(dy="channels_last"))),
    (row.ignores_strides_of_the_weight, conforms(IMAGES.but(vectors="transposed"))),
    (row.skips_the_last_row, conforms(POSITION)),
    (row.scribbles_behind_the_weight, conforms(LAYER)),
    (row.uncentred_dgamma, conforms(regressions.UNCENTRED_DGAMMA[0])),
    (row.uncentred_dgamma, conforms(regressions.UNCENTRED_DGAMMA[2])),
    (row.forgets_the_average_of_dy, conforms(IMAGES)),
    (row.forgets_the_last_row_of_dbias, conforms(GROUP)),
    (row.half_dbias, lambda: regressions.test_dbias_of_many_rows(torch.float16, EAGER)),
    (row.half_dbias, conforms(RowCase((131, 67), "layer", dtype="fp16"))),
    (row.one_accumulator_of_dbias, conforms(RowCase((65_537, 3), "layer"))),
    (row.mask_without_the_bias, conforms(LAYER.but(act="relu"))),
    (row.residual_gradient_behind_the_activation, conforms(GROUP.but(act="full", residual="same"))),
    (
        row.sees_its_neighbours,
        lambda: invariance.test_a_row_does_not_see_its_neighbours(FUSED_LAYER, EAGER),
    ),
    (row.keeps_the_normalised, lambda: test_graph.test_saved_bytes("images", EAGER)),
    (row.second_derivative_without_statistics, gradgradcheck("group")),
    (row.mean_off_by_an_ulp, lambda: regressions.test_one_element_says_nothing_about_the_weight(1e6, EAGER)),
    (row.nothing_written_for_empty_batches, lambda: state.test_empty("no instance samples", EAGER)),
    (row.momentum_reversed, lambda: state.test_instance_statistics_over_batches(0.1, torch.float32, EAGER)),
    (row.mean_of_rms, lambda: test_row_opcheck.test_shapes_and_dtypes_of_results("channels_last", "rms", EAGER)),
]


@each_mutant(MUTANTS)
def test_mutant_is_caught(mutant: Mutant, killer: Killer) -> None:
    check_is_caught(mutant, killer)
