"""Twins of norms that other packages define: timm's, torchvision's, and RMS norms written like Llama's.

A twin is a subclass of the package's class, made when an instance of it is met, so that no package is imported for it.
Its name in this module spells where the class comes from, and looking that name up makes it again: so pickles load.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook

from fastnorm.activation import IDENTITY, Activation, as_activation, chosen
from fastnorm.convert.fused import untouched
from fastnorm.convert.kernels import KERNELS, Kernel
from fastnorm.convert.pairs import ACTIVATIONS, Unprovable
from fastnorm.convert.rms import eps_name, proven_form
from fastnorm.functional import general_relu

fx.wrap("chosen")  # a symbolic trace records the call

_NORM, _ACT = "timm.layers.norm", "timm.layers.norm_act"
KNOWN: dict[str, str] = {
    "torchvision.ops.misc.FrozenBatchNorm2d": "frozen",
    "torchvision.models.convnext.LayerNorm2d": "layer_2d",
    f"{_NORM}.GroupNorm": "group",
    f"{_NORM}.GroupNorm1": "group",
    f"{_NORM}.LayerNorm": "layer",
    f"{_NORM}.LayerNormFp32": "layer",
    f"{_NORM}.LayerNorm2d": "layer_2d",
    f"{_NORM}.LayerNorm2dFp32": "layer_2d",
    f"{_NORM}.RmsNorm": "rms",
    f"{_NORM}.RmsNormFp32": "rms",
    f"{_ACT}.BatchNormAct2d": "batch",
    f"{_ACT}.FrozenBatchNormAct2d": "frozen",
    f"{_ACT}.GroupNormAct": "group",
    f"{_ACT}.GroupNorm1Act": "group",
    f"{_ACT}.LayerNormAct": "layer",
    f"{_ACT}.LayerNormActFp32": "layer",
    f"{_ACT}.LayerNormAct2d": "layer_2d",
    f"{_ACT}.LayerNormAct2dFp32": "layer_2d",
    f"{_ACT}.RmsNormAct": "rms",
    f"{_ACT}.RmsNormActFp32": "rms",
}
SOME = Activation(True)  # stands for an activation that is not fused: all that is asked of it is whether there is one


class ForeignNorm(nn.Module):
    """What all twins share: act(norm(x) + residual), then the layer's own drop and act modules, if it has any."""

    fastnorm_kernel: Kernel
    fastnorm_original: type[nn.Module]

    @property
    def activation(self) -> Activation:
        """What the layer's own modules compute behind the norm."""
        drop, act = self._modules.get("drop"), self._modules.get("act")
        if type(act) is nn.Identity and type(drop) is nn.Identity and untouched(act) and untouched(drop):
            return IDENTITY
        if act is None and drop is None:
            return IDENTITY
        fusable = type(act) in ACTIVATIONS and untouched(act) and type(drop) is nn.Identity and untouched(drop)  # type: ignore[arg-type]
        return as_activation(act) if fusable else SOME

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, act: nn.Module | Activation | None = None
    ) -> Tensor:
        """act(norm(x) + residual), with the layer's own activation where none is given to the call."""
        if getattr(self, "_fast_norm", False) or not self.fastnorm_kernel.serves(self, x):
            return self._by_the_original(x, residual, act)
        own = self.activation
        if own is SOME or (own.active and _has_any_global_hook()):
            y = self.fastnorm_kernel.run(self, x, residual, IDENTITY)
            for name in ("drop", "act"):
                module = self._modules.get(name)
                y = y if module is None else module(y)
            return y
        return self.fastnorm_kernel.run(self, x, residual, chosen(own, act))

    def _by_the_original(self, x: Tensor, residual: Tensor | None, act: nn.Module | Activation | None) -> Tensor:
        y = self.fastnorm_original.forward(self, x)
        y = y if residual is None else y + residual
        numbers = IDENTITY if act is None else as_activation(act)
        return general_relu(y, *numbers[1:]) if numbers.active else y


def twin_of(module: nn.Module) -> type[nn.Module] | None:
    """The twin of another package's norm; None where there is none. Unprovable, with the reason, for a near miss."""
    cls: Any = type(module)  # for mypy a class of modules has nn.Module's __hash__
    name = _name_of(cls)
    if name in KNOWN:
        return make_twin(cls, KNOWN[name])
    if eps_name(module) is None:
        return None
    if not _importable(cls):
        raise Unprovable("its class cannot be imported by name")
    return make_twin(cls, proven_form(module))


def own_activation(module: nn.Module) -> Activation:
    """The activation module that a twin takes into its norm: timm's layers bring one along."""
    own = module.activation if isinstance(module, ForeignNorm) else IDENTITY
    return IDENTITY if own is SOME else own


@functools.cache
def make_twin(cls: Any, kernel: str) -> type[nn.Module]:
    """The subclass of a package's class with fastnorm's forward. Its name is the class's own."""
    body = {
        "__module__": __name__,
        "__qualname__": f"{kernel}:{_name_of(cls).replace('.', ':')}",
        "__doc__": cls.__doc__,
        "fastnorm_kernel": KERNELS[kernel],
        "fastnorm_original": cls,
    }
    return type(cls.__name__, (ForeignNorm, cls), body)


def __getattr__(name: str) -> Any:
    kernel, _, path = name.partition(":")
    if kernel not in KERNELS or not path:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, cls = path.replace(":", ".").rpartition(".")
    return make_twin(getattr(importlib.import_module(module), cls), kernel)


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _importable(cls: type) -> bool:
    return getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is cls
