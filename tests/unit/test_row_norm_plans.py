"""Launch plans of the row family as data: grid limits, one wave, every line covered once, nothing of the batch."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest
import torch

from fastnorm.ops import triton as triton_ops

pytest.importorskip("triton")

launch = triton_ops._import_kernels().launch
plans = importlib.import_module("fastnorm.kernels.row_norm_plans")
layout = importlib.import_module("fastnorm.kernels.row_norm_layout")

# (shape, dims, groups)
LARGE = [
    ((32768, 768), 1, 0),
    ((1_000_000, 64), 1, 0),
    ((3, 2**20), 1, 0),
    ((2**31, 3), 1, 0),
    ((4, 512, 8193), 1, 0),
    ((5, 16640), 1, 0),
    ((8, 64, 56, 56), 3, 0),
    ((8, 64, 56, 56), 2, 0),
    ((32, 64, 56, 56), 0, 32),
    ((8, 320, 64, 64), 0, 32),
    ((70000, 257, 8, 16), 0, 257),
    ((64, 2048, 7, 7), 0, 1),
    ((4096, 1000), 0, 8),
    ((64, 96, 56, 56), 0, 0),
    ((2, 2000, 1024, 1024), 0, 0),
]
SMALL = [
    ((67, 9), 1, 0),
    ((5, 3, 700), 2, 0),
    ((3, 6, 5, 5), 3, 0),
    ((3, 6, 5, 5), 2, 0),
    ((4, 6, 29, 31), 0, 2),
    ((4, 10, 3, 3), 0, 5),
    ((2, 12, 4, 9), 0, 4),
    ((2, 300, 4, 4), 0, 100),
    ((6, 40, 1, 1), 0, 8),
    ((2, 7, 13), 0, 7),
    ((3, 33, 4, 9), 0, 0),
    ((2, 600, 3, 3), 0, 0),
]
TILED = {"held": 0}


def views(shape: tuple[int, ...], dims: int, groups: int) -> list[Any]:
    meta = torch.empty(shape, device="meta")
    found = [layout.arrange(meta, dims, groups).view]
    if len(shape) == 4:
        channels_last = meta.contiguous(memory_format=torch.channels_last)
        found.append(layout.arrange(channels_last, dims, groups).view)
    return found


def passes(view: Any) -> list[Any]:
    return [plans.FORWARD, plans.BACKWARD_ALONG if view.along else plans.BACKWARD_ACROSS]


def all_plans(
    forms: list[tuple[tuple[int, ...], int, int]], sms: tuple[int, ...], invariant: bool = False, **changes: int
) -> list[tuple[Any, int, Any]]:
    return [
        (plans.row_norm_plan(view, itemsize, n_sms, dataclasses.replace(which, **changes), invariant), n_sms, which)
        for form in forms
        for view in views(*form)
        for itemsize in (2, 4, 8)
        for n_sms in sms
        for which in passes(view)
    ]


def test_sets_are_lines_of_memory() -> None:
    """The table in row_norm_layout, one row after the other."""
    rows, last = {"n": 1, "channels_last": False, "d": 1, "along": True}, {"channels_last": True, "d": 1, "along": True}
    shape = (8, 64, 5, 6)
    assert views(shape, 1, 0) == [plans.RowView(c=8 * 64 * 5, s=6, **rows)] * 2
    assert views(shape, 3, 0) == [plans.RowView(c=8, s=64 * 30, **rows)] * 2
    assert views(shape, 2, 0) == [plans.RowView(c=8 * 64, s=30, **rows), plans.RowView(n=8, c=64, s=30, **last)]
    assert views(shape, 0, 0) == [plans.RowView(n=8, c=30, s=64, **last), plans.RowView(c=8 * 30, s=64, **rows)]
    assert views(shape, 0, 16) == [plans.RowView(8, 64, 30, channels_last, 4, False) for channels_last in (False, True)]
    assert views((8, 64), 0, 16) == [plans.RowView(8, 64, 1, True, 4, False)]
    assert views((8, 64), 0, 1) == [plans.RowView(c=8, s=64, **rows)]


def test_only_trailing_dims_of_channels_last_are_copied() -> None:
    x = torch.empty(8, 64, 5, 6, device="meta").contiguous(memory_format=torch.channels_last)
    for dims, groups, copied in ((1, 0, True), (2, 0, False), (3, 0, False), (4, 0, False), (0, 16, False)):
        arranged = layout.arrange(x, dims, groups)
        assert (arranged.read != torch.channels_last) == copied
        assert arranged.written == torch.channels_last


def test_grids_stay_within_the_limits_of_a_launch() -> None:
    for plan, _, _ in all_plans(LARGE, (132, 16)):
        grids = [plan.forward_grid, plan.backward_grid] if plan.held else [plan.reduce_grid, plan.apply_grid]
        for grid in (*grids, plan.sweep_grid, plan.finish_grid):
            assert 1 <= grid[0] <= 2**31 - 1, plan
            assert all(1 <= extent <= 65535 for extent in grid[1:]), plan


def work(plan: Any, n_sms: int, which: Any) -> list[tuple[int, int, int, int]]:
    """(tiles, columns, shares, slots) of each grid that deals the tiles of its columns."""
    slots = which.programs_per_sm * n_sms
    if plan.held:
        slots = max(n_sms, slots * launch.WARPS // plan.num_warps)
        columns, shares = plan.backward_grid
        return [] if which is plans.FORWARD else [(plan.backward_tiles, columns, shares, slots)]
    found = [(plan.s_blocks, plan.line_tiles, plan.splits, slots)]
    return found + [(plan.line_tiles, plan.s_blocks, plan.sweeps, slots)] * plan.view.along


def test_every_sm_has_work_until_the_end() -> None:
    """Where there are many tiles, the busiest slot has a third more than its part, and a tile for each program."""
    for plan, n_sms, which in all_plans(LARGE, (132, 16)):
        for tiles, columns, shares, slots in work(plan, n_sms, which):
            fills = -(-columns * shares // slots)
            assert 1 <= shares <= tiles, plan
            busiest, part = fills * -(-tiles // shares), columns * tiles / slots
            assert part < 8 or busiest <= 4 / 3 * part + fills, (plan, columns, shares)
            assert fills <= max(plans.WAVES, -(-columns // slots)) or -(-tiles // shares) > 250, plan
            assert -(-tiles // shares) <= plans.LONGEST_SHARE, plan


def test_one_column_is_one_wave() -> None:
    """Layer norm's backward: another wave would leave partial gradients for nothing but the length of sums."""
    for plan, n_sms, which in all_plans(LARGE, (132, 16)):
        if plan.held and plan.view.along and which is not plans.FORWARD:
            wave = max(n_sms, 2 * n_sms * launch.WARPS // plan.num_warps)
            assert plan.sweeps <= max(wave, -(-plan.line_tiles // plans.LONGEST_SHARE)), plan


def test_tiles_of_long_sets_are_enough_for_every_sm() -> None:
    for plan, n_sms, _ in all_plans(LARGE, (132, 16)):
        if not plan.held:
            assert plan.apply_grid[0] >= 2 * n_sms or plan.block_c * plan.block_s <= launch.SMALLEST_TILE, plan


def test_a_program_fits_its_registers() -> None:
    for plan, _, which in all_plans(LARGE + SMALL, (132,)):
        values = plan.block_c * plan.block_s / (plan.num_warps * 32)
        most = which.held / (launch.MAX_WARPS * 32) if plan.held else which.values_per_lane
        assert values <= most or plan.num_warps == 1, plan
        assert all(block & (block - 1) == 0 for block in (plan.block_c, plan.block_s, plan.block_d)), plan
        finish = plan.finish_arguments
        assert finish["BLOCK_SETS"] * finish["BLOCK_ENTRIES"] <= launch.FINISH_TILE, plan


def test_steps_within_a_tile_fit_32_bits() -> None:
    for plan, _, _ in all_plans(LARGE, (132, 16)):
        view = plan.view
        slow = plan.block_s * view.c if view.channels_last else plan.block_c * view.s
        assert slow < 2**31, plan


def test_vector_widths_divide_the_fast_axis() -> None:
    for plan, _, _ in all_plans(LARGE + SMALL, (132,)):
        view = plan.view
        fast, vec = (view.c, plan.c_vec) if view.channels_last else (view.s, plan.s_vec)
        assert plan.c_vec * plan.sizes[0] == view.c and plan.s_vec * plan.sizes[1] == view.s, plan
        assert vec == 16 or fast % (2 * vec), plan


def held_lines(plan: Any, block: int) -> list[int]:
    """The lines of a block of whole sets, padding left out, as row_norm_tiles.held_tile counts them."""
    first = block * (plan.block_c // plan.block_d * plan.view.d)
    steps = [c // plan.block_d * plan.view.d + c % plan.block_d for c in range(plan.block_c)]
    exists = [c % plan.block_d < plan.view.d and first + steps[c] < plan.view.c for c in range(plan.block_c)]
    return [first + step for step, there in zip(steps, exists, strict=True) if there]


@pytest.mark.parametrize("form", SMALL, ids=str)
def test_every_element_is_covered_once(form: tuple[tuple[int, ...], int, int]) -> None:
    for plan, _, _ in all_plans([form], (1, 16)) + all_plans([form], (1, 16), **TILED):
        view = plan.view
        covered = np.zeros((view.c, view.s), dtype=int)
        if plan.held:
            assert plan.block_s >= view.s and plan.block_d >= view.d
            for block in range(plan.c_blocks):
                lines = held_lines(plan, block)
                assert lines, plan
                covered[lines] += 1
        else:
            for block in range(plan.c_blocks):
                for split in range(plan.splits):
                    for tile in range(split, plan.s_blocks, plan.splits):
                        lines = slice(block * plan.block_c, (block + 1) * plan.block_c)
                        covered[lines, tile * plan.block_s : (tile + 1) * plan.block_s] += 1
        assert (covered == 1).all(), plan


def decides_sums(plan: Any) -> tuple[object, ...]:
    finish = plan.finish_arguments
    blocks = plan.block_c, plan.block_s, plan.block_d, plan.num_warps, plan.c_vec, plan.s_vec
    return *blocks, plan.held, plan.registers, None if plan.held else (plan.splits, *finish.values())


@pytest.mark.parametrize("form", [*LARGE[:3], *LARGE[4:10], *LARGE[11:], *SMALL], ids=str)
def test_the_batch_does_not_decide_the_order_of_a_sum(form: tuple[tuple[int, ...], int, int]) -> None:
    """FASTNORM_BATCH_INVARIANT=1; and without it for every set that one program holds."""
    (_, *rest), dims, groups = form
    for number in range(len(views(*form))):
        for itemsize in (2, 4, 8):
            of_view = [views((batch, *rest), dims, groups)[number] for batch in (1, 2, 7, 64, 100_000)]
            invariant = {decides_sums(plans.row_norm_plan(v, itemsize, 132, plans.FORWARD, True)) for v in of_view}
            assert len(invariant) == 1, invariant
            free = {
                decides_sums(p)
                for v in of_view
                if (p := plans.row_norm_plan(v, itemsize, 132, plans.FORWARD, False)).held
            }
            assert len(free) <= 1, free


def test_words_are_as_wide_as_every_samples_address_allows() -> None:
    """A batch that starts at an odd row must not be read in other words than one that starts at the first."""
    for plan, _, _ in all_plans(LARGE + SMALL, (132,), invariant=True):
        assert {plan.c_vec, plan.s_vec} <= {1, 2, 4, 8, 16}
    narrow = plans.row_norm_plan(views((100, 1004), 1, 0)[0], 2, 132, plans.FORWARD, True)
    wide = plans.row_norm_plan(views((100, 1000), 1, 0)[0], 2, 132, plans.FORWARD, True)
    assert (narrow.s_vec, wide.s_vec) == (1, 8)


def test_the_environment_asks_for_batch_invariance(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.empty(2, 2**20, device="meta")
    view = layout.arrange(x, 1, 0).view
    monkeypatch.setattr(launch, "sm_count", lambda x: 132)
    free = plans.forward_plan(x, view)
    monkeypatch.setenv("FASTNORM_BATCH_INVARIANT", "1")
    assert plans.forward_plan(x, view).splits == 2**20 // (4096 * plans.INVARIANT_TILES) != free.splits


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 2**20), (264, 768), (264, 3), (7, 100), (100_000, 64)])
def test_partial_gradients_are_added_by_enough_programs(rows: int, width: int) -> None:
    plan = plans.parameter_plan(rows, width)
    assert (plan.grid[0] - 1) * plan.block < width <= plan.grid[0] * plan.block
    assert plan.block * plan.block_rows <= plans.PARAMETER_TILE
    assert plan.block >= min(plans.PARAMETER_BLOCK, width)
    assert plan.grid[0] >= min(24, rows * width // plans.PARAMETER_TILE, width // plans.PARAMETER_BLOCK)
