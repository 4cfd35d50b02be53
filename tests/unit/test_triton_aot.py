"""Triton kernels compiled ahead of time for real GPUs: registers, spills and the width of their loads."""

from __future__ import annotations

import functools
import sys

import pytest

from fastnorm.ops import triton as triton_ops
from fastnorm.testing.triton_aot import SMS, Case, Launch, compile_in_subprocess

pytest.importorskip("triton")

ARCHS = sorted(SMS)
LARGE = (256, 64, 56, 56)
HELD = (32, 256, 8, 8)  # one program holds a channel, forward and backward

SHORT = [
    Case(LARGE, "fp32", act=True, residual=True),
    Case(LARGE, "bf16", channels_last=True, act=True),
    Case(HELD, "bf16", act=True),
]
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
RESIDENT = {"batch_norm_stats_kernel": 3, "batch_norm_bwd_reduce_kernel": 2}  # launch.Pass.programs_per_sm
READS_TENSORS = ("stats_kernel", "apply", "reduce", "dx", "held", "general_relu")


@functools.cache
def compiled(arch: int, which: str) -> list[Launch]:
    return compile_in_subprocess(SHORT if which == "short" else LONG, arch)


def runs() -> list[object]:
    short = [pytest.param(arch, "short", id=f"sm_{arch}-short") for arch in ARCHS]
    long = [pytest.param(arch, "long", id=f"sm_{arch}-long", marks=pytest.mark.slow) for arch in ARCHS]
    return short + long


@pytest.mark.parametrize(("arch", "which"), runs())
def test_no_registers_are_spilled(arch: int, which: str) -> None:
    assert not [launch for launch in compiled(arch, which) if launch.stack]


@pytest.mark.parametrize(("arch", "which"), runs())
def test_tensors_are_read_and_written_in_16_bytes(arch: int, which: str) -> None:
    """Wherever the fast axis divides by 8; only the numbers of a channel are loaded singly."""
    for launch in compiled(arch, which):
        shape = launch.case.shape
        fast = shape[1] if launch.case.channels_last or len(shape) == 2 else shape[2] * shape[3]
        if fast % 8 or not any(name in launch.kernel for name in READS_TENSORS):
            continue
        assert launch.loads.get(128, 0) + launch.loads.get(256, 0) > 0, launch
        if "stats_kernel" not in launch.kernel and "reduce" not in launch.kernel:
            assert launch.stores.get(128, 0) + launch.stores.get(256, 0) > 0, launch
        if launch.case.dtype in ("bf16", "fp16"):
            assert not launch.loads.get(16) and not launch.stores.get(16), launch


@pytest.mark.parametrize(("arch", "which"), runs())
def test_reductions_run_in_one_wave(arch: int, which: str) -> None:
    """As many programs are resident as the launch plan counts on."""
    for launch in compiled(arch, which):
        assert launch.resident >= RESIDENT.get(launch.kernel, 1), launch


def test_every_kernel_is_compiled() -> None:
    triton_ops._import_kernels()
    files = [f"fastnorm.kernels.{name}" for name in ("general_relu", "batch_norm_fwd", "batch_norm_bwd")]
    names = {name for file in files for name in vars(sys.modules[file]) if name.endswith("_kernel")}
    assert names == {launch.kernel for launch in compiled(90, "short")}
