"""Triton kernels compiled ahead of time for real GPUs: registers, spills and the width of their loads."""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil

import pytest

from fastnorm.ops import triton as triton_ops
from fastnorm.testing.triton_aot import AMD, SMS, Arch, Launch, compile_in_subprocess
from fastnorm.testing.triton_cases import Case, OptimCase, RowCase, StatsCase
from fastnorm.testing.ttir import narrow_arguments

pytest.importorskip("triton")

ARCHS = sorted(SMS)
LARGE = (256, 64, 56, 56)
HELD = (32, 256, 8, 8)  # one program holds a channel, forward and backward

SHORT = [
    Case(LARGE, "fp32", act=True, residual=True),
    Case(LARGE, "bf16", channels_last=True, act=True),
    Case(HELD, "bf16", act=True),
    RowCase((32768, 1024), "bf16", act=True, residual=True, dims=1),
    RowCase((32, 64, 56, 56), "fp32", channels_last=True, act=True, residual=True, groups=32),
]
SHORT += [
    OptimCase((1 << 20,), "fp32", kind=2, states=2),
    OptimCase((1 << 20,), "bf16", kind=1, states=3, centered=True, master=True),
    OptimCase((1 << 20,), "bf16", kind=0, states=1),
]
SHORT += [StatsCase(LARGE, "fp32"), StatsCase(LARGE, "bf16", channels_last=True)]
LONG = [
    *(
        Case(shape, dtype, channels_last, act, residual)
        for dtype in ("fp32", "bf16")
        for channels_last in (False, True)
        for shape, act, residual in (
            (LARGE, False, False),
            (LARGE, True, False),
            (LARGE, True, True),
            (HELD, True, True),
        )
    ),
    Case(LARGE, "fp32", act=True, residual=True, training=False),
    Case(LARGE, "bf16", channels_last=True, training=False),
    Case(LARGE, "fp64", act=True, residual=True),
    Case(LARGE, "fp64", channels_last=True, act=True, residual=True),
    Case(LARGE, "fp16", act=True),
    Case((1024, 2048, 7, 7), "bf16", act=True),
    Case((64, 3, 224, 224), "bf16", channels_last=True, act=True),
    Case((512, 40, 28, 28), "fp32", channels_last=True, act=True),
    Case((256, 24, 14, 14), "fp32", act=True),
    Case((65536, 1024), "bf16", act=True),
]
LONG += [
    OptimCase((1 << 20,), dtype, kind=kind, states=states, centered=centered)
    for dtype in ("fp32", "bf16", "fp64")
    for kind, states, centered in (
        (0, 0, False), (0, 1, False), (1, 1, False), (1, 2, False), (1, 2, True), (1, 3, True), (2, 2, False),
        (2, 3, False),
    )
]  # fmt: skip
LONG += [StatsCase((4099, 1024), dtype, bins=bins) for dtype in ("fp32", "bf16", "fp64") for bins in (1, 40, 255)]
ROWS = [
    *(
        RowCase(shape, dtype, act=fused, residual=fused, dims=1)
        for shape in ((32768, 768), (1_000_000, 64), (16384, 4096), (4096, 8192), (4096, 16384), (8, 2**20))
        for dtype, fused in (("bf16", False), ("bf16", True), ("fp32", True))
    ),
    RowCase((16384, 4096), "bf16", dims=1, rms=True),
    RowCase((32768, 1001), "fp32", act=True, residual=True, dims=1),
    RowCase((4096, 1024), "fp64", act=True, residual=True, dims=1),
    *(
        RowCase(shape, dtype, channels_last, act=True, residual=True, dims=dims, groups=groups)
        for dtype in ("fp32", "bf16")
        for channels_last in (False, True)
        for shape, dims, groups in (
            ((8, 64, 56, 56), 3, 0),
            ((8, 256, 32, 32), 0, 32),
            ((8, 320, 64, 64), 0, 32),  # 10 channels a group
            ((64, 1280, 8, 8), 0, 32),
            ((8, 64, 56, 56), 0, 64),
            ((8, 64, 56, 56), 0, 1),
            ((64, 96, 56, 56), 0, 0),
            ((64, 768, 8, 8), 0, 0),
        )
    ),
    RowCase((8, 64, 56, 56), "bf16", channels_last=True, act=True, dims=2),
    RowCase((8, 64, 32, 32), "fp64", channels_last=True, act=True, residual=True, groups=32),
    RowCase((8, 2048, 7, 7), "fp32", act=True, residual=True, groups=2048),
]
PAST = [  # more than 2^31 elements, each layout and each way through the kernels
    Case((70000, 257, 8, 16), "bf16", act=True, residual=True),
    Case((70000, 257, 8, 16), "bf16", channels_last=True, act=True, residual=True),
    Case((70000, 257, 8, 16), "bf16", training=False),
    Case((8, 2**28), "bf16"),  # channels that a program holds
    RowCase((2**20, 4099), "bf16", act=True, residual=True, dims=1),
    RowCase((2**31, 3), "bf16", dims=1),
    RowCase((3, 2**30), "bf16", act=True, residual=True, dims=1),
    RowCase((70000, 256, 8, 16), "bf16", act=True, residual=True, groups=32),
    RowCase((70000, 256, 8, 16), "bf16", channels_last=True, groups=32),
    RowCase((2, 2048, 1024, 1024), "bf16", act=True, residual=True, groups=32),
    RowCase((70000, 257, 8, 16), "bf16", groups=0),
    OptimCase((2**31 + 4097,), "bf16", kind=2, states=3),
    OptimCase((2**31 + 4097,), "bf16", kind=1, states=3, centered=True, master=True),
    StatsCase((70000, 257, 8, 16), "bf16"),
]
# Bytes. With activation and residual this kernel needs all 128 registers that two programs on an SM leave it, and on
# sm_100 two more. The plan that spills nothing reads x and dy twice.
SPILLED = {"row_norm_bwd_held_kernel": 8}
# Weights along a row that one program holds: as many as the row has values, 16384 at most.
NARROW = {kernel: {"weight_ptr", "bias_ptr"} for kernel in ("row_norm_fwd_held_kernel", "row_norm_bwd_held_kernel")}
RESIDENT = {  # launch.Pass.programs_per_sm
    "batch_norm_stats_kernel": 3,
    "activation_stats_kernel": 3,
    "batch_norm_bwd_reduce_kernel": 2,
    "row_norm_stats_kernel": 3,
    "row_norm_bwd_held_kernel": 2,
    "row_norm_bwd_sums_kernel": 2,
    "row_norm_bwd_sweep_kernel": 2,
}
READS_TENSORS = ("stats_kernel", "apply", "reduce", "dx", "held", "sums", "sweep", "general_relu", "optim")
ONLY_READS = ("stats_kernel", "reduce", "sums")


