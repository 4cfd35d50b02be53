"""The optimizers' CUDA C++ kernels as nvcc compiles them: registers against a recorded table, spills, wide accesses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from build_tools.cuda_steps import NVCC_FLAGS
from build_tools.errors import CannotBuild
from build_tools.nvcc import Nvcc, find_nvcc
from fastnorm.testing.triton_aot import access_widths

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "csrc/cuda/optim.cu"
RECORDED_WITH = "13.0"
# Registers of a thread on sm_80, sm_90, sm_100. With 128 threads a block, 128 leave four blocks on an SM: 512 threads,
# each with 32 bytes of three tensors or more on their way, are the 24 KB that an SM needs (kernels/launch.py).
REGISTERS: dict[str, tuple[int, int, int]] = {
    "optim_squares double": (41, 36, 32),
    "optim_squares float": (48, 38, 32),
    "optim_step Adam<double, false>": (173, 173, 162),
    "optim_step Adam<double, true>": (184, 186, 181),
    "optim_step Adam<float, false>": (99, 103, 128),
    "optim_step Adam<float, true>": (116, 117, 127),
    "optim_step Rmsprop<double, false, false>": (124, 122, 126),
    "optim_step Rmsprop<double, false, true>": (171, 171, 160),
    "optim_step Rmsprop<double, true, false>": (173, 171, 160),
    "optim_step Rmsprop<double, true, true>": (186, 188, 183),
    "optim_step Rmsprop<float, false, false>": (79, 80, 100),
    "optim_step Rmsprop<float, false, true>": (99, 101, 117),
    "optim_step Rmsprop<float, true, false>": (96, 100, 121),
    "optim_step Rmsprop<float, true, true>": (115, 120, 128),
    "optim_step Sgd<double, false>": (84, 85, 84),
    "optim_step Sgd<double, true>": (110, 112, 128),
    "optim_step Sgd<float, false>": (62, 64, 64),
    "optim_step Sgd<float, true>": (80, 80, 105),
}
MOST = 128  # of fp32; fp64 is there to be right


def nvcc() -> Nvcc:
    try:
        return find_nvcc({**os.environ, "TORCH_CUDA_ARCH_LIST": "8.0;9.0;10.0"})
    except CannotBuild as reason:
        pytest.skip(str(reason))


def compiled(found: Nvcc, arguments: Sequence[str]) -> str:
    command = [found.command, *NVCC_FLAGS, *arguments, SOURCE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def name_of(mangled: str) -> str:
    """Such as "optim_step Adam<float, true>"."""
    told = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(optim_\w+)_kernel<(?:\w+, )?(?:fastnorm::)?([^>]+>?) ?>\(", told)
    assert found is not None, told
    return f"{found[1]} {found[2]}"


def resources(report: str) -> dict[tuple[str, str], tuple[int, int]]:
    """(kernel, target) -> registers, and bytes spilled, of what ptxas says with -v."""
    pattern = (
        r"Compiling entry function '(\S+)' for '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers"
    )
    return {
        (name_of(kernel), target): (int(registers), int(stores) + int(loads))
        for kernel, target, stores, loads, registers in re.findall(pattern, report, re.DOTALL)
    }


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="names of kernels cannot be read without c++filt")
def test_registers_and_spills(tmp_path: Path) -> None:
    found = nvcc()
    used = resources(compiled(found, [*found.gencode, "-Xptxas", "-v", "-c", "-o", str(tmp_path / "optim.o")]))
    assert not [kernel for kernel, (_, spilled) in used.items() if spilled]
    assert {kernel for kernel, _ in used} == REGISTERS.keys()
    for kernel, recorded in REGISTERS.items():
        own = tuple(used[kernel, target][0] for target in found.targets)
        assert "double" in kernel or max(own) <= MOST, (kernel, own)
        if found.version == RECORDED_WITH:
            assert own == recorded, f"{kernel}: {own} registers, recorded are {recorded}"


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="names of kernels cannot be read without c++filt")
def test_tensors_are_read_and_written_in_16_bytes(tmp_path: Path) -> None:
    """Each tensor in two accesses of 16 bytes; single numbers only in the tail that the last thread takes."""
    found = nvcc()
    compiled(found, ["-gencode", "arch=compute_90,code=compute_90", "-ptx", "-o", str(tmp_path / "optim.ptx")])
    entries = re.split(r"\.visible \.entry |\.entry ", (tmp_path / "optim.ptx").read_text())[1:]
    assert len(entries) == len(REGISTERS)
    for entry in entries:
        name = name_of(entry.partition("(")[0])
        if name.startswith("optim_squares"):
            assert access_widths(entry, "ld").get(128, 0) == 2, name
            continue
        rule, flags = re.findall(r"(\w+)<\w+, ([^>]+)>", name)[0]
        states = {"Adam": 2, "Rmsprop": 1, "Sgd": 0}[rule] + flags.count("true")
        assert access_widths(entry, "ld").get(128, 0) >= 2 * (2 + states), name
        assert access_widths(entry, "st").get(128, 0) >= 2 * (1 + states), name
