"""Triton launch plans as data: grid limits, enough programs, and every element covered exactly once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from fastnorm.ops import triton as triton_ops

pytest.importorskip("triton")

launch = triton_ops._import_kernels().launch
batch_norm_plans = triton_ops._import_kernels().batch_norm_plans

SHAPES = [
    (32, 64, 56, 56),
    (32, 256, 14, 14),
    (256, 64, 8, 8),
    (8, 3, 32, 32),
    (32, 3, 224, 224),
    (256, 64, 56, 56),
    (256, 256, 56, 56),
    (1024, 2048, 7, 7),
    (64, 3, 224, 224),
    (2, 2**20),
    (65536, 1000),
    (7, 1, 2**24),
    (4, 40, 17, 31),
    (70000, 257, 8, 16),  # more than 2^31 elements
    (4, 2**28, 3),
    (2**20, 4099),
]
SMALL = [
    (4, 5, 3, 3),
    (3, 7, 29, 31),
    (67, 9),
    (5, 3, 1, 1),
    (1, 40, 65),
    (300, 13),
    (2, 33, 4, 9),
    (6, 1, 70, 70),
]
PASSES = [launch.FORWARD, launch.BACKWARD, launch.ELEMENTWISE]
TILED = [dataclasses.replace(each, held=0) for each in PASSES[:2]]


def views(shape: tuple[int, ...]) -> list[Any]:
    meta = torch.empty(shape, device="meta")
    found = [launch.view_of(meta, torch.contiguous_format)]
    if len(shape) == 4:
        found.append(launch.view_of(meta.contiguous(memory_format=torch.channels_last), torch.channels_last))
    return found


def plans(shapes: list[tuple[int, ...]], sms: tuple[int, ...], passes: list[Any]) -> list[tuple[Any, Any, int, Any]]:
    return [
        (view, batch_norm_plans.batch_norm_plan(view, itemsize, n_sms, which), n_sms, which)
        for shape in shapes
        for view in views(shape)
        for itemsize in (2, 4, 8)
        for n_sms in sms
        for which in passes
    ]


def test_the_fast_axis_of_a_view_is_the_one_with_stride_one() -> None:
    contiguous, channels_last = views((32, 64, 56, 56))
    assert contiguous == launch.View(n=32, c=64, s=3136, channels_last=False)
    assert channels_last == launch.View(n=1, c=64, s=32 * 3136, channels_last=True)
    assert views((67, 9)) == [launch.View(n=1, c=9, s=67, channels_last=True)]
    assert views((5, 3, 1, 1))[0] == launch.View(n=1, c=3, s=5, channels_last=True)


def test_grids_stay_within_the_limits_of_a_launch() -> None:
    for view, plan, _, _ in plans(SHAPES, (132, 108, 16), PASSES):
        for grid in (plan.reduce_grid, plan.apply_grid, plan.finish_grid):
            assert 1 <= grid[0] <= 2**31 - 1, (view, plan)
            assert all(1 <= extent <= 65535 for extent in grid[1:]), (view, plan)
    assert launch.elementwise_plan(2**31 + 5).grid[0] * launch.elementwise_plan(2**31 + 5).block >= 2**31 + 5


def test_every_sm_gets_two_programs_where_there_are_that_many_tiles() -> None:
    for view, plan, n_sms, which in plans(SHAPES, (132, 108, 16), PASSES):
        if plan.held:
            continue
        one_wave = which.programs_per_sm * n_sms
        reducing = plan.c_blocks * plan.splits
        assert plan.c_blocks * plan.tiles >= 2 * n_sms or plan.block_c * plan.block_s <= 512, (view, plan)
        assert reducing <= max(one_wave, plan.c_blocks), (view, plan)
        one_share_more = plan.c_blocks * (plan.splits + 1)
        assert reducing >= min(2 * n_sms, plan.c_blocks * plan.tiles) or one_share_more > one_wave, (view, plan)
        assert 1 <= plan.splits <= plan.tiles, (view, plan)


def test_partial_results_of_a_large_tensor_are_a_small_part_of_it() -> None:
    """The scratch of the statistics, 4 numbers per channel and split, against the values they stand for."""
    for view, plan, _, _ in plans(SHAPES, (132,), PASSES[:1]):
        values = view.n * view.c * view.s
        if not plan.held and values > 2**24:
            assert 4 * plan.splits * view.c <= values / 32, (view, plan)
        assert plan.finish_block_splits >= plan.splits


def test_a_program_fits_its_registers() -> None:
    for view, plan, _, which in plans(SHAPES, (132, 16), PASSES):
        values = plan.block_c * plan.block_s / (plan.num_warps * 32)
        itemsize_limit = which.held / (launch.MAX_WARPS * 32) if plan.held else launch.VALUES_PER_LANE
        assert values <= itemsize_limit or plan.num_warps == 1, (view, plan)
        assert plan.block_c & (plan.block_c - 1) == 0 and plan.block_s & (plan.block_s - 1) == 0
        assert plan.finish_block_c * plan.finish_block_splits <= launch.FINISH_TILE


def test_steps_within_a_tile_fit_32_bits() -> None:
    for view, plan, _, _ in plans(SHAPES, (132, 16), PASSES):
        if not plan.held:
            slow = plan.block_s * view.c if view.channels_last else plan.block_c * view.s
            assert slow < 2**31, (view, plan)


def test_vector_widths_divide_the_fast_axis() -> None:
    for view, plan, _, _ in plans(SHAPES, (132,), PASSES[:1]):
        assert view.c % plan.c_vec == 0 and view.s % plan.s_vec == 0
        fast, vec = (view.c, plan.c_vec) if view.channels_last else (view.s, plan.s_vec)
        assert vec == 16 or fast % (2 * vec), (view, plan)


def tile_slices(view: Any, plan: Any, block: int, tile: int) -> tuple[int, slice, slice]:
    image, s_block = divmod(tile, plan.s_blocks)
    channels = slice(block * plan.block_c, min(view.c, (block + 1) * plan.block_c))
    positions = slice(s_block * plan.block_s, min(view.s, (s_block + 1) * plan.block_s))
    return image, channels, positions


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_every_element_is_covered_once(shape: tuple[int, ...]) -> None:
    for view, plan, _, _ in plans([shape], (1, 16), [*PASSES, *TILED]):
        covered = np.zeros((view.n, view.c, view.s), dtype=int)
        if plan.held:
            assert plan.block_s >= view.n * view.s and plan.c_blocks * plan.block_c >= view.c
            assert (plan.c_blocks - 1) * plan.block_c < view.c
            continue
        for block in range(plan.c_blocks):
            for split in range(plan.splits):
                for tile in range(split, plan.tiles, plan.splits):
                    covered[tile_slices(view, plan, block, tile)] += 1
        assert (covered == 1).all(), (view, plan)