def every_kernel() -> set[str]:
    """The names of all kernels in all files of kernels/."""
    package = triton_ops._import_kernels()
    files = [importlib.import_module(f"fastnorm.kernels.{one.name}") for one in pkgutil.iter_modules(package.__path__)]
    return {name for file in files for name in vars(file) if name.endswith("_kernel")}


@functools.cache
def compiled(arch: Arch, which: str) -> list[Launch]:
    return compile_in_subprocess({"short": SHORT, "long": LONG, "rows": ROWS, "past": PAST}[which], arch)


def runs() -> list[object]:
    short = [pytest.param(arch, "short", id=f"sm_{arch}-short") for arch in ARCHS]
    long = [
        pytest.param(arch, which, id=f"sm_{arch}-{which}", marks=pytest.mark.slow)
        for which in ("long", "rows")
        for arch in ARCHS
    ]
    return [*short, *long]


def fast_axis(case: Case) -> int:
    """How many values lie next to each other, all of which a program wants."""
    if isinstance(case, RowCase):
        channels = math.prod(case.shape[1:2])
        if case.dims and not case.channels_last:
            return math.prod(case.shape[-case.dims :])
        if case.groups and case.channels_last:
            return channels if (channels // case.groups).bit_count() == 1 else channels // case.groups
        return channels if case.channels_last else math.prod(case.shape[2:])
    return case.shape[1] if case.channels_last or len(case.shape) == 2 else math.prod(case.shape[2:])


@pytest.mark.parametrize(("arch", "which"), runs())
def test_no_registers_are_spilled(arch: int, which: str) -> None:
    for launch in compiled(arch, which):
        assert launch.stack <= SPILLED.get(launch.kernel, 0), launch


@pytest.mark.parametrize(("arch", "which"), runs())
def test_tensors_are_read_and_written_in_16_bytes(arch: int, which: str) -> None:
    """Wherever the fast axis divides by 8; only the numbers of a channel are loaded singly."""
    for launch in compiled(arch, which):
        if fast_axis(launch.case) % 8 or not any(name in launch.kernel for name in READS_TENSORS):
            continue
        assert launch.loads.get(128, 0) + launch.loads.get(256, 0) > 0, launch
        if not any(name in launch.kernel for name in ONLY_READS):
            assert launch.stores.get(128, 0) + launch.stores.get(256, 0) > 0, launch
        if isinstance(launch.case, OptimCase):
            continue  # how many values there are is in its table: its masked last block stays narrow
        if launch.case.dtype in ("bf16", "fp16"):
            assert not launch.loads.get(16) and not launch.stores.get(16), launch


@pytest.mark.parametrize(("arch", "which"), runs())
def test_reductions_run_in_one_wave(arch: int, which: str) -> None:
    """As many programs are resident as the launch plan counts on; it counts on half of them if each is twice as big."""
    for launch in compiled(arch, which):
        assert launch.resident >= max(1, RESIDENT.get(launch.kernel, 1) * 8 // max(8, launch.warps)), launch


def test_every_kernel_is_compiled() -> None:
    """A kernel that joins kernels/ needs a row in SHORT that launches it."""
    assert every_kernel() == {launch.kernel for launch in compiled(90, "short")}


@pytest.mark.parametrize("arch", AMD)
def test_amd(arch: str) -> None:
    """The same launches compile for AMD's GPUs, whose backend refuses `maxnreg`: nothing spilled, 16 bytes at once."""
    for launch in compiled(arch, "short"):
        assert launch.registers > 0 and launch.stack == 0, launch
        if fast_axis(launch.case) % 8 or not any(name in launch.kernel for name in READS_TENSORS):
            continue
        assert launch.loads.get(128, 0) > 0, launch
        assert launch.stores.get(128, 0) > 0 or any(name in launch.kernel for name in ONLY_READS), launch
    assert {launch.kernel for launch in compiled(arch, "short")} == {one.kernel for one in compiled(90, "short")}


@pytest.mark.parametrize("which", ["short", "past", pytest.param("rows", marks=pytest.mark.slow)])
def test_every_access_takes_a_64_bit_offset(which: str) -> None:
    """Plans for more than 2^31 elements are other plans; but no kernel may be too narrow for them in any."""
    for launch in compiled(90, which):
        assert set(launch.narrow) <= NARROW.get(launch.kernel, set()), launch


TEXT = """
  tt.func public @k(%x_ptr: !tt.ptr<bf16> loc("x"), %y_ptr: !tt.ptr<f32> loc("y"), %n: i32) attributes {} {
    %a = tt.addptr %x_ptr, %start : !tt.ptr<bf16>, i64 loc(#l)
    %b = tt.splat %a : !tt.ptr<bf16> -> tensor<8x!tt.ptr<bf16>> loc(#l)
    %c = tt.addptr %b, %steps : tensor<8x!tt.ptr<bf16>>, tensor<8xi32> loc(#l)
    %d = tt.load %c : tensor<8x!tt.ptr<bf16>> loc(#l)
    %e = tt.splat %y_ptr : !tt.ptr<f32> -> tensor<8x!tt.ptr<f32>> loc(#l)
    %f = tt.addptr %e, %steps : tensor<8x!tt.ptr<f32>>, tensor<8xi32> loc(#l)
"""


def test_a_narrow_offset_is_seen() -> None:
    assert narrow_arguments(TEXT) == []  # nothing is read or written there yet
    assert narrow_arguments(TEXT + "    tt.store %f, %d : tensor<8x!tt.ptr<f32>> loc(#l)\n") == ["y_ptr"]
    assert narrow_arguments(TEXT + "    tt.store %y_ptr, %z : !tt.ptr<f32> loc(#l)\n") == []
    table = "    %t = tt.int_to_ptr %word : i64 -> !tt.ptr<f32> loc(#l)\n"
    far = "    %u = tt.addptr %t, %start : !tt.ptr<f32>, i64 loc(#l)\n    %v = tt.load %u : !tt.ptr<f32> loc(#l)\n"
    assert narrow_arguments(TEXT + table + far) == []
    assert narrow_arguments(TEXT + table + far.replace("i64", "i32")) == ["table"]
    assert narrow_arguments(TEXT + "    tt.store %loop_carried, %d : tensor<8x!tt.ptr<f32>> loc(#l)\n") == ["?"]
