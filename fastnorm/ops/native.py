"""Loading of the compiled extensions, and the one sentence to say when one is not there."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from types import ModuleType

import torch

# The ops that fastnorm._C_cuda has kernels for; Triton has all.
CUDA_COLUMNS = ("activation_stats", "batch_norm", "optim")
_BUILD = "build it with `pip install --no-build-isolation -e .` in the source tree, where torch and a C++ compiler are"
_BUILD_CUDA = "build it with `FASTNORM_BUILD=cuda pip install --no-build-isolation -e .` in the source tree"


class _State:
    module: ModuleType | None = None
    missing: str = "the compiled extension has not been looked for yet"
    cuda_missing: str | None = "the CUDA kernels have not been looked for yet"
    nodes: ModuleType | None = None
    nodes_missing: str | None = "the compiled autograd nodes have not been looked for yet"


def load() -> None:
    """Load the extensions that can be used here; remember why of those that cannot."""
    _load_cpu()
    _State.cuda_missing = _load_cuda()
    _State.nodes_missing = _load_nodes()


def _load_cpu() -> None:
    """Load fastnorm._C, or the file that FASTNORM_EXTENSION names."""
    if os.environ.get("FASTNORM_DISABLE_NATIVE") == "1":
        _State.missing = "the compiled extension is switched off by FASTNORM_DISABLE_NATIVE=1; unset it"
        return
    path = os.environ.get("FASTNORM_EXTENSION")
    try:
        _State.module = _load_file(path) if path else importlib.import_module("fastnorm._C")
        _check_isa(_State.module)
    except ModuleNotFoundError as error:
        if error.name != "fastnorm._C":
            raise
        _State.missing = f"the compiled extension fastnorm._C is not built; {_BUILD}"
    except (ImportError, OSError) as error:
        _State.missing = (
            f"the compiled extension does not load here ({str(error).splitlines()[0]}); it may have been built for "
            f"another torch or machine; {_BUILD}"
        )


def _load_cuda() -> str | None:
    """Load fastnorm._C_cuda where torch has CUDA; the reason where it cannot be used."""
    if os.environ.get("FASTNORM_DISABLE_NATIVE") == "1":
        return _State.missing
    if not torch.backends.cuda.is_built():
        return "this torch is built without CUDA"
    try:
        importlib.import_module("fastnorm._C_cuda")
    except ModuleNotFoundError as error:
        if error.name != "fastnorm._C_cuda":
            raise
        return f"the CUDA kernels (fastnorm._C_cuda) are not built; {_BUILD_CUDA}, where nvcc is"
    except (ImportError, OSError) as error:
        return f"the CUDA kernels do not load here ({str(error).splitlines()[0]}); {_BUILD_CUDA}, where nvcc is"
    return None


def nodes_module(torch_version: str) -> str:
    """The name of the module of autograd nodes that was built for this torch, and no other."""
    return "_C_nodes_" + re.sub(r"\W", "_", torch_version)


def _load_nodes() -> str | None:
    """Load the autograd nodes; the reason where Python's Functions record calls instead."""
    if os.environ.get("FASTNORM_DISABLE_NATIVE") == "1":
        return _State.missing
    if os.environ.get("FASTNORM_DISABLE_NODES") == "1":
        return "the compiled autograd nodes are switched off by FASTNORM_DISABLE_NODES=1; unset it"
    name = f"fastnorm.{nodes_module(torch.__version__)}"
    try:
        nodes = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return f"the autograd nodes are not built for torch {torch.__version__}; {_BUILD}"
    except (ImportError, OSError) as error:
        return f"the autograd nodes do not load here ({str(error).splitlines()[0]}); {_BUILD}"
    _connect(nodes)
    return None


def _connect(nodes: ModuleType) -> None:
    """Let the nodes call the CPU ops directly; modules of another day, which cannot, go through the dispatcher."""
    module = _State.module
    if module is not None and hasattr(module, "direct_ops") and hasattr(nodes, "connect"):
        nodes.connect(module.direct_ops())
        _State.nodes = nodes


def _check_isa(module: ModuleType) -> None:
    wanted = os.environ.get("FASTNORM_CPU")
    if wanted and module.cpu_isa() != wanted:
        raise ValueError(
            f"FASTNORM_CPU={wanted}: kernels for it do not exist or this CPU cannot run them; "
            f"use default, avx2 or avx512 (the best here is chosen where it is unset)"
        )


def _load_file(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fastnorm._C", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"FASTNORM_EXTENSION={path} is not an extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def missing() -> str | None:
    """Why the compiled extension cannot be used, with the mending command; None where it is loaded."""
    return None if _State.module is not None else _State.missing


def cuda_missing(column: str | None) -> str | None:
    """Why the compiled kernels cannot serve this op (None: all ops) on CUDA tensors; None where they can."""
    if column not in CUDA_COLUMNS:
        what = "not every op has" if column is None else f"{column} does not have"
        return f"{what} CUDA C++ kernels (which exist for {', '.join(CUDA_COLUMNS)}); 'triton' serves every op"
    return _State.cuda_missing


def nodes_missing() -> str | None:
    """Why calls are recorded by Python's Functions, which are slower; None where compiled nodes do it."""
    return _State.nodes_missing


def nodes() -> ModuleType | None:
    """The compiled nodes' module where it can call the CPU ops of fastnorm._C directly, else None."""
    return _State.nodes


def available() -> ModuleType | None:
    """The extension's module, or None without it."""
    return _State.module


def isa() -> str | None:
    """The instruction set whose kernels run here ("default", "avx2", "avx512"); None without the extension."""
    return None if _State.module is None else _State.module.cpu_isa()
