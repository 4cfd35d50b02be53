"""Looks for CUDA's compiler, and for which GPUs it should compile."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from build_tools.errors import CannotBuild

DEFAULT_ARCHS = "8.0;9.0;10.0+PTX"
OLDEST_ARCH = 80  # cooperative launches and bf16 in hardware
MEND = "install the CUDA toolkit (12 or later), or say where it is in CUDA_HOME"


@dataclass(frozen=True)
class Nvcc:
    """The compiler and its targets, such as sm_90, and compute_100 for PTX."""

    command: str
    version: str
    targets: tuple[str, ...]
    libraries: tuple[str, ...] = ()  # linker flags: where the toolkit's libraries are

    @property
    def gencode(self) -> tuple[str, ...]:
        return tuple(f"-gencode=arch=compute_{t.rpartition('_')[2]},code={t}" for t in self.targets)


def find_nvcc(env: Mapping[str, str]) -> Nvcc:
    """Finds nvcc in CUDA_HOME, PATH or /usr/local/cuda, or raises CannotBuild with one sentence."""
    home = env.get("CUDA_HOME") or env.get("CUDA_PATH")
    candidates = [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    found = next((path for path in map(shutil.which, candidates) if path), None)
    if found is None:
        where = home if home else "PATH or /usr/local/cuda"
        raise CannotBuild(f"nvcc, which compiles the CUDA C++ kernels, is not in {where}: {MEND}.")
    done = subprocess.run([found, "--version"], capture_output=True, text=True)
    version = re.search(r"release (\d+)\.(\d+)", done.stdout)
    if version is None or int(version[1]) < 12:
        raise CannotBuild(f"{found} is not nvcc 12 or later: {MEND}.")
    known = subprocess.run([found, "--list-gpu-arch"], capture_output=True, text=True).stdout
    numbers = {int(number) for number in re.findall(r"compute_(\d+)\b", known)}
    targets = read_targets(env.get("TORCH_CUDA_ARCH_LIST") or None, numbers)
    # nvcc may be a script that calls the real one: only that one knows where its libraries are.
    steps = subprocess.run([found, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True).stderr
    line = re.search(r"^#\$ LIBRARIES=(.*)$", steps, re.MULTILINE)
    libraries = tuple(shlex.split(line[1])) if line else ()
    return Nvcc(found, f"{version[1]}.{version[2]}", targets, libraries)


def read_targets(text: str | None, known: set[int]) -> tuple[str, ...]:
    """What TORCH_CUDA_ARCH_LIST asks for: "8.0;9.0a 10.0+PTX". Without it, what `known` has of the default.

    Raises CannotBuild for what cannot be read, for GPUs that are too old, and for those that nvcc does not know.
    """
    asked = re.split(r"[;, ]+", (text or DEFAULT_ARCHS).strip())
    targets: list[str] = []
    for name in asked:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if match is None:
            raise CannotBuild(
                f"TORCH_CUDA_ARCH_LIST={text}: {name!r} is not a compute capability such as 9.0 or 10.0+PTX."
            )
        number = int(match[1] + match[2])
        if number < OLDEST_ARCH:
            raise CannotBuild(f"TORCH_CUDA_ARCH_LIST={text}: the CUDA C++ kernels need 8.0 or later, not {name}.")
        if number not in known:
            if text is None:
                continue
            raise CannotBuild(f"TORCH_CUDA_ARCH_LIST={text}: this nvcc does not know {name}; install a later one.")
        targets += [f"sm_{number}{match[3]}"] + ([f"compute_{number}{match[3]}"] if match[4] else [])
    if not any(target.startswith("compute_") for target in targets) and text is None:
        targets.append(targets[-1].replace("sm_", "compute_"))
    return tuple(targets)
