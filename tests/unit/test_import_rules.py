"""The arrows of the design: who may import or include whom, and a few words that no file may contain.

Every checker is a function from source text to violations, and is itself tested on sources that break its
rule.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {".git", ".venv", "build", "dist", "__pycache__"}
TEXT = {".py", ".md", ".toml", ".cpp", ".h", ".cu", ".cuh", ".txt", ".yml", ".sh", ".in", ".json", ""}

# Layer (first name below fastnorm) -> the layers it may import. ENTRY may import all; no layer imports it.
ALLOWED: dict[str, set[str]] = {
    "_version": set(),
    "activation": set(),
    "checks": set(),
    "eager": {"eager"},
    "kernels": {"kernels"},
    "ops": {"ops", "eager", "kernels", "_C", "_C_cuda"},
    "autograd": {"autograd", "ops", "eager"},
    "functional": {"functional", "autograd", "ops", "activation", "checks"},
    "nn": {"nn", "functional", "activation"},
    "convert": {"convert", "nn", "functional", "activation", "checks"},
    "figures": set(),
    "memory": set(),
    "timing": set(),
    "inputs": set(),
    "lr_finder": {"figures"},
    "stats": {"stats", "functional", "figures", "checks"},
    "init": {"init", "functional", "activation"},
    "optim": {"optim", "autograd", "ops", "eager"},
    "verify": {"verify", "convert", "ops", "memory", "timing"},
    "report": {"_version", "ops", "_build"},
}
ENTRY = {"", "__main__", "demo", "testing"}

# Folder of csrc -> the folders it may include; FOREIGNERS may include torch, Python and pybind11.
INCLUDES: dict[str, set[str]] = {
    "math": {"math"},
    "op": {"op", "math"},
    "cpu": {"op", "math", "cpu"},
    "cuda": {"op", "math", "cuda"},
    "bind": {"bind", "op", "math", "cpu"},
    "nodes": {"nodes", "op"},
}
FOREIGNERS = {"bind", "nodes"}
FOREIGN = re.compile(r"^(torch|ATen|c10|caffe2|pybind11)/|^Python\.h$")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', re.MULTILINE)

# Spelled in pieces, so that this file does not contain them.
WRONG_INSTALL = re.compile("pip install " + r"(-\S+ +)*fastnorm(?=[\s`'\"]|$)", re.MULTILINE)
NATIVE = "-march=" + "native"
FAST_MATH = "-ffast-" + "math"


def imported_names(source: str, package: str) -> Iterator[str]:
    """Full names of all that a module in `package` imports, also in functions and by import_module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def layer_of(name: str) -> str:
    """`fastnorm.ops.backend` -> `ops`; `fastnorm` and the names that only its __init__ defines -> ``."""
    first = name.split(".")[1] if "." in name else ""
    return first if first in ALLOWED or first in ENTRY or first in {"_C", "_C_cuda", "_build"} else ""


def python_violations(source: str, module: str, package: str) -> list[str]:
    """What a module of the package fastnorm imports against the arrows."""
    layer = module.split(".")[1] if "." in module else ""
    if layer in ENTRY:
        return []
    if layer not in ALLOWED:
        return [f"{module}: the layer {layer!r} is not in the table of this test"]
    ours = {name for name in imported_names(source, package) if name.split(".")[0] == "fastnorm"}
    return [f"{module} imports {name}" for name in sorted(ours) if layer_of(name) not in ALLOWED[layer]]


def include_violations(source: str, folder: str, path: str) -> list[str]:
    """What a file of csrc/<folder> includes against the arrows; a name without folder is a neighbour."""
    found = []
    for name in INCLUDE.findall(source):
        first = name.split("/")[0] if "/" in name else folder
        if name == "omp.h":
            found.append(f"{path} includes omp.h: threads come from torch's own pool")
        elif ".." in name.split("/"):
            found.append(f"{path} includes {name}: name it from csrc")
        elif FOREIGN.search(name):
            if folder not in FOREIGNERS:
                found.append(f"{path} includes {name}: only csrc/bind and csrc/nodes see torch and Python")
        elif first in INCLUDES and first not in INCLUDES[folder]:
            found.append(f"{path} includes {name}")
    return found


def text_violations(source: str, path: str) -> list[str]:
    """Words that no file of the tree may hold."""
    found = [f"{path}: `{match[0]}` names another project" for match in WRONG_INSTALL.finditer(source)]
    if path in {"setup.py", "Makefile"} or path.startswith(("build_tools/", "csrc/")):
        found += [f"{path}: {flag}" for flag in (NATIVE, FAST_MATH, "-fopenmp") if flag in source]
    return found


