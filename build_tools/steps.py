"""The compile and link steps of the CPU's extension modules, as plain command lines."""

from __future__ import annotations

import json
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from build_tools.toolchain import Toolchain

TORCH_TARGET_VERSION = "0x020A000000000000"
COMMON_FLAGS = (
    *("-std=c++17", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    "-fno-tree-slp-vectorize",  # the loops are vectors already; packing their pointers into more stalls short planes
    *("-Wall", "-Wextra", "-Icsrc"),
)
RELEASE_FLAGS = ("-O3", "-g0")
# Compiling takes longer than running; lines of the source are enough for a report.
SANITIZE_FLAGS = (
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    *("-g1", "-O0", "-fno-omit-frame-pointer"),
)
# gcc's AVX-512 intrinsics are themselves "maybe uninitialized" (its bug 105593): thousands of lines of noise.
GCC_QUIET = ("-Wno-maybe-uninitialized", "-Wno-uninitialized")
# A file of csrc/cpu that has this is compiled once per instruction set, any other one once.
PER_ISA = "namespace FASTNORM_ISA"


@dataclass(frozen=True)
class Step:
    """One command: it reads `inputs` and writes `output`. A compile also writes `output`.d, its depfile."""

    title: str
    command: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str
    is_compile: bool


@dataclass(frozen=True)
class Build:
    """All steps for one set of output files; paths are relative to the repository root."""

    folder: Path
    steps: list[Step]
    products: dict[str, str]  # module name, such as fastnorm._C -> the file built
    generated: dict[str, str]  # path -> text of the small files the steps read


def plan_build(tools: Toolchain, root: Path, cuda_targets: tuple[str, ...] = ()) -> Build:
    """Lists the steps of the CPU's modules; nothing is run or written. fastnorm._build names the CUDA targets."""
    folder = Path("build") / f"ninja-{tools.kind}"
    build = Build(folder, [], {}, {})
    _plan_extension(build, tools, root)
    if tools.pybind11_include is not None:
        _plan_build_info(build, tools, cuda_targets)
    return build


def mode_flags(tools: Toolchain) -> tuple[str, ...]:
    return SANITIZE_FLAGS if tools.sanitize else RELEASE_FLAGS


def bind_flags(tools: Toolchain) -> tuple[str, ...]:
    """What the files that include torch's and Python's headers need."""
    return (
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
        "-DPy_LIMITED_API=0x030A0000",
        *("-isystem", str(tools.torch_dir / "include"), "-isystem", str(tools.python_include)),
    )


def _plan_extension(build: Build, tools: Toolchain, root: Path) -> None:
    bind = [path for path in sources(root, "csrc/bind") if not path.endswith("/build_info.cpp")]
    cpu = sources(root, "csrc/cpu")
    once = [path for path in cpu if PER_ISA not in (root / path).read_text()]
    has_isas = ("-DFASTNORM_HAVE_X86_ISAS=1",) if len(tools.isas) > 1 else ()
    objects = [compile_step(build, tools, source, "bind", bind_flags(tools)) for source in bind]
    objects += [compile_step(build, tools, source, "once", has_isas) for source in once]
    # An inline function that several copies share is kept from the first object on the link line, so the
    # copies go from the oldest instruction set to the newest: the survivor runs on every CPU.
    for isa, isa_flags in tools.isas.items():
        flags = (f"-DFASTNORM_ISA=isa_{isa}", *isa_flags)
        objects += [compile_step(build, tools, source, isa, flags) for source in cpu if source not in once]
    link_step(build, tools, "fastnorm._C", "_C.abi3.so", objects, torch_libraries(tools))


def _plan_build_info(build: Build, tools: Toolchain, cuda_targets: tuple[str, ...]) -> None:
    header = str(build.folder / "build_config.h")
    build.generated[header] = _config_header(tools, cuda_targets)
    flags = (
        *(f"-I{build.folder}", "-isystem", str(tools.pybind11_include)),
        *("-isystem", str(tools.python_include)),
    )
    built = compile_step(build, tools, "csrc/bind/build_info.cpp", "info", flags)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    link_step(build, tools, "fastnorm._build", f"_build{suffix}", [built], ())


def torch_libraries(tools: Toolchain) -> tuple[str, ...]:
    return (f"-L{tools.torch_dir / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10")


def sources(root: Path, folder: str) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in (root / folder).glob("*.cpp"))


def compile_step(build: Build, tools: Toolchain, source: str, tag: str, flags: tuple[str, ...]) -> str:
    output = (build.folder / "obj" / tag / Path(source).with_suffix(".o").name).as_posix()
    command = (
        *(*tools.cxx, *COMMON_FLAGS, *mode_flags(tools), *flags),
        *(GCC_QUIET if tag == "avx512" and "clang" not in tools.compiler else ()),
        *("-MMD", "-MF", f"{output}.d", "-c", source, "-o", output),
    )
    build.steps.append(Step(f"compile {source} ({tag})", command, (source,), output, True))
    return output


def link_step(
    build: Build,
    tools: Toolchain,
    module: str,
    file: str,
    objects: list[str],
    libraries: tuple[str, ...],
    also: tuple[str, ...] = (),
) -> None:
    """No rpath: torch is always imported first. Only the module's init function is exported.

    also: files that have to be there before the link, and are named by the libraries.
    """
    output = (build.folder / file).as_posix()
    init = f"PyInit_{module.rpartition('.')[2]}"
    if sys.platform == "darwin":
        inputs = [*objects, *also]
        shared = ["-bundle", "-undefined", "dynamic_lookup", f"-Wl,-exported_symbol,_{init}"]
    else:
        exports = (build.folder / f"{init}.map").as_posix()
        build.generated[exports] = f"{{ global: {init}; local: *; }};\n"
        inputs = [*objects, exports, *also]
        shared = ["-shared", f"-Wl,--version-script={exports}"]
    if tools.sanitize:
        shared.append("-fsanitize=address,undefined")
    elif sys.platform != "darwin":
        shared.append("-s")
    command = (*tools.cxx, *shared, "-o", output, *objects, *libraries)
    build.steps.append(Step(f"link {file}", command, tuple(inputs), output, False))
    build.products[module] = output


def _config_header(tools: Toolchain, cuda_targets: tuple[str, ...]) -> str:
    values = {
        "FASTNORM_COMPILER": tools.compiler,
        "FASTNORM_FLAGS": " ".join((*COMMON_FLAGS, *mode_flags(tools))),
        "FASTNORM_TORCH_VERSION": tools.torch_version,
        "FASTNORM_TORCH_TARGET_VERSION": TORCH_TARGET_VERSION,
    }
    lines = ["#pragma once", *(f"#define {name} {json.dumps(text)}" for name, text in values.items())]
    lines.append(f"#define FASTNORM_SANITIZED {'true' if tools.sanitize else 'false'}")
    lines.append(f"#define FASTNORM_CUDA_TARGETS {', '.join(map(json.dumps, cuda_targets))}")
    pairs = [f"{{{json.dumps(isa)}, {json.dumps(' '.join(flags))}}}" for isa, flags in tools.isas.items()]
    lines.append(f"#define FASTNORM_ISA_FLAGS {', '.join(pairs)}")
    return "\n".join(lines) + "\n"
