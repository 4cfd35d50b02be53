"""Compiles the CUDA kernels for the CPU: a library whose ops run in the emulation, and the emulation's own tests."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from build_tools.runner import run_build
from build_tools.steps import Build, Step, bind_flags, compile_step, link_step
from build_tools.toolchain import Toolchain, find_ninja, find_toolchain

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests/emulation"
NAMESPACE = "fastnorm_emulated"
# Headers found here take the place of those of the same name in csrc, and of CUDA's.
HEADERS = ("-iquote", f"{HERE}/include", f"-I{HERE}/include")
# Compiling takes longer than running; lines of the source are enough for a report of the sanitizers.
QUICK = ("-O0", "-g1", "-Wno-unknown-pragmas")
REGISTER = (f"-DFASTNORM_CUDA_LIBRARY={NAMESPACE}", "-DFASTNORM_CUDA_KEY=CPU")


def sanitized_toolchain() -> Toolchain:
    """g++, whose sanitizers have one runtime library that can be loaded before Python."""
    return find_toolchain({"CXX": shutil.which("g++") or "c++", "FASTNORM_SANITIZE": "1"})


def kernel_objects(build: Build, tools: Toolchain, sources: list[str]) -> list[str]:
    flags = (*HEADERS, f"-I{HERE}", *QUICK, "-x", "c++")
    kernels = [compile_step(build, tools, source, "cuda", flags) for source in sources]
    emulator = [f"{HERE}/emulator.cpp", f"{HERE}/races.cpp"]
    return kernels + [compile_step(build, tools, source, "cuda", (f"-I{HERE}",)) for source in emulator]


def run_alone(build: Build) -> None:
    """Several test processes may want the same files at the same time: the first one makes them."""
    import fcntl

    folder = ROOT / build.folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_build(build, root=ROOT, ninja=find_ninja(), jobs=None)


def build_library() -> Path:
    """The library that registers the emulated ops, up to date."""
    tools = sanitized_toolchain()
    build = Build(Path("build/emulated"), [], {}, {})
    sources = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc/cuda").glob("*.cu"))
    objects = kernel_objects(build, tools, sources)
    bind = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "csrc/bind/cuda").glob("*.cpp"))]
    bind = [path for path in bind if not path.endswith("/device.cpp")]
    for source in (*bind, "csrc/bind/tensor.cpp"):
        objects.append(compile_step(build, tools, source, "bind", (*bind_flags(tools), *REGISTER)))
    objects.append(compile_step(build, tools, f"{HERE}/device.cpp", "bind", bind_flags(tools)))
    lib = str(tools.torch_dir / "lib")
    libraries = (f"-L{lib}", "-ltorch", "-ltorch_cpu", "-lc10")
    link_step(build, tools, "emulated._C_cuda", "_C_cuda.so", objects, libraries)
    run_alone(build)
    return ROOT / build.products["emulated._C_cuda"]


def build_program(source: str, *others: str) -> Path:
    """A program of its own, from a file with a main function and others of kernels."""
    tools = sanitized_toolchain()
    name = Path(source).stem
    build = Build(Path("build/emulated") / name, [], {}, {})
    objects = kernel_objects(build, tools, [source, *others])
    output = (build.folder / name).as_posix()
    command = (*tools.cxx, "-fsanitize=address,undefined", "-o", output, *objects)
    build.steps.append(Step(f"link {name}", command, tuple(objects), output, False))
    run_alone(build)
    return ROOT / output


if __name__ == "__main__":
    sys.stdout.write(f"{build_library()}\n")
