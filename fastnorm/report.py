"""What is here: versions, what was built, which backend serves which op, and why not another."""

from __future__ import annotations

import importlib
import platform
from typing import Any

import torch

from fastnorm._version import __version__
from fastnorm.ops import BACKENDS, native, triton
from fastnorm.ops.backend import available_backends, refusal
from fastnorm.ops.schemas import SCHEMAS


def _build() -> Any:
    try:
        return importlib.import_module("fastnorm._build")
    except ImportError:
        return None


def explain() -> str:
    """A readable report of versions, build, and the backend of every op on every device here."""
    lines = [f"fastnorm {__version__}, torch {torch.__version__}, Python {platform.python_version()}"]
    lines.append(f"native (compiled CPU kernels): {native.missing() or 'loaded'}")
    build = _build()
    if build is not None:
        lines += [f"  {key}: {value}" for key, value in build.build_info().items()]
        lines.append("  this CPU can: " + ", ".join(k for k, v in build.cpu_features().items() if v))
    elif native.missing() is None:
        lines.append("  (fastnorm._build is absent: pybind11 was not there when the kernels were built)")
    if native.missing() is None:
        lines.append(f"  instruction set in use: {native.isa()}")
    lines.append(f"autograd nodes (compiled): {native.nodes_missing() or 'loaded'}")
    lines.append(f"triton: {triton.missing() or 'importable'}")
    lines.append(f"CUDA: {'available' if torch.cuda.is_available() else 'not available'}")
    ops = ", ".join(sorted({name.rsplit("_", 1)[0] for name in SCHEMAS}))
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        lines.append(f"on {device}, {ops}: served by {available_backends(device)[0]!r}")
        for name in BACKENDS:
            reason = refusal(name, device, torch.float32)
            lines.append(f"  {name}: {'can serve' if reason is None else 'not: ' + reason}")
    return "\n".join(lines)
