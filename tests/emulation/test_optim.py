"""The optimizers' CUDA kernels, compiled for the CPU under sanitizers, through the tests of the step on a device."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .backend import LIBRARY
from .build import ROOT, build_library

pytestmark = [
    pytest.mark.skipif(
        platform.system() != "Linux" or shutil.which("g++") is None, reason="the emulation is built by g++, on Linux"
    ),
    pytest.mark.slow,
]
FILES = ("test_optim_tables.py", "test_optim_device.py")


@pytest.fixture(scope="module")
def library() -> Path:
    return build_library()


def runtime(name: str) -> str:
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("file", FILES)
def test_conformance(file: str, library: Path) -> None:
    """What every backend that launches kernels has to pass."""
    environment = {
        **os.environ,
        LIBRARY: str(library),
        "FASTNORM_TEST_BACKENDS": "cuda-emulated",
        "PYTHONPATH": str(ROOT),
        "ASAN_OPTIONS": "detect_leaks=0:protect_shadow_gap=0",
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so.6')}",
    }
    command = [sys.executable, "-m", "pytest", "-q", f"tests/conformance/{file}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
