"""A machine without compiler, torch at build time, or triton: what installs, what it says, that it works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "fastnorm", "kernels", "csrc", "build_tools")

TRAIN = """
import sys
sys.modules["triton"] = None  # importing it fails from here on
import torch, fastnorm
norm = fastnorm.BatchNorm2d(3, act=fastnorm.GeneralRelu(0.1, 0.4))
plain = torch.nn.BatchNorm2d(3)
x = torch.randn(4, 3, 5, 5, requires_grad=True)
dy = torch.randn(4, 3, 5, 5)
y = norm(x)
want = torch.nn.functional.leaky_relu(plain(x), 0.1) - 0.4
torch.testing.assert_close(y, want)
torch.testing.assert_close(torch.autograd.grad(y, x, dy)[0], torch.autograd.grad(want, x, dy)[0])
assert fastnorm.available_backends("cpu") == ["eager"], fastnorm.available_backends("cpu")
print(fastnorm.explain())
"""

# The finder of an editable install would lend a copy of the package the extension of the source tree.
PROBE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "_EditableFinder"]
import fastnorm
print(fastnorm.__file__)
print(fastnorm.explain())
"""


def run(*command: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTNORM_", "TRITON_")) and k != "CXX"}
    return subprocess.run(command, cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=300, check=False)


def lines_about(name: str, report: str) -> str:
    return "\n".join(line for line in report.splitlines() if line.lstrip().startswith(name))


@pytest.mark.parametrize(
    "env", [{"FASTNORM_DISABLE_NATIVE": "1"}, {"FASTNORM_EXTENSION": "/nonexistent/_C.abi3.so"}], ids=str
)
def test_eager_serves_without_extension_and_triton(env: dict[str, str]) -> None:
    done = run(sys.executable, "-c", TRAIN, **env)
    assert done.returncode == 0, done.stderr
    native = lines_about("native (", done.stdout)
    assert ("unset it" if "FASTNORM_DISABLE_NATIVE" in env else "pip install") in native
    assert "pip install triton" in lines_about("triton:", done.stdout)


def test_asking_for_the_missing_backend_names_the_reason() -> None:
    script = "import torch, fastnorm\nfastnorm.functional.general_relu(torch.ones(3), 0.1, backend='native')"
    done = run(sys.executable, "-c", script, FASTNORM_DISABLE_NATIVE="1")
    assert done.returncode != 0
    assert "RuntimeError" in done.stderr and "FASTNORM_DISABLE_NATIVE" in done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources, without anything built."""
    unwanted = shutil.ignore_patterns("*.so", "__pycache__")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=unwanted)
        elif source.exists():
            shutil.copy(source, tmp_path / name)
    return tmp_path


def build(tree: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "setup.py", "-q", "build", cwd=tree, **env)


def check_pure(tree: Path) -> None:
    """What was built is importable, on its own, and holds no binary."""
    lib = tree / "build" / "lib"
    assert (lib / "fastnorm" / "kernels" / "__init__.py").exists()
    assert not list(lib.rglob("*.so"))
    done = run(sys.executable, "-c", PROBE, cwd=lib, PYTHONPATH=str(lib))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(lib))
    assert "pip install" in lines_about("native (", done.stdout)


def test_build_none(tree: Path) -> None:
    done = build(tree, FASTNORM_BUILD="none")
    assert done.returncode == 0, done.stderr
    assert "without the C++ kernels" in done.stderr
    check_pure(tree)


def test_build_auto_without_compiler(tree: Path) -> None:
    done = build(tree, CXX="/nonexistent")
    assert done.returncode == 0, done.stderr
    assert "WARNING: installing without the C++ kernels" in done.stderr
    assert "no working C++17 compiler (/nonexistent)" in done.stderr
    assert "pip install --no-build-isolation" in done.stderr
    check_pure(tree)


def test_build_auto_without_torch(tree: Path) -> None:
    """-S hides site-packages and with it torch, as build isolation does; setuptools is let back in."""
    import setuptools

    packages = tree / "packages"
    packages.mkdir()
    site = Path(setuptools.__file__).parents[1]
    for name in ("setuptools", "_distutils_hack"):
        (packages / name).symlink_to(site / name)
    done = run(sys.executable, "-S", "setup.py", "-q", "build", cwd=tree, PYTHONPATH=str(packages))
    assert done.returncode == 0, done.stderr
    assert "torch cannot be imported where the extension is built" in done.stderr


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"FASTNORM_BUILD": "cpu", "CXX": "/nonexistent"}, "no working C++17 compiler"),
        ({"FASTNORM_BUILD": "cuda", "CUDA_HOME": "/nonexistent"}, "the CUDA C++ kernels, is not in /nonexistent"),
        ({"FASTNORM_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": "Hopper"}, "'Hopper' is not a compute capability"),
        ({"FASTNORM_BUILD": "gpu"}, "FASTNORM_BUILD=gpu is unknown: choose one of auto, cpu, cuda, none"),
        ({"FASTNORM_BUILD": "cpu", "MAX_JOBS": "many"}, "MAX_JOBS=many is not a positive number"),
    ],
    ids=["cpu", "cuda", "archs", "unknown", "jobs"],
)
def test_build_fails_in_one_sentence(tree: Path, env: dict[str, str], says: str) -> None:
    done = build(tree, **env)
    assert done.returncode != 0
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
