"""What was built: the files on disk, what they need and export, and what fastnorm._build says of them."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fastnorm

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(fastnorm.__file__).parent
OBJECTS = ROOT / "build" / "ninja-release" / "obj"
IN_TREE = PACKAGE.parent == ROOT
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")


@pytest.fixture(scope="module")
def extension() -> Path:
    path = PACKAGE / "_C.abi3.so"
    assert path.exists(), "fastnorm._C is not built: python setup.py build_ext --inplace"
    return path


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return pytest.importorskip("fastnorm._build", reason="it was built without pybind11")


def tool(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_extension_loads(extension: Path) -> None:
    from fastnorm.ops import native

    assert native.missing() is None, native.missing()


def test_build_info(build: ModuleType) -> None:
    info = build.build_info()
    assert info["torch_version"] == torch.__version__
    assert info["torch_target_version"] == "0x020A000000000000"
    assert info["sanitized"] is False
    assert bool(info["cuda_archs"]) == (PACKAGE / "_C_cuda.abi3.so").exists()
    assert all(re.fullmatch(r"(sm|compute)_\d+[af]?", target) for target in info["cuda_archs"])
    assert re.search(r"\d+\.\d+", info["compiler"])
    flags = info["flags"].split() + " ".join(info["isas"].values()).split()
    assert {"-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"} <= set(flags)
    assert not {"-ffast-" + "math", "-fopenmp", "-Ofast"} & set(flags)
    assert not [flag for flag in flags if flag.startswith(("-march", "-mtune", "-mcpu"))]
    assert info["isas"]["default"] == ""
    if platform.machine() == "x86_64":
        assert list(info["isas"]) in (["default"], ["default", "avx2", "avx512"])


def test_build_info_names_the_copies_that_are_built(build: ModuleType) -> None:
    if not (IN_TREE and any((OBJECTS / "default").glob("*.o"))):
        pytest.skip("the object files are in the source tree only, after a build there")
    sources = (ROOT / "csrc" / "cpu").glob("*.cpp")
    kernels = {path.stem for path in sources if "namespace FASTNORM_ISA" in path.read_text()}
    assert kernels
    for isa in build.build_info()["isas"]:
        assert kernels <= {path.stem for path in (OBJECTS / isa).glob("*.o")}, isa


@LINUX
def test_copies_share_no_inline_function() -> None:
    """A function that the linker may share between copies could carry AVX-512 code to a CPU without it."""
    if not (IN_TREE and any((OBJECTS / "default").glob("*.o"))):
        pytest.skip("the object files are in the source tree only, after a build there")
    for isa in ("avx2", "avx512"):
        for path in (OBJECTS / isa).glob("*.o"):
            lines = tool("nm", "--defined-only", "-C", str(path)).splitlines()
            weak = [line for line in lines if re.match(r"\w* [VWu] ", line) and f"isa_{isa}" not in line]
            shared = [line for line in weak if "DW.ref." not in line]  # a pointer for unwinding, no code
            assert not shared, f"{path.name}: {shared}"


@LINUX
def test_extension_needs_only_torch_and_the_c_runtime(extension: Path) -> None:
    dynamic = tool("readelf", "-d", str(extension))
    needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", dynamic))
    allowed = r"lib(torch|torch_cpu|c10|stdc\+\+|gcc_s|m|c|c\+\+|c\+\+abi|pthread)\.so|ld-linux"
    assert not [name for name in needed if not re.match(allowed, name)], needed
    assert "PATH)" not in dynamic, "an rpath would tie the file to one machine"


@LINUX
def test_extension_exports_only_its_init(extension: Path) -> None:
    lines = tool("nm", "-D", "--defined-only", str(extension)).splitlines()
    assert {line.split()[-1] for line in lines} == {"PyInit__C"}


@LINUX
def test_extension_is_stripped_and_uses_the_limited_api_only(extension: Path) -> None:
    assert ".debug_info" not in tool("readelf", "-S", "-W", str(extension))
    undefined = {line.split()[-1] for line in tool("nm", "-D", "--undefined-only", str(extension)).splitlines()}
    assert not [name for name in undefined if name.startswith(("_Py", "_ZN2at", "_ZN3c10"))], undefined


def test_cpu_features_agree_with_the_system(build: ModuleType) -> None:
    features = build.cpu_features()
    assert set(features) == {
        *("sse4_2", "avx", "avx2", "fma", "f16c"),
        *("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512bf16"),
    }
    if platform.machine() != "x86_64":
        assert not any(features.values())
        return
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo here")
    match = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    assert match is not None
    names = {name: name.replace("bf16", "_bf16") for name in features}
    assert features == {name: shown in match[1].split() for name, shown in names.items()}
