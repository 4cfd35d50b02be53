"""The optimizers' launch plans as data: every element in one chunk, no SM idle where there is work, 64-bit offsets."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.launch_plans import launches
from benchmarks.optim_cases import LISTS
from fastnorm.ops import optim_plans, optim_table
from fastnorm.ops import triton as triton_ops
from fastnorm.testing.triton_cases import OptimCase

pytest.importorskip("triton")


kernels = triton_ops._import_kernels()
SMS = (132, 108, 16)
PAST = 2**31 + 4097
SIZES = {
    **{name: tuple(math.prod(shape) for shape in shapes()) for name, shapes in LISTS.items()},
    "past-2^31": (PAST,),
    "past-2^31-in-all": (2**30, 5, 2**30, 1, 2**30 + 3),
    "one-element": (1,),
    "edges": (1, 1023, 1024, 1025, 8191, 8192, 8193, 65535, 65537),
}
each_list = pytest.mark.parametrize("name", SIZES)


@pytest.mark.parametrize("sms", SMS)
@each_list
def test_the_grid(name: str, sms: int) -> None:
    """Within a launch's limits, and two programs for every SM unless all chunks are as short as a block."""
    sizes = SIZES[name]
    chunk = optim_plans.chunk_length(sizes, sms)
    assert 1 <= optim_plans.count(sizes, chunk) <= 2**31 - 1
    assert optim_plans.count(sizes, chunk) >= 2 * sms or chunk == optim_plans.SHORTEST
    assert chunk % kernels.optim.BLOCK == 0 and kernels.optim.BLOCK % (32 * kernels.optim.WARPS * 4) == 0


def test_chunks_are_as_long_as_the_sms_allow() -> None:
    found = [optim_plans.chunk_length((n,), 132) for n in (50_000_000, 2_000_000, 1_000_000, 1000)]
    assert found == [8192, 4096, 2048, 1024]


@each_list
def test_every_element_lies_in_one_chunk(name: str) -> None:
    sizes = SIZES[name]
    for chunk in {optim_plans.chunk_length(sizes, sms) for sms in SMS}:
        table = optim_plans.chunk_table(sizes, chunk)
        assert table.dtype == torch.int64 and len(table) == optim_plans.count(sizes, chunk)
        rows, begins = table.unbind(1)
        ends = torch.minimum(begins + chunk, torch.tensor(sizes)[rows])
        assert (begins % chunk == 0).all() and (begins < ends).all()
        same = rows[1:] == rows[:-1]  # a chunk begins where the one before it ends, or at the next row's start
        assert torch.equal(begins[1:], torch.where(same, ends[:-1], 0)) and begins[0] == 0
        assert torch.equal(rows[1:], rows[:-1] + ~same) and rows[0] == 0 and rows[-1] == len(sizes) - 1
        assert torch.equal(ends[:-1][~same], torch.tensor(sizes[:-1], dtype=torch.int64)) and ends[-1] == sizes[-1]


def test_chunks_past_two_to_the_31_are_not_cut_off() -> None:
    assert optim_plans.chunk_table((PAST,), 8192)[-1].tolist() == [0, 2**31]
    assert optim_plans.chunk_table((PAST, 7), 1024)[-2:].tolist() == [[0, 2**31 + 4096], [1, 0]]


RULES = {  # kind, states, centered, bytes of a parameter's number in fp32 and in bf16 with fp32 states
    "sgd": (0, 0, False, 12, 6),
    "sgd_momentum": (0, 1, False, 20, 14),
    "rmsprop": (1, 1, False, 20, 14),
    "rmsprop_centered_momentum": (1, 3, True, 36, 30),
    "adam": (2, 2, False, 28, 22),
    "adam_amsgrad": (2, 3, False, 36, 30),
}


@pytest.mark.parametrize("sms", SMS)
@pytest.mark.parametrize("rule", RULES)
@each_list
def test_the_launcher_launches_the_plan(name: str, rule: str, sms: int) -> None:
    """One launch for the whole list, the plan's grid, both tables complete, and no byte more than the update needs."""
    sizes, (kind, states, centered, fp32, bf16) = SIZES[name], RULES[rule]
    chunks = optim_plans.count(sizes, optim_plans.chunk_length(sizes, sms))
    for dtype, each in (("fp32", fp32), ("bf16", bf16)):
        case = OptimCase((len(sizes), sum(sizes)), dtype, kind=kind, states=states, centered=centered, sizes=sizes)
        (one,) = launches(case, sms)
        assert one.grid == (chunks,) and one.warps == kernels.optim.WARPS and one.blocks == {"BLOCK": 1024}
        assert one.tensors["table_ptr"] == (8 * len(sizes), 64 * len(sizes))
        assert one.tensors["chunk_ptr"] == (2 * chunks, 16 * chunks)
        assert one.tensors["rows"] == (sum(sizes), each * sum(sizes))
        if sum(sizes) >= 2**20 and min(sizes) >= 1000:
            assert one.bytes - one.tensors["rows"][1] <= 0.015 * one.tensors["rows"][1]


def test_parameters_of_two_dtypes_take_two_launches() -> None:
    params = [torch.empty(9, dtype=dtype, device="meta") for dtype in (torch.float32, torch.bfloat16)] * 2
    launcher = optim_table.TritonLauncher(triton_ops._import_kernels)
    table = optim_table.OptimTable([optim_table.OptimRow(param, []) for param in params], launcher)
    table.take(params)
    assert [part.members for part in table.parts] == [[0, 2], [1, 3]]
