"""The emulation bites: kernels that are wrong, each in one way, are stopped with a sentence that says so."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .build import build_program

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or shutil.which("g++") is None, reason="the emulation is built by g++, on Linux"
)

RIGHT = ("pass_on", "cluster", "grid", "sums", "adds")
WRONG = {
    "no_barrier": "shared memory, which (thread 1 of block 0 wrote, without a barrier|nobody wrote)",
    "no_second_barrier": "writes byte .* which thread .* reads, without a barrier in between",
    "half_waits": "__syncthreads at .*lessons.cu:.* is reached by 32 of 64 threads",
    "waits_in_two_places": "threads meet in different calls of __syncthreads: .*lessons.cu:.* and .*lessons.cu:",
    "leaves_early": "__syncthreads at .* is reached by 63 of 64 threads",
    "half_a_warp_shuffles": "a warp shuffle or vote at .* is reached by 16 of 32 threads",
    "writes_too_far": r"writes element 64 of a shared array of 64 \[block 0, thread 63\]",
    "asks_for_too_much": "asks for 272 bytes of shared memory where the launch gave 256",
    "reads_what_nobody_wrote": "reads byte 0 of shared memory, which nobody wrote",
    "adds_too_early": "adds to byte .* which (thread 0 wrote, without a barrier|nobody wrote)",
    "reads_while_others_add": "reads byte .* to which others add|adds to byte .* which thread .* reads",
    "writes_past_a_tensor": "AddressSanitizer: heap-buffer-overflow",
    "no_cluster_barrier": "reads byte 0 of shared memory, which",
    "comes_too_late": "reads shared memory of block 0, which has ended",
    "cluster_of_three": "the launch of 4 blocks of 64 threads failed",
    "grid_not_cooperative": "a grid barrier in a launch that is not cooperative",
}


@pytest.fixture(scope="module")
def lessons() -> Path:
    return build_program("tests/emulation/lessons.cu")


def run(lessons: Path, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([lessons, name], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_run(lessons: Path, name: str) -> None:
    done = run(lessons, name)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


@pytest.mark.parametrize("name", WRONG)
def test_wrong_kernels_are_stopped(lessons: Path, name: str) -> None:
    done = run(lessons, name)
    assert done.returncode != 0 and "right" not in done.stdout, done.stdout
    assert re.search(WRONG[name], done.stderr), done.stderr
