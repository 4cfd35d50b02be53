"""Which class stands in for which, and why a norm is left alone.

A twin is a subclass that reads the same attributes, so an instance changes over by its class alone: its parameters,
buffers, hooks and everything else in its `__dict__` stay. What a layer of ours has besides (`activation`, `unbiased`)
has a default on the class; an instance with an `activation` of its own was built as ours and is never turned back.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from fastnorm import nn as ours
from fastnorm.convert.fused import class_before

TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: ours.BatchNorm1d,
    nn.BatchNorm2d: ours.BatchNorm2d,
    nn.BatchNorm3d: ours.BatchNorm3d,
    nn.SyncBatchNorm: ours.SyncBatchNorm,
    nn.InstanceNorm1d: ours.InstanceNorm1d,
    nn.InstanceNorm2d: ours.InstanceNorm2d,
    nn.InstanceNorm3d: ours.InstanceNorm3d,
    nn.LayerNorm: ours.LayerNorm,
    nn.GroupNorm: ours.GroupNorm,
    nn.RMSNorm: ours.RMSNorm,
}
_ORIGINALS = {twin: original for original, twin in TWINS.items()}
NORMS = (*TWINS.values(), ours.LayerNorm2d, ours.LessonBatchNorm, ours.LessonLayerNorm)


def class_name(cls: type) -> str:
    """The name under which users know a class: `torch.nn.BatchNorm2d`, `fastnorm.BatchNorm2d`, or the full one."""
    if class_before(cls) is not cls:
        return f"{class_name(class_before(cls))}, fused"
    if "fastnorm_original" in vars(cls):
        return f"fastnorm's {class_name(vars(cls)['fastnorm_original'])}"
    for package, name in ((nn, "torch.nn"), (ours, "fastnorm")):
        if getattr(package, cls.__name__, None) is cls:
            return f"{name}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def original_of(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that a twin stands in for; any other class itself."""
    foreign: type[nn.Module] = vars(cls).get("fastnorm_original", cls)
    return _ORIGINALS.get(cls, foreign)


def is_ours(module: nn.Module) -> bool:
    """Whether the module is one of fastnorm's norms, or of a class made from one."""
    return isinstance(module, NORMS) or hasattr(type(module), "fastnorm_original")


def is_norm(module: nn.Module) -> bool:
    """Whether users would call it a norm: torch's, a subclass, or a layer without children that is named so."""
    if isinstance(module, tuple(TWINS)):
        return True
    if type(module).__module__ == "torch.nn.utils.parametrizations":
        return False
    name = str(getattr(module, "original_name", type(module).__name__))  # TorchScript hides the class
    return "norm" in name.lower() and next(module.children(), None) is None


def why_left(module: nn.Module) -> str:
    """Why a norm that is not ours has no twin, in plain words."""
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module has no Python class to exchange"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    if is_parametrized(module):
        return "parametrized: torch has exchanged its class already"
    tensors = [*module._parameters.values(), *module._buffers.values()]
    if any(tensor is not None and is_lazy(tensor) for tensor in tensors):
        return "lazy: it takes its class at its first batch; convert after that"
    for original in TWINS:
        if isinstance(module, original):
            return f"a subclass of {class_name(original)} that fastnorm does not know ({class_name(type(module))})"
    return "no layer that fastnorm knows"
