"""Compiles the Triton launchers for a GPU that need not be there, and reads what the compiler made of them.

    python -m fastnorm.testing.triton_aot --arch 90 < cases.json

prints one JSON list of Launch records for a JSON list of Case fields. It needs a process of its own, without
TRITON_INTERPRET: the launchers run unchanged on tensors of the meta device, behind a stand-in for triton's
driver, and every launch ends with its kernel compiled.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastnorm.ops import optim_table
from fastnorm.ops import triton as triton_ops
from fastnorm.testing import amdgcn, ptx
from fastnorm.testing.triton_cases import Case, case_from, launch
from fastnorm.testing.ttir import narrow_arguments

Arch = int | str  # a compute capability of NVIDIA's, or AMD's name
SMS: dict[int, int] = {80: 108, 90: 132, 100: 148}
AMD: dict[str, int] = {"gfx942": 304}
AMD_LANES = 64


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel as compiled for one launch: its grid and its resources.

    stack: bytes of local memory a thread, above 0 where registers were spilled.
    loads, stores: how many accesses to global memory of each width in bits the PTX of the kernel holds.
    narrow: arguments that are reached by 32-bit offsets alone, see ttir.py.
    """

    case: Case
    kernel: str
    grid: tuple[int, ...]
    warps: int
    registers: int
    stack: int
    shared: int
    loads: dict[int, int]
    stores: dict[int, int]
    narrow: list[str]

    @property
    def resident(self) -> int:
        """Programs that fit on an SM of 65536 registers (dealt in units of 8 a thread) and 64 warps."""
        registers = -(-self.registers // 8) * 8 * 32 * self.warps
        return min(65536 // registers, 64 // self.warps)


class _Driver:
    """All that triton asks of a driver before a launch."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        if isinstance(self.arch, str):
            return GPUTarget("hip", self.arch, AMD_LANES)
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling(arch: Arch) -> Iterator[list[tuple[str, tuple[int, ...], Any]]]:
    """While this is open, every launch compiles for `arch` and is recorded: (name, grid, kernel)."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    launch_numbers = triton_ops._import_kernels().launch
    recorded: list[tuple[str, tuple[int, ...], Any]] = []
    real_run = JITFunction.run
    real = launch_numbers.sm_count, launch_numbers.on_amd, optim_table.sm_count
    sms = AMD[arch] if isinstance(arch, str) else SMS[arch]

    def compile_only(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> Any:
        kernel = real_run(self, *args, grid=grid, warmup=True, **options)
        recorded.append((self.fn.__name__, grid, kernel))
        return kernel

    driver.set_active(_Driver(arch))
    JITFunction.run = compile_only
    launch_numbers.sm_count = optim_table.sm_count = lambda x: sms
    launch_numbers.on_amd = lambda: isinstance(arch, str)
    try:
        yield recorded
    finally:
        JITFunction.run = real_run
        launch_numbers.sm_count, launch_numbers.on_amd, optim_table.sm_count = real


def compiled_launch(case: Case, name: str, grid: tuple[int, ...], kernel: Any) -> Launch:
    """What is to be known of one kernel, from the texts and binaries of its compilation."""
    if "amdgcn" in kernel.asm:
        text, widths, usage = kernel.asm["amdgcn"], amdgcn.access_widths, amdgcn.resource_usage(kernel.asm["amdgcn"])
    else:
        text, widths, usage = kernel.asm["ptx"], ptx.access_widths, ptx.resource_usage(kernel.asm["cubin"])
    loads, stores = widths(text, "ld"), widths(text, "st")
    narrow = narrow_arguments(kernel.asm["ttir"])
    return Launch(case, name, tuple(grid), kernel.metadata.num_warps, *usage, loads=loads, stores=stores, narrow=narrow)


def compile_case(case: Case, arch: Arch) -> list[Launch]:
    with compiling(arch) as recorded:
        launch(case)
    return [compiled_launch(case, *one) for one in recorded]


def compile_in_subprocess(cases: Sequence[Case], arch: Arch) -> list[Launch]:
    """compile_case for every case, in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "fastnorm.testing.triton_aot", "--arch", str(arch)],
        input=json.dumps([dataclasses.asdict(case) for case in cases]),
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"compiling for {arch} failed:\n{done.stderr}")
    return [_launch_from(fields) for fields in json.loads(done.stdout.splitlines()[-1])]


def _launch_from(fields: dict[str, Any]) -> Launch:
    widths = {name: {int(k): n for k, n in fields[name].items()} for name in ("loads", "stores")}
    return Launch(**{**fields, **widths, "case": case_from(fields["case"]), "grid": tuple(fields["grid"])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=[*map(str, sorted(SMS)), *AMD], required=True)
    named = parser.parse_args().arch
    arch: Arch = named if named in AMD else int(named)
    launches = [record for fields in json.load(sys.stdin) for record in compile_case(case_from(fields), arch)]
    print(json.dumps([dataclasses.asdict(record) for record in launches]))


if __name__ == "__main__":
    main()
