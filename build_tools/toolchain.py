"""Looks at this machine: is there a compiler, a torch, a pybind11, and what does the environment ask for?

Nothing is imported that is only looked for: finding torch costs milliseconds, importing it costs seconds.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from build_tools.errors import CannotBuild

MODES = ("auto", "cpu", "cuda", "none")
OLDEST_TORCH = (2, 10)  # the first release whose stable ABI has everything that csrc/bind calls
MEND = "pip install --no-build-isolation ."

X86_FLAGS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mavx2", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ],
}


@dataclass(frozen=True)
class Toolchain:
    """Everything found that the build needs."""

    cxx: tuple[str, ...]
    compiler: str  # first line of `cxx --version`
    isas: Mapping[str, list[str]]  # name -> compiler flags, slowest first
    torch_version: str
    torch_dir: Path
    python_include: Path
    pybind11_include: Path | None
    sanitize: bool

    @property
    def kind(self) -> str:
        return "sanitized" if self.sanitize else "release"


def read_mode(env: Mapping[str, str]) -> str:
    """FASTNORM_BUILD, checked."""
    mode = env.get("FASTNORM_BUILD") or "auto"
    if mode not in MODES:
        raise CannotBuild(f"FASTNORM_BUILD={mode} is unknown: choose one of {', '.join(MODES)}.")
    return mode


def read_jobs(env: Mapping[str, str]) -> int | None:
    """MAX_JOBS, checked; None leaves the number to ninja."""
    text = env.get("MAX_JOBS")
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise CannotBuild(f"MAX_JOBS={text} is not a positive number.")
    return int(text)


def find_toolchain(env: Mapping[str, str] = os.environ) -> Toolchain:
    """Finds all that the build needs, or raises CannotBuild with the first thing missing."""
    torch_dir, torch_version = _find_torch()
    cxx = _find_compiler(env)
    python_include = Path(sysconfig.get_path("include"))
    if not (python_include / "Python.h").exists():
        raise CannotBuild(
            f"Python.h is not in {python_include}: install the Python development headers "
            f"(python3-dev or python3-devel), then `{MEND}`."
        )
    return Toolchain(
        cxx=cxx,
        compiler=_first_line([*cxx, "--version"]),
        isas=_isas(cxx),
        torch_version=torch_version,
        torch_dir=torch_dir,
        python_include=python_include,
        pybind11_include=_find_pybind11(),
        sanitize=_sanitize(env),
    )


def find_ninja() -> str | None:
    """The ninja of the PyPI package, whose folder need not be on PATH, else the one on PATH."""
    spec = importlib.util.find_spec("ninja")
    if spec is not None and spec.origin is not None:
        for folder in (Path(spec.origin).parent / "data" / "bin", Path(sysconfig.get_path("scripts"))):
            found = shutil.which("ninja", path=str(folder))
            if found:
                return found
    return shutil.which("ninja")


def _find_torch() -> tuple[Path, str]:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise CannotBuild(
            "torch cannot be imported where the extension is built (pip's build isolation hides it): "
            f"install torch first, then `{MEND}`."
        )
    version = importlib.metadata.version("torch")
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < OLDEST_TORCH:
        raise CannotBuild(f"torch {version} is older than 2.10: `pip install 'torch>=2.10'`, then `{MEND}`.")
    return Path(spec.origin).parent, version


def _find_compiler(env: Mapping[str, str]) -> tuple[str, ...]:
    wanted = env.get("CXX")
    candidates = [wanted] if wanted else ["c++", "g++", "clang++"]
    for candidate in candidates:
        command = shlex.split(candidate)
        if shutil.which(command[0]) and _compiles(command, []):
            return tuple(command)
    raise CannotBuild(
        f"no working C++17 compiler ({' or '.join(candidates)}): install g++ or clang++, or name one in CXX, "
        f"then `{MEND}`."
    )


def _find_pybind11() -> Path | None:
    spec = importlib.util.find_spec("pybind11")
    return Path(spec.origin).parent / "include" if spec is not None and spec.origin else None


def _sanitize(env: Mapping[str, str]) -> bool:
    return env.get("FASTNORM_SANITIZE", "0") not in ("", "0")


def _isas(cxx: tuple[str, ...]) -> dict[str, list[str]]:
    """All of the x86-64 targets or only `default`: the dispatcher expects one or the other."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return {"default": []}
    if not all(_compiles(cxx, flags) for flags in X86_FLAGS.values()):
        return {"default": []}
    return {"default": [], **X86_FLAGS}


def _compiles(cxx: tuple[str, ...] | list[str], flags: list[str]) -> bool:
    program = "#include <cstdint>\n#include <type_traits>\nstatic_assert(std::is_same_v<int, int>);\n"
    command = [*cxx, "-std=c++17", *flags, "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(command, input=program, text=True, capture_output=True)
    return done.returncode == 0


def _first_line(command: list[str]) -> str:
    output = subprocess.run(command, text=True, capture_output=True).stdout
    return output.splitlines()[0] if output else "unknown"
