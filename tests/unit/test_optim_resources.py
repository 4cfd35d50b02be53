"""The optimizers' CUDA C++ kernels as nvcc compiles them: how wide they read and write."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from build_tools.cuda_steps import NVCC_FLAGS
from build_tools.errors import CannotBuild
from build_tools.nvcc import find_nvcc
from fastnorm.testing.ptx import access_widths

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "csrc/cuda/optim.cu"
RULES = {"Sgd": 0, "Rmsprop": 1, "Adam": 2}  # states, without the switches that add one each
KERNELS = 18  # of eight rules and of the squares, in fp32 and fp64


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="names of kernels cannot be read without c++filt")
def test_tensors_are_read_and_written_in_16_bytes(tmp_path: Path) -> None:
    """Each tensor in two accesses of 16 bytes; single numbers only where an address or a tail does not allow it."""
    try:
        nvcc = find_nvcc({})
    except CannotBuild as reason:
        pytest.skip(str(reason))
    target = ("-gencode", "arch=compute_90,code=compute_90", "-ptx", "-o", str(tmp_path / "optim.ptx"))
    done = subprocess.run([nvcc.command, *NVCC_FLAGS, *target, SOURCE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    entries = re.split(r"\.entry ", (tmp_path / "optim.ptx").read_text())[1:]
    assert len(entries) == KERNELS
    for entry in entries:
        mangled = entry.partition("(")[0]
        name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
        loads, stores = access_widths(entry, "ld").get(128, 0), access_widths(entry, "st").get(128, 0)
        if "optim_squares" in name:
            assert loads == 2, name
            continue
        rule = re.search(r"(Sgd|Rmsprop|Adam)<\w+, ([\w, ]+)>", name)
        assert rule is not None, name
        states = RULES[rule[1]] + rule[2].count("true")
        assert loads >= 2 * (2 + states) and stores >= 2 * (1 + states), name
