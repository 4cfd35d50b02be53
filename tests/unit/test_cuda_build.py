"""The CUDA kernels as nvcc compiles them: targets, registers and spills, what the file needs and exports. No GPU.

`PYTHONPATH=. python tests/unit/test_cuda_build.py` writes the table of registers anew.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from build_tools.cuda_steps import MODULE, plan_cuda
from build_tools.errors import CannotBuild
from build_tools.nvcc import find_nvcc
from build_tools.runner import run_build
from build_tools.steps import plan_build
from build_tools.toolchain import find_ninja, find_toolchain

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "tests" / "data" / "cuda_registers.json"
DTYPES = {"f": "fp32", "d": "fp64", "8bfloat16": "bf16", "7float16": "fp16"}


def has_nvcc() -> bool:
    try:
        find_nvcc({})
    except CannotBuild:
        return False
    return find_ninja() is not None


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_nvcc(), reason="nvcc and ninja are needed")]


@lru_cache
def built() -> tuple[Path, list[Path]]:
    """The extension and its compiled kernels, made where they are not up to date."""
    tools, nvcc = find_toolchain({}), find_nvcc({})
    build = plan_build(tools, ROOT, nvcc.targets)
    plan_cuda(build, tools, nvcc, ROOT)
    run_build(build, root=ROOT, ninja=find_ninja(), jobs=None, only=(MODULE,))
    objects = [ROOT / step.output for step in build.steps if "/obj/cuda/" in step.output]
    return ROOT / build.products[MODULE], objects


def cuobjdump() -> str:
    triton = pytest.importorskip("triton", reason="its cuobjdump reads what nvcc made")
    return triton.knobs.nvidia.cuobjdump.path


def short_name(symbol: str) -> str:
    """batch_norm_fwd_kernel of a Variant: "batch_norm_fwd bf16 x 8 rows".

    An optimizer's, with the switches of its rule: "optim_step fp32 Adam 0". Of activation_stats: "activation_stats
    fp32 x 4". Of anything else its own name.
    """
    kernel = re.search(r"\d+([a-z_]+)_kernel", symbol)
    name = kernel[1] if kernel else symbol
    if rule := re.search(r"(optim_(?:step|squares))_kernelI([fd])(?:NS_\d+([A-Z]\w+?)I[fd]((?:Lb[01]E)+))?", symbol):
        parts = (rule[1], DTYPES[rule[2]], rule[3], *re.findall(r"Lb([01])E", rule[4] or ""))
        return " ".join(filter(None, parts))
    if stats := re.search(r"(activation_stats)_kernelI(?:NS_)?(8bfloat16|7float16|f|d)E?Li(\d+)E", symbol):
        return f"{stats[1]} {DTYPES[stats[2]]} x {stats[3]}"
    variant = re.search(r"7VariantI(?:NS_)?(8bfloat16|7float16|f|d)E?Li(\d+)ELb([01])E", symbol)
    if variant is None:
        return name
    return f"{name} {DTYPES[variant[1]]} x {variant[2]} {'rows' if variant[3] == '1' else 'planes'}"


@lru_cache
def resources() -> dict[str, dict[str, list[int]]]:
    """Kernel -> target -> registers and bytes of stack (local arrays and spills)."""
    found: dict[str, dict[str, list[int]]] = {}
    for path in built()[1]:
        text = subprocess.run([cuobjdump(), "-res-usage", path], capture_output=True, text=True, check=True).stdout
        for part in re.split(r"Fatbin elf code:", text)[1:]:
            arch = re.search(r"arch = (\w+)", part)
            assert arch is not None
            for symbol, usage in re.findall(r"Function ([^:]+):\n\s*(.+)", part):
                numbers = dict(re.findall(r"(\w+):(\d+)", usage))
                found.setdefault(short_name(symbol), {})[arch[1]] = [int(numbers["REG"]), int(numbers["STACK"])]
    return found


def test_every_kernel_is_compiled_for_every_target() -> None:
    kernels = resources()
    assert kernels
    for name, targets in kernels.items():
        assert set(targets) == {"sm_80", "sm_90", "sm_100"}, name
    listed = [subprocess.run([cuobjdump(), "-lptx", p], capture_output=True, text=True).stdout for p in built()[1]]
    assert sum("sm_100" in text for text in listed) >= 2, "PTX for GPUs that come later"


def test_registers_and_spills_are_as_recorded() -> None:
    """No kernel takes more than the table says; a smaller number is written into it."""
    recorded = json.loads(TABLE.read_text())
    found = resources()
    assert found.keys() == recorded.keys()
    worse = [
        f"{name} on {arch}: {usage} registers and stack bytes, {recorded[name][arch]} recorded"
        for name, targets in found.items()
        for arch, usage in targets.items()
        if any(now > then for now, then in zip(usage, recorded[name][arch], strict=True))
    ]
    assert not worse, "\n".join(worse)


def test_blocks_fit_on_an_sm() -> None:
    """512 threads of every kernel whose grid waits for all of its blocks."""
    for name, targets in resources().items():
        if name.startswith(("batch_norm", "activation_stats")):
            assert all(registers <= 128 for registers, _ in targets.values()), name


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_the_extension_needs_torch_and_the_c_runtime_only() -> None:
    dynamic = subprocess.run(["readelf", "-d", built()[0]], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", dynamic))
    assert "libtorch_cuda.so" in needed
    allowed = r"lib(torch|torch_cpu|torch_cuda|c10|stdc\+\+|gcc_s|m|c|dl|rt|pthread)\.so|ld-linux"
    assert not [name for name in needed if not re.match(allowed, name)], needed
    assert "PATH)" not in dynamic, "an rpath would tie the file to one machine"


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_the_extension_exports_only_its_init_and_uses_the_stable_abi_only() -> None:
    exported = subprocess.run(["nm", "-D", "--defined-only", built()[0]], capture_output=True, text=True).stdout
    assert {line.split()[-1] for line in exported.splitlines()} == {"PyInit__C_cuda"}
    wanted = subprocess.run(["nm", "-D", "--undefined-only", built()[0]], capture_output=True, text=True).stdout
    names = {line.split()[-1].split("@")[0] for line in wanted.splitlines()}
    assert "aoti_torch_get_current_cuda_stream" in names
    assert not [name for name in names if name.startswith(("_Py", "_ZN2at", "_ZN3c10", "cuda"))], names


LOAD = """
import ctypes, importlib.util, sys, torch, fastnorm.ops
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
spec = importlib.util.spec_from_file_location("fastnorm._C_cuda", sys.argv[2])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
for op in ("batch_norm_fwd", "batch_norm_bwd", "optim_update", "optim_squares"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastnorm_native::{op}", "CUDA"), op
"""


def test_the_extension_loads_and_registers_its_ops(tmp_path: Path) -> None:
    """With a libtorch_cuda.so that has the one function that is asked of it."""
    if torch.backends.cuda.is_built():
        pytest.skip("this torch has the real libtorch_cuda.so")
    source, library = tmp_path / "cuda.c", tmp_path / "libtorch_cuda.so"
    source.write_text("int aoti_torch_get_current_cuda_stream(int device, void** stream) { return 1; }\n")
    compiler = find_toolchain({}).cxx
    flags = ("-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", "-x", "c")
    subprocess.run([*compiler, *flags, source, "-o", library], check=True)
    command = [sys.executable, "-c", LOAD, library, built()[0]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    rows = [f"  {json.dumps(name)}: {json.dumps(targets)}" for name, targets in sorted(resources().items())]
    TABLE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
