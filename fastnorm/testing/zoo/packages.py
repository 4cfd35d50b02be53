"""The packages whose models are tested, imported in a way that works beside any torch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

# Operators that torchvision registers fakes for as it is imported, whether or not its library could be loaded.
_SCHEMAS = [f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")]
_DECLARED: list[torch.library.Library] = []  # a library's operators live as long as it does


def import_package(name: str) -> ModuleType:
    """torchvision, or a package that imports it if it is there: timm, transformers, lightning."""
    if importlib.util.find_spec("torchvision") is not None:
        import_torchvision()
    return importlib.import_module(name)


def import_torchvision() -> ModuleType:
    """torchvision, also where its compiled operators do not fit torch: PyPI's, made for CUDA, beside a CPU's torch.

    There the import alone raises "operator torchvision::nms does not exist". Declared first, it works, and its models
    do; its operators stay without kernels. Raises: ImportError where torchvision is not installed.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchvision is not installed", name="torchvision")
    if "torchvision" not in sys.modules and not _DECLARED and not _loads(Path(spec.origin).parent):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            library.define(schema)
        _DECLARED.append(library)
    return importlib.import_module("torchvision")


def _loads(folder: Path) -> bool:
    """Whether torchvision will find its operators: it tries the same and takes a failure in silence."""
    try:
        for path in folder.glob("_C.*"):
            torch.ops.load_library(str(path))
            return True
    except OSError:
        pass
    return False
