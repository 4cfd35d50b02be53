"""What a results file says of where and of what it was measured."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


def describe() -> dict[str, Any]:
    """Machine, versions, commit and date, ready for JSON."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "caches": caches(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": version_of("triton"),
            "fastnorm": fastnorm_version(),
            "compiler": first_line("g++", "--version") or "none",
        },
        "backends": backends(),
        "commit": commit(),
    }


def cpu_model() -> str:
    """The model name, with the widest vector instructions that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    vector = [flag for flag in ("avx2", "avx512f", "avx512_bf16") if flag in flags]
    return f"{fields.get('model name', 'unknown')} ({', '.join(vector) or 'no AVX2'})"


def caches() -> dict[str, str]:
    """`{"L1 Data": "32K", ...}` of the first core."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((folder / part).read_text().strip() for part in ("level", "type", "size"))
        except OSError:
            continue
        found[f"L{level} {kind}"] = size
    return found


def version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def fastnorm_version() -> str | None:
    try:
        import fastnorm
    except ImportError:
        return None
    return str(getattr(fastnorm, "__version__", None))


def backends() -> dict[str, str]:
    """`{device: backend}`: what fastnorm chooses by itself, which is what is measured."""
    from fastnorm.ops.backend import resolve

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return {device: resolve(torch.empty(0, device=device)) for device in devices}


def commit() -> dict[str, Any]:
    """The commit measured, and whether the tree differed from it (results files apart)."""
    head = first_line("git", "rev-parse", "HEAD")
    changed = first_line("git", "status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {"hash": head or "unknown", "dirty": bool(changed) if head else None}


SOURCE_FOLDERS = ("kernels", "csrc", "fastnorm", "benchmarks", "tests", "build_tools")
SOURCE_FILES = ("setup.py", "pyproject.toml")
SOURCE_ENDINGS = (".py", ".cpp", ".h", ".cu", ".cuh")


def sources(root: Path = ROOT) -> str:
    """A digest of all code, the same in a checkout and in a copy of it without its history."""
    files = [path for name in SOURCE_FOLDERS for path in (root / name).rglob("*") if path.suffix in SOURCE_ENDINGS]
    files += [root / name for name in SOURCE_FILES]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def first_line(*command: str) -> str:
    """The first line that a command prints; empty when it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    return lines[0] if done.returncode == 0 and lines else ""