def modules() -> Iterator[tuple[Path, str, str]]:
    """Path, module name and package of every Python file that is installed."""
    for top, prefix in ((ROOT / "fastnorm", "fastnorm"), (ROOT / "kernels", "fastnorm.kernels")):
        for path in sorted(top.rglob("*.py")):
            parts = [prefix, *path.relative_to(top).with_suffix("").parts]
            package = ".".join(parts[:-1])
            yield path, package if parts[-1] == "__init__" else ".".join(parts), package


def text_files() -> Iterator[Path]:
    pending = [ROOT]
    while pending:
        for path in pending.pop().iterdir():
            if path.is_dir() and not path.is_symlink():
                if path.name not in SKIPPED and not path.name.endswith((".egg-info", "_cache")):
                    pending.append(path)
            elif path.suffix in TEXT and path.is_file():
                yield path


def test_python_arrows() -> None:
    found = []
    for path, module, package in modules():
        found += python_violations(path.read_text(), module, package)
    assert not found, "\n".join(found)


def test_include_arrows() -> None:
    found = []
    for folder in INCLUDES:
        for path in sorted((ROOT / "csrc" / folder).rglob("*")):
            if path.suffix in {".h", ".cpp", ".cu", ".cuh", ".inc"}:
                found += include_violations(path.read_text(), folder, str(path.relative_to(ROOT)))
    assert not found, "\n".join(found)


def test_csrc_has_only_known_folders() -> None:
    folders = {path.name for path in (ROOT / "csrc").iterdir() if path.is_dir()}
    assert folders <= set(INCLUDES), folders


def test_no_forbidden_words() -> None:
    found = []
    for path in text_files():
        found += text_violations(path.read_text(errors="replace"), path.relative_to(ROOT).as_posix())
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fastnorm.eager.batch_norm", "from fastnorm.ops import OPS"),
        ("fastnorm.eager.batch_norm", "import fastnorm"),
        ("fastnorm.eager.batch_norm", "from .. import functional"),
        ("fastnorm.ops.native", "from fastnorm.autograd import batch_norm"),
        ("fastnorm.ops.native", "def f():\n    import fastnorm.nn"),
        ("fastnorm.ops.native", "import importlib\nimportlib.import_module('fastnorm.functional')"),
        ("fastnorm.autograd.batch_norm", "from fastnorm.nn import BatchNorm2d"),
        ("fastnorm.functional", "from fastnorm import BatchNorm2d"),
        ("fastnorm.optim.adam", "from fastnorm.nn import BatchNorm2d"),
        ("fastnorm.nn.batch_norm", "from ..autograd import batch_norm"),
        ("fastnorm.kernels.batch_norm", "from fastnorm.ops import OPS"),
        ("fastnorm.unheard_of", "x = 1"),
    ],
)
def test_python_checker_sees(module: str, source: str) -> None:
    assert python_violations(source, module, module.rpartition(".")[0])


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fastnorm.nn.batch_norm", "from fastnorm.functional import batch_norm\nimport torch"),
        ("fastnorm.autograd.batch_norm", "from fastnorm.eager import batch_norm\nfrom ..ops import OPS"),
        ("fastnorm.kernels.batch_norm", "from .general_relu import activate"),
        ("fastnorm.demo.run", "import fastnorm"),
    ],
)
def test_python_checker_allows(module: str, source: str) -> None:
    assert not python_violations(source, module, module.rpartition(".")[0])


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("math", '#include "op/batch_norm.h"'),
        ("op", '#include "cpu/batch_norm.h"'),
        ("op", "#include <torch/csrc/stable/tensor.h>"),
        ("cpu", "  #  include <ATen/ATen.h>"),
        ("cpu", "#include <Python.h>"),
        ("cpu", '#include "bind/check.h"'),
        ("cpu", '#include "../bind/check.h"'),
        ("cpu", "#include <omp.h>"),
    ],
)
def test_include_checker_sees(folder: str, source: str) -> None:
    assert include_violations(source, folder, "some file")


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("math", '#include "math/general_relu.h"\n#include <cmath>'),
        ("cpu", '#include "op/batch_norm.h"\n#include "vec.h"\n#include <immintrin.h>'),
        ("bind", "#include <torch/csrc/stable/tensor.h>\n#include <Python.h>"),
    ],
)
def test_include_checker_allows(folder: str, source: str) -> None:
    assert not include_violations(source, folder, "some file")


@pytest.mark.parametrize("tail", ["", " ", "\n", "`", " torch"])
def test_text_checker_sees_the_other_project(tail: str) -> None:
    assert text_violations("pip install " + "fastnorm" + tail, "README.md")
    assert text_violations("pip install -U " + "fastnorm" + tail, "README.md")


def test_text_checker_allows_ours() -> None:
    assert not text_violations("pip install " + "fastnorm-torch", "README.md")


def test_text_checker_sees_flags() -> None:
    assert text_violations(f"flags = ['{NATIVE}']", "setup.py")
    assert text_violations(f"flags = ['{FAST_MATH}']", "build_tools/steps.py")
