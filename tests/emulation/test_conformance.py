"""The CUDA kernels' own sources, compiled for the CPU, through the cases of the conformance suite.

In processes of their own: the sanitizers have to be loaded before Python. Small GPUs are played, so that small tensors
fill them: with clusters, with a cooperative grid only, with too little memory to keep what is read twice.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .build import ROOT, build_library

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or shutil.which("g++") is None, reason="the emulation is built by g++, on Linux"
)

CLUSTERS = "16,12288,65536,9"  # SMs, bytes of shared memory, bytes of L2, major version
COOPERATIVE = "16,12288,16384,8"
LITTLE_MEMORY = "7,8192,4096,9"
FEW_SMS = "4,12288,16384,9"  # teams take several groups of channels, sums of squares several chunks
TABLES = "tests/conformance/test_tables.py"
STATE = "tests/conformance/test_state.py"
STATISTICS = "tests/conformance/test_activation_stats.py"
OPTIMIZERS = ("tests/conformance/test_optim_tables.py", "tests/conformance/test_optim_device.py")
AUTOGRAD = tuple(f"tests/conformance/test_{name}.py" for name in ("ties", "opcheck", "graph"))
GEOMETRY = ("-k", "batch_norm and (layouts or dtypes)")  # what the plan depends on
BATCH_NORM = ("-k", "batch_norm")

RUNS = {
    "clusters": ({"FASTNORM_EMULATED_GPU": CLUSTERS}, (TABLES, *BATCH_NORM)),
    "cooperative": ({"FASTNORM_EMULATED_GPU": COOPERATIVE}, (TABLES, *GEOMETRY)),
    "other order": ({"FASTNORM_EMULATED_GPU": COOPERATIVE, "FASTNORM_EMULATED_ORDER": "last"}, (TABLES, *GEOMETRY)),
    "clusters, other order": (
        {"FASTNORM_EMULATED_GPU": CLUSTERS, "FASTNORM_EMULATED_ORDER": "last"},
        (TABLES, *GEOMETRY),
    ),
    "few SMs": ({"FASTNORM_EMULATED_GPU": FEW_SMS, "FASTNORM_EMULATED_ORDER": "last"}, (TABLES, *GEOMETRY)),
    "little memory": ({"FASTNORM_EMULATED_GPU": LITTLE_MEMORY}, (TABLES, *GEOMETRY)),
    "autograd": ({"FASTNORM_EMULATED_GPU": CLUSTERS}, AUTOGRAD),
    "modules": ({"FASTNORM_EMULATED_GPU": CLUSTERS}, (STATE, "-k", "not relu")),
    "activation statistics": ({"FASTNORM_EMULATED_GPU": FEW_SMS}, (STATISTICS,)),
    "optimizers": ({"FASTNORM_EMULATED_GPU": FEW_SMS}, OPTIMIZERS),
}
LEAST_PASSED = {
    "clusters": 400,
    "cooperative": 100,
    "other order": 100,
    "clusters, other order": 100,
    "few SMs": 100,
    "little memory": 100,
    "autograd": 150,
    "modules": 20,
    "activation statistics": 100,
    "optimizers": 90,
}


@pytest.fixture(scope="module")
def library() -> Path:
    return build_library()


def under_sanitizers(library: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    variables = {
        **os.environ,
        "FASTNORM_EMULATED_LIBRARY": str(library),
        "FASTNORM_TEST_BACKENDS": "cuda-emulated",
        "FASTNORM_DISABLE_NODES": "1",  # they know the library's own backends, of which this is none
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:protect_shadow_gap=0",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        **env,
    }
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_conformance(library: Path, name: str) -> None:
    env, arguments = RUNS[name]
    quiet = ("-q", "-x", "-s", "-p", "no:cacheprovider", "-m", "not slow")
    done = under_sanitizers(library, "-m", "pytest", *quiet, *arguments, **env)
    said = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, said
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= LEAST_PASSED[name], said
