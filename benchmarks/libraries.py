"""Other libraries' kernels as candidates, where they are installed: Liger-Kernel, quack, attorch.

Each is called the way its own documentation shows, on the cases that it has a function for. What it computes is
checked before it is timed, like every candidate; a wrong or refused case is a row that says so.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.func import functional_call

from benchmarks.cases import EPS, MOMENTUM, Case

Call = Callable[..., Tensor]  # of x, weight, bias, running_mean, running_var


class Library(NamedTuple):
    """Which package, and its call for each kind of norm that it has."""

    package: str
    calls: dict[str, Callable[[Any, Case], Call]]


def liger_layer(module: Any, case: Case) -> Call:
    return lambda x, w, b, *_: module.liger_layer_norm(x.flatten(1), w.flatten(), b.flatten(), EPS).view_as(x)


def liger_rms(module: Any, case: Case) -> Call:
    return lambda x, w, *_: module.liger_rms_norm(x, w, EPS, in_place=False)


def liger_group(module: Any, case: Case) -> Call:
    return lambda x, w, b, *_: module.liger_group_norm(x, w, b, case.shape[1], case.groups, EPS)


def quack_rms(module: Any, case: Case) -> Call:
    return lambda x, w, *_: module.rmsnorm(x, w, eps=EPS)


def attorch_batch(module: Any, case: Case) -> Call:
    layer = module.BatchNorm2d(case.shape[1], EPS, MOMENTUM).train(case.spec.training)
    names = ("weight", "bias", "running_mean", "running_var")
    return lambda x, *state: functional_call(layer, dict(zip(names, state, strict=True)), (x,))


def attorch_layer(module: Any, case: Case) -> Call:
    layer = module.LayerNorm(case.shape[-1], EPS)
    return lambda x, w, b, *_: functional_call(layer, {"weight": w, "bias": b}, (x,))


LIBRARIES = {
    "liger": Library(
        "liger_kernel.transformers.functional", {"layer": liger_layer, "rms": liger_rms, "group": liger_group}
    ),
    "quack": Library("quack", {"rms": quack_rms}),
    "attorch": Library("attorch", {"batch": attorch_batch, "layer": attorch_layer}),
}


def installed(library: Library) -> bool:
    return importlib.util.find_spec(library.package.split(".")[0]) is not None


def absent_libraries() -> list[str]:
    return [name for name, library in LIBRARIES.items() if not installed(library)]


def serves(name: str, library: Library, case: Case) -> bool:
    """Their functions are norms alone, on a GPU; attorch's layer norm takes one dim."""
    spec = case.spec
    plain = case.device == "cuda" and not (spec.act or spec.residual or spec.module)
    rows = spec.kind != "layer" or name != "attorch" or len(case.shape) == 2
    return plain and rows and spec.kind in library.calls and installed(library)


def call_of(library: Library, case: Case) -> Call:
    return library.calls[case.spec.kind](importlib.import_module(library.package), case)
