"""The steps of the module of autograd nodes, made from torch's C++ and Python classes: for one torch and one Python."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path

from build_tools.errors import CannotBuild
from build_tools.runner import run_build
from build_tools.steps import Build, compile_step, link_step, sources, torch_libraries
from build_tools.toolchain import Toolchain, find_ninja, read_jobs


def nodes_module(torch_version: str) -> str:
    """As fastnorm.ops.native names what it looks for: other releases do not find it."""
    return "fastnorm._C_nodes_" + re.sub(r"\W", "_", torch_version)


def plan_nodes(tools: Toolchain, root: Path) -> Build:
    """A build of its own, for it may fail without harm: Python's Functions serve in its place."""
    build = Build(Path("build") / "ninja-nodes", [], {}, {})
    module = nodes_module(tools.torch_version)
    include = tools.torch_dir / "include"
    flags = (
        *("-std=c++20", "-O2"),  # as torch's own headers want it; there are no loops here
        f"-DFASTNORM_NODES_INIT=PyInit_{module.rpartition('.')[2]}",
        *("-isystem", str(include), "-isystem", str(include / "torch" / "csrc" / "api" / "include")),
        *("-isystem", str(tools.python_include)),
    )
    objects = [compile_step(build, tools, source, "nodes", flags) for source in sources(root, "csrc/nodes")]
    file = f"{module.rpartition('.')[2]}{sysconfig.get_config_var('EXT_SUFFIX')}"
    link_step(build, tools, module, file, objects, (*torch_libraries(tools), "-ltorch_python"))
    return build


def build_nodes(tools: Toolchain, root: Path, say: Callable[[str], None]) -> dict[str, str]:
    """The module's name and file, or nothing where it cannot be had, and the reason has been told."""
    if tools.sanitize:
        return {}
    nodes = plan_nodes(tools, root)
    try:
        run_build(nodes, root=root, ninja=find_ninja(), jobs=read_jobs(os.environ))
    except CannotBuild:
        say(f"WARNING: the autograd nodes do not compile against torch {tools.torch_version}, as the compiler says")
        say("above. Everything works without them; a training step takes longer where tensors are small.")
        return {}
    return nodes.products
