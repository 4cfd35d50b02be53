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
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastnorm.ops import optim_table
from fastnorm.ops import triton as triton_ops
from fastnorm.testing import amdgcn
from fastnorm.testing.cases import DTYPES
from fastnorm.testing.ttir import narrow_arguments

Arch = int | str  # a compute capability of NVIDIA's, or AMD's name
SMS: dict[int, int] = {80: 108, 90: 132, 100: 148}
AMD: dict[str, int] = {"gfx942": 304}
AMD_LANES = 64
ACTIVATION = (0.1, 0.4, 2.0, None)
Activation = tuple[float | None, float | None, float | None, float | None]


@dataclasses.dataclass(frozen=True)
class Case:
    """A forward and a backward of batch norm with fp32 parameters, and of general_relu where act is set."""

    shape: tuple[int, ...]
    dtype: str = "fp32"
    channels_last: bool = False
    act: bool = False
    residual: bool = False
    training: bool = True

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class RowCase(Case):
    """A forward and a backward of row_norm, with fp32 parameters; rms goes without a bias."""

    dims: int = 0
    groups: int = 0
    rms: bool = False


@dataclasses.dataclass(frozen=True)
class OptimCase(Case):
    """A step of an optimizer; the states are fp32, the parameter has an fp32 master where `master` is set.

    shape: (elements,) of the one parameter; or (parameters, all their elements), with the elements of each in `sizes`.
    """

    kind: int = 0  # SGD, RMSprop, Adam
    states: int = 0
    centered: bool = False
    master: bool = False
    sizes: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        return sum(self.sizes) or math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class StatsCase(Case):
    """activation_stats, and nothing else."""

    bins: int = 40


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


def launch(case: Case) -> None:
    """Calls the launchers of one case on meta tensors."""
    if isinstance(case, OptimCase):
        launch_optim(case)
        return
    x = torch.empty(case.shape, dtype=DTYPES[case.dtype], device="meta")
    if case.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    residual = torch.empty_like(x) if case.residual else None
    numbers: Activation = ACTIVATION if case.act else (None, None, None, None)
    if isinstance(case, StatsCase):
        triton_ops._import_kernels().LAUNCHERS["activation_stats_fwd"](x, case.bins, 0.0, 10.0)
    elif isinstance(case, RowCase):
        launch_row_norm(case, x, residual, numbers)
    else:
        launch_batch_norm(case, x, residual, numbers)


def launch_batch_norm(case: Case, x: Tensor, residual: Tensor | None, numbers: Activation) -> None:
    call = triton_ops._import_kernels().LAUNCHERS
    channel = torch.empty(case.shape[1], device="meta")
    _, mean, rstd = call["batch_norm_fwd"](
        x, channel, channel, residual, channel, channel, None,
        case.training, 0.1, 1e-5, False, False, case.act, *numbers,
    )  # fmt: skip
    call["batch_norm_bwd"](x, x, channel, channel, residual, mean, rstd, case.training, False, True, case.act, *numbers)
    if case.act:
        call["general_relu_fwd"](x, *numbers)
        call["general_relu_bwd"](x, x, *numbers)


def launch_row_norm(case: RowCase, x: Tensor, residual: Tensor | None, numbers: Activation) -> None:
    call = triton_ops._import_kernels().LAUNCHERS
    shape = case.shape[-case.dims :] if case.dims else case.shape[1:2]
    weight = torch.empty(shape, device="meta")
    bias = None if case.rms else weight
    sets = (case.dims, case.groups)
    _, mean, rstd = call["row_norm_fwd"](
        x, weight, bias, residual, *sets, 1e-5, case.rms, False, case.act, *numbers
    )  # fmt: skip
    call["row_norm_bwd"](x, x, weight, bias, residual, mean, rstd, *sets, case.rms, False, True, case.act, *numbers)


def launch_optim(case: OptimCase) -> None:
    state_dtype = torch.float64 if case.dtype == "fp64" else torch.float32
    rows, grads = [], []
    for size in case.sizes or case.shape:
        x = torch.empty(size, dtype=DTYPES[case.dtype], device="meta")
        state = torch.empty(size, dtype=state_dtype, device="meta")
        param, rounded = (state, x) if case.master else (x, None)
        rows.append(optim_table.OptimRow(param, [state] * case.states, rounded, case.centered))
        grads.append(x)
    numbers = torch.empty(1, 11, dtype=torch.float64, device="meta")
    scalar = torch.empty((), dtype=torch.float64, device="meta")
    table = optim_table.OptimTable(rows, optim_table.TritonLauncher(triton_ops._import_kernels))
    table.step(case.kind, grads, [0] * len(rows), numbers, scalar, torch.empty((), device="meta"))


def resource_usage(cubin: bytes) -> tuple[int, int, int]:
    """Registers, stack and shared memory in bytes, as cuobjdump reads them from a compiled kernel."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", report)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage printed no resources: {report!r}")
    registers, stack, shared = map(int, found.groups())
    return registers, stack, shared


def access_widths(text: str, operation: str) -> dict[int, int]:
    """How many global accesses ("ld" or "st") of each width in bits a PTX text holds."""
    widths: Counter[int] = Counter()
    for modifiers in re.findall(rf"\b{operation}\.global([.\w:]*)", text):
        lanes = re.search(r"\.v(\d)", modifiers)
        bits = re.search(r"\.[bfus](\d+)$", modifiers)
        if bits is None:
            raise RuntimeError(f"no width in {operation}.global{modifiers}")
        widths[int(bits[1]) * (int(lanes[1]) if lanes else 1)] += 1
    return dict(widths)


def compiled_launch(case: Case, name: str, grid: tuple[int, ...], kernel: Any) -> Launch:
    """What is to be known of one kernel, from the texts and binaries of its compilation."""
    if "amdgcn" in kernel.asm:
        text, widths, usage = kernel.asm["amdgcn"], amdgcn.access_widths, amdgcn.resource_usage(kernel.asm["amdgcn"])
    else:
        text, widths, usage = kernel.asm["ptx"], access_widths, resource_usage(kernel.asm["cubin"])
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


def _case_from(fields: dict[str, Any]) -> Case:
    named = {"master": OptimCase, "dims": RowCase, "bins": StatsCase}
    kind = next((own for name, own in named.items() if name in fields), Case)
    lists: dict[str, Any] = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return kind(**{**fields, **lists})


def _launch_from(fields: dict[str, Any]) -> Launch:
    widths = {name: {int(k): n for k, n in fields[name].items()} for name in ("loads", "stores")}
    return Launch(**{**fields, **widths, "case": _case_from(fields["case"]), "grid": tuple(fields["grid"])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", choices=[*map(str, sorted(SMS)), *AMD], required=True)
    named = parser.parse_args().arch
    arch: Arch = named if named in AMD else int(named)
    launches = [record for fields in json.load(sys.stdin) for record in compile_case(_case_from(fields), arch)]
    print(json.dumps([dataclasses.asdict(record) for record in launches]))


if __name__ == "__main__":
    main()
