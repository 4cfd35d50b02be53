"""Builds fastnorm: pure Python always, and the C++ extension modules where a compiler and torch are found.

FASTNORM_BUILD=auto|cpu|cuda|none chooses what is built: cpu leaves the CUDA kernels out, cuda insists on them, auto
builds them where nvcc is. FASTNORM_SANITIZE=1 adds the address and undefined-behaviour sanitizers; MAX_JOBS, CXX,
CUDA_HOME and TORCH_CUDA_ARCH_LIST are honoured.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # pip runs this file without its folder on the path

from build_tools.cuda_steps import plan_cuda  # noqa: E402
from build_tools.errors import CannotBuild  # noqa: E402
from build_tools.nodes_steps import build_nodes, nodes_module  # noqa: E402
from build_tools.nvcc import Nvcc, find_nvcc  # noqa: E402
from build_tools.runner import run_build  # noqa: E402
from build_tools.steps import plan_build  # noqa: E402
from build_tools.toolchain import (  # noqa: E402
    Toolchain,
    find_ninja,
    find_toolchain,
    read_jobs,
    read_mode,
)

BUILDING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "install", "develop"} & set(sys.argv)


def say(text: str) -> None:
    if BUILDING:
        print(f"fastnorm: {text}", file=sys.stderr, flush=True)


def choose_toolchain() -> Toolchain | None:
    """None means a pure Python install, and the reason has been told."""
    mode = read_mode(os.environ)
    if mode == "none" or not BUILDING:
        say("FASTNORM_BUILD=none: installing without the C++ kernels; the eager backend serves every call.")
        return None
    try:
        tools = find_toolchain(os.environ)
    except CannotBuild as reason:
        if mode in ("cpu", "cuda"):
            raise
        say(f"WARNING: installing without the C++ kernels, so CPU calls will be slower: {reason}")
        return None
    say(f"building for torch {tools.torch_version} with {tools.compiler}: {', '.join(tools.isas)}")
    if tools.pybind11_include is None:
        say("pybind11 is not installed: fastnorm._build, which only reports what was built, is left out.")
    return tools


def choose_nvcc(tools: Toolchain | None) -> Nvcc | None:
    """None means an extension for the CPU only, and the reason has been told."""
    mode = read_mode(os.environ)
    if tools is None or mode == "cpu" or tools.sanitize:
        return None
    try:
        nvcc = find_nvcc(os.environ)
    except CannotBuild as reason:
        if mode == "cuda" or os.environ.get("TORCH_CUDA_ARCH_LIST"):
            raise
        say(f"building without the CUDA C++ kernels (Triton serves CUDA tensors): {reason}")
        return None
    say(f"building for GPUs with nvcc {nvcc.version}: {', '.join(nvcc.targets)}")
    return nvcc


class NinjaBuildExt(build_ext):
    """Builds all modules, the one that may be missing last, then puts each where setuptools expects it."""

    def build_extensions(self) -> None:
        assert TOOLS is not None
        build = plan_build(TOOLS, ROOT, NVCC.targets if NVCC else ())
        if NVCC is not None:
            plan_cuda(build, TOOLS, NVCC, ROOT)
        run_build(build, root=ROOT, ninja=find_ninja(), jobs=read_jobs(os.environ))
        products = build.products | build_nodes(TOOLS, ROOT, say)
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # a process may have the old file mapped: never write into it
            if extension.name in products:
                shutil.copy(ROOT / products[extension.name], target)


def extensions(tools: Toolchain | None, nvcc: Nvcc | None) -> list[Extension]:
    if tools is None:
        return []
    modules = [Extension("fastnorm._C", sources=[], py_limited_api=True)]
    modules.append(Extension(nodes_module(tools.torch_version), sources=[], optional=True))
    if nvcc is not None:
        modules.append(Extension("fastnorm._C_cuda", sources=[], py_limited_api=True))
    if tools.pybind11_include is not None:
        modules.append(Extension("fastnorm._build", sources=[]))
    return modules


def read_version() -> str:
    text = (ROOT / "fastnorm" / "_version.py").read_text()
    match = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert match is not None
    return match[1]


try:
    TOOLS = choose_toolchain()
    NVCC = choose_nvcc(TOOLS)
    setup(
        version=read_version(),
        packages=[*find_packages(include=["fastnorm", "fastnorm.*"]), "fastnorm.kernels"],
        package_dir={"fastnorm.kernels": "kernels"},
        package_data={"fastnorm": ["py.typed"]},
        ext_modules=extensions(TOOLS, NVCC),
        cmdclass={"build_ext": NinjaBuildExt},
    )
except CannotBuild as error:
    raise SystemExit(f"fastnorm: {error}") from None
