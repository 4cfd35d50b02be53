"""Loading of the compiled extension, and the one sentence to say when it is not there."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

_BUILD = "build it with `pip install --no-build-isolation -e .` in the source tree, where torch and a C++ compiler are"


class _State:
    module: ModuleType | None = None
    missing: str = "the compiled extension has not been looked for yet"


def load() -> None:
    """Load fastnorm._C, or the file that FASTNORM_EXTENSION names; remember why where that fails."""
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


def available() -> ModuleType | None:
    """The extension's module, or None without it."""
    return _State.module


def isa() -> str | None:
    """The instruction set whose kernels run here ("default", "avx2", "avx512"); None without the extension."""
    return None if _State.module is None else _State.module.cpu_isa()
