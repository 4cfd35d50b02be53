"""How batch norm would be spread over GPUs that are not here: the launch plan is a function of the shape."""

from __future__ import annotations

import math
import platform
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache

import pytest

from .build import build_program

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or shutil.which("g++") is None, reason="the plan is compiled by g++, on Linux"
)


@dataclass(frozen=True)
class Gpu:
    name: str
    sms: int
    shared: int
    l2: int
    clusters: bool

    def __str__(self) -> str:
        return self.name


H200 = Gpu("H200", 132, 227 << 10, 50 << 20, True)
A100 = Gpu("A100", 108, 163 << 10, 40 << 20, False)
SMALL = Gpu("small", 16, 99 << 10, 4 << 20, False)
GPUS = (H200, A100, SMALL)


@dataclass(frozen=True)
class Plan:
    kind: str
    lanes: int
    columns: int
    threads: int
    team: int
    teams: int
    held: int
    shared: int
    groups: int
    vectors: int
    rounds: int

    @property
    def blocks(self) -> int:
        return self.team * self.teams

    @property
    def part(self) -> int:
        """Vectors of a thread, at most."""
        return math.ceil(math.ceil(self.vectors / self.team) / self.threads)


@lru_cache
def program() -> subprocess.Popen[str]:
    """It answers line by line, until this process ends."""
    built = build_program("tests/emulation/plans.cu", "csrc/cuda/batch_norm_plan.cu")
    return subprocess.Popen([built], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def plan(gpu: Gpu, n: int, c: int, s: int, rows: bool = False, element: int = 2, tensors: int = 1) -> Plan:
    numbers = (gpu.sms, gpu.shared, gpu.l2, int(gpu.clusters), n, c, s, int(rows), element, tensors, 64)
    pipes = program()
    assert pipes.stdin is not None and pipes.stdout is not None
    pipes.stdin.write(" ".join(map(str, numbers)) + "\n")
    kind, *values = pipes.stdout.readline().split()
    return Plan(kind, *map(int, values))


SHAPES = (
    *((256, 64, 56 * 56), (256, 256, 56 * 56), (32, 256, 14 * 14), (32, 2048, 7 * 7), (8, 3, 224 * 224)),
    *((1, 1, 1 << 31), (2, 3, 1 << 28), (5, 7, 33), (2, 1, 2), (7, 100_003, 5), (4096, 17, 1), (1, 5, 0)),
)


@pytest.mark.parametrize("tensors", (1, 2, 3))
@pytest.mark.parametrize("rows", (False, True), ids=("planes", "rows"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gpu", GPUS, ids=str)
def test_limits(gpu: Gpu, shape: tuple[int, int, int], rows: bool, tensors: int) -> None:
    n, c, s = shape
    for element in (2, 4, 8):
        p = plan(gpu, n * s, c, 1, True, element, tensors) if rows else plan(gpu, n, c, s, False, element, tensors)
        assert p.lanes * element <= 16 and (c if rows else s) % p.lanes == 0
        assert 64 <= p.threads <= 512 and p.threads & (p.threads - 1) == 0
        assert p.columns in (1, 2, 4, 8, 16, 32) and (rows or p.columns == 1)
        assert 1 <= p.blocks <= gpu.sms, "all blocks run at the same time, one an SM"
        assert p.shared <= gpu.shared and 0 <= p.held <= p.part
        assert p.teams <= p.groups == p.groups and p.rounds * p.teams >= p.groups
        if p.kind == "block":
            assert p.team == 1
        elif p.kind == "cluster":
            assert gpu.clusters and 2 <= p.team <= 8
        else:
            assert p.kind == "grid" and p.team > 1 and (p.team > 8 or not gpu.clusters)


@pytest.mark.parametrize(
    ("shape", "kind", "team", "why"),
    [
        ((256, 256, 56 * 56), "cluster", 8, "1.6 MB a channel: read once, from the memory of eight blocks"),
        ((32, 256, 14 * 14), "block", 1, "12.5 KB a channel: one block holds it"),
        ((256, 64, 56 * 56), "cluster", 8, "few channels, but each still needs eight blocks' memory"),
        ((8, 3, 224 * 224), "grid", 41, "three channels: nearly a third of the SMs each"),
        ((64, 33, 64 * 64), "cluster", 4, "33 channels on 132 SMs"),
    ],
    ids=str,
)
def test_h200(shape: tuple[int, int, int], kind: str, team: int, why: str) -> None:
    p = plan(H200, *shape)
    assert (p.kind, p.team) == (kind, team), why
    if shape[1] * shape[0] * shape[2] * 2 < 40 << 20 or kind == "cluster":
        assert p.held == p.part, "x is read once"


@pytest.mark.parametrize("gpu", GPUS, ids=str)
def test_the_grid_does_not_depend_on_the_number_of_channels(gpu: Gpu) -> None:
    """From three channels to thousands, most SMs have work: large tensors, both memory orders."""
    for c in (3, 16, 64, 256, 1000, 4096):
        for rows in (False, True):
            elements = 1 << 27
            p = plan(gpu, elements // c, c, 1, True) if rows else plan(gpu, 64, c, elements // c // 64 // 8 * 8)
            assert p.blocks >= gpu.sms * 3 // 4, (c, rows, p)


def test_channels_in_row_order_span_whole_lines() -> None:
    for c, element, columns in ((64, 2, 8), (256, 2, 8), (256, 4, 8), (3, 4, 4), (7, 2, 8), (1000, 8, 8)):
        p = plan(H200, 1 << 16, c, 1, True, element)
        assert p.columns == columns and (p.columns * p.lanes * element == 128 or p.columns * p.lanes >= c), p


def test_what_does_not_fit_is_read_at_most_twice_and_from_l2_where_it_can_be() -> None:
    """Few enough channels at a time that half of L2 and the memory of the blocks hold them."""
    p = plan(H200, 1024, 64, 112 * 112)  # 25 MB a channel
    assert p.kind == "grid" and p.held < p.part
    assert p.teams * 25_690_112 <= (25 << 20) + H200.sms * H200.shared
