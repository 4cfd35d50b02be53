"""The Triton launchers behind fastnorm_triton, imported at their first call so that `import fastnorm` stays light."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def _import_kernels() -> ModuleType:
    """fastnorm.kernels as installed, or the top-level kernels/ folder of a source checkout."""
    try:
        return importlib.import_module("fastnorm.kernels")
    except ModuleNotFoundError as error:
        source = Path(__file__).parents[2] / "kernels" / "__init__.py"
        if error.name != "fastnorm.kernels" or not source.exists():
            raise
    spec = importlib.util.spec_from_file_location(
        "fastnorm.kernels", source, submodule_search_locations=[str(source.parent)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fastnorm.kernels"] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def missing() -> str | None:
    """Why Triton kernels cannot be used, with the mending command; None where they can be imported."""
    try:
        _import_kernels()
    except ImportError as error:
        return f"Triton kernels cannot be imported ({error}); install triton with `pip install triton`"
    return None


def interpreted() -> bool:
    """Whether Triton kernels run on CPU tensors, under Triton's interpreter (for tests: thousands of times slower)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def launcher(name: str) -> Callable[..., Any]:
    """The implementation of one op: the launcher of that name in kernels/."""

    def launch(*args: Any) -> Any:
        return _import_kernels().LAUNCHERS[name](*args)

    return launch
