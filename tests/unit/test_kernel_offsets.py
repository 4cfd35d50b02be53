"""The kernels' own index arithmetic, run under the interpreter without the tensors of more than 2^31 elements."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

HEAD = """
import torch, triton, triton.language as tl
from fastnorm.ops import triton as triton_ops
triton_ops._import_kernels()
"""

BATCH_NORM = """
from fastnorm.kernels.batch_norm_tiles import program_tile, tile_start

@triton.jit
def start_kernel(out_ptr, block, tile, s_blocks, C, S, CHANNELS_LAST: tl.constexpr):
    start, left = tile_start(block, tile, s_blocks, C.to(tl.int64), S.to(tl.int64), 16, 256, CHANNELS_LAST)
    tl.store(out_ptr, start)
    tl.store(out_ptr + 1, left)

@triton.jit
def order_kernel(out_ptr, c_blocks, s_blocks, CHANNELS_LAST: tl.constexpr):
    block, tile = program_tile(c_blocks, s_blocks, CHANNELS_LAST)
    tl.store(out_ptr + 2 * tl.program_id(0), block)
    tl.store(out_ptr + 2 * tl.program_id(0) + 1, tile)

out = torch.zeros(2, dtype=torch.int64)
start_kernel[(1,)](out, 15, 69999 * 13 + 12, 13, 257, 3136, CHANNELS_LAST=False)
assert out.tolist() == [(69999 * 257 + 240) * 3136 + 12 * 256, 3136 - 12 * 256], out
start_kernel[(1,)](out, 255, 2**22, 2**23, 4099, 2**31, CHANNELS_LAST=True)
assert out.tolist() == [2**22 * 256 * 4099 + 255 * 16, 2**31 - 2**22 * 256], out
for last in (False, True):
    seen = torch.zeros(3 * 4 * 5, 2, dtype=torch.int64)
    order_kernel[(60,)](seen, 3, 4, CHANNELS_LAST=last)
    assert sorted(map(tuple, seen.tolist())) == [(c, t) for c in range(3) for t in range(20)], seen
"""

ROW_NORM = """
from fastnorm.kernels.row_norm_tiles import held_tile, sample_tile

@triton.jit
def held_kernel(out_ptr, sample, block, C, S, CHANNELS_LAST: tl.constexpr):
    sample, block = sample.to(tl.int64), block.to(tl.int64)
    c, sets, exists, start, steps = held_tile(
        sample, block, C.to(tl.int64), S.to(tl.int64), 3, CHANNELS_LAST, 8, 16, 4
    )
    tl.store(out_ptr + tl.arange(0, 8), c)
    tl.store(out_ptr + 8 + tl.arange(0, 8), sets)
    tl.store(out_ptr + 16 + tl.arange(0, 8), exists)
    tl.store(out_ptr + 24, start)

@triton.jit
def tile_kernel(out_ptr, sample, block, tile, C, S, CHANNELS_LAST: tl.constexpr):
    c, s, mask, start, steps = sample_tile(
        sample, block, tile, 13, C.to(tl.int64), S.to(tl.int64), 16, 256, CHANNELS_LAST
    )
    tl.store(out_ptr, start)
    tl.store(out_ptr + 1, tl.max(s, axis=0))

out = torch.zeros(25, dtype=torch.int64)
held_kernel[(1,)](out, 69999, 2, 15, 3136, CHANNELS_LAST=False)
assert out[:8].tolist() == [12, 13, 14, 15, 15, 16, 17, 18], out
assert out[8:16].tolist() == [69999 * 5 + 4] * 4 + [69999 * 5 + 5] * 4, out
assert out[16:24].tolist() == [1, 1, 1, 0, 0, 0, 0, 0], out
assert out[24] == (69999 * 15 + 12) * 3136, out
held_kernel[(1,)](out, 69999, 2, 18, 3136, CHANNELS_LAST=False)
assert out[16:24].tolist() == [1, 1, 1, 0, 1, 1, 1, 0], out
held_kernel[(1,)](out, 69999, 2, 15, 3136, CHANNELS_LAST=True)
assert out[24] == 69999 * 15 * 3136 + 12, out
out = torch.zeros(2, dtype=torch.int64)
tile_kernel[(1,)](out, 69999, 15, 12, 257, 3136, CHANNELS_LAST=False)
assert out.tolist() == [(69999 * 257 + 240) * 3136 + 12 * 256, 13 * 256 - 1], out
tile_kernel[(1,)](out, 69999, 15, 12, 257, 3136, CHANNELS_LAST=True)
assert out.tolist() == [69999 * 257 * 3136 + 12 * 256 * 257 + 240, 13 * 256 - 1], out
"""


def run(lines: str) -> None:
    """In a process of its own: the interpreter must be on before triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", HEAD + lines], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_offsets_past_two_to_the_31_and_the_order_of_programs() -> None:
    run(BATCH_NORM)


def test_offsets_past_two_to_the_31() -> None:
    """Of the row family."""
    run(ROW_NORM)
