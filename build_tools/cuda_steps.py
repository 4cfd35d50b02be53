"""The compile and link steps of fastnorm._C_cuda."""

from __future__ import annotations

from pathlib import Path

from build_tools.nvcc import Nvcc
from build_tools.steps import Build, Step, bind_flags, compile_step, link_step
from build_tools.toolchain import Toolchain

MODULE = "fastnorm._C_cuda"
NVCC_FLAGS = (
    *("-std=c++17", "-O3", "-Icsrc"),
    *("-Werror=cross-execution-space-call", "-Xcompiler=-fPIC,-fvisibility=hidden,-g0"),
)
# Bindings know CUDA by the stable ABI's functions alone; one of them stands behind this macro.
BIND_FLAGS = ("-DUSE_CUDA",)


def plan_cuda(build: Build, tools: Toolchain, nvcc: Nvcc, root: Path) -> None:
    """Adds the steps of the CUDA extension to those of the CPU's; nothing is run or written."""
    bind = [path.relative_to(root).as_posix() for path in sorted((root / "csrc/bind/cuda").glob("*.cpp"))]
    flags = (*bind_flags(tools), *BIND_FLAGS)
    objects = [compile_step(build, tools, source, "bind_cuda", flags) for source in bind]
    objects.append(compile_step(build, tools, "csrc/bind/tensor.cpp", "bind_cuda", flags))
    objects += [compile_kernels(build, tools, nvcc, source) for source in kernel_sources(root)]
    stub = _stub_library(build, tools)
    libraries = (
        *(f"-L{tools.torch_dir / 'lib'}", f"-L{build.folder / 'stub'}", "-ltorch", "-ltorch_cpu", "-lc10"),
        # The symbols are found in it only where torch has CUDA, but it has to be loaded there.
        *("-Wl,--no-as-needed", "-ltorch_cuda"),
        *(*nvcc.libraries, "-lcudart_static", "-ldl", "-lpthread", "-lrt"),
    )
    link_step(build, tools, MODULE, "_C_cuda.abi3.so", objects, libraries, also=(stub,))


def kernel_sources(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in (root / "csrc/cuda").glob("*.cu"))


def compile_kernels(build: Build, tools: Toolchain, nvcc: Nvcc, source: str) -> str:
    output = (build.folder / "obj" / "cuda" / Path(source).with_suffix(".o").name).as_posix()
    command = (
        *(nvcc.command, *NVCC_FLAGS, *nvcc.gencode, "-ccbin", tools.cxx[0]),
        *("-MMD", "-MF", f"{output}.d", "-c", source, "-o", output),
    )
    build.steps.append(Step(f"compile {source} ({', '.join(nvcc.targets)})", command, (source,), output, True))
    return output


def _stub_library(build: Build, tools: Toolchain) -> str:
    """An empty libtorch_cuda.so with the right name, for a torch that has none."""
    text = (build.folder / "stub" / "torch_cuda.c").as_posix()
    library = (build.folder / "stub" / "libtorch_cuda.so").as_posix()
    build.generated[text] = "typedef int nothing;\n"
    command = (*tools.cxx, "-shared", "-Wl,-soname,libtorch_cuda.so", "-o", library, "-x", "c++", text)
    build.steps.append(Step("link a stand-in for libtorch_cuda.so", command, (text,), library, False))
    return library
