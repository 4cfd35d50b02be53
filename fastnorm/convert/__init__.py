"""Gives the norms of any model fastnorm's classes, in place, and back."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fastnorm.convert.foreign import own_activation, twin_of
from fastnorm.convert.fuse import fuse_module
from fastnorm.convert.fused import class_before
from fastnorm.convert.pairs import Unprovable
from fastnorm.convert.patching import patched
from fastnorm.convert.report import ConversionReport, Fused, Left, Replaced
from fastnorm.convert.twins import TWINS, class_name, is_norm, is_ours, original_of, why_left

__all__ = ["ConversionReport", "Fused", "Left", "Replaced", "convert", "patched", "revert"]


def convert(model: nn.Module, *, fuse: bool = True) -> ConversionReport:
    """Makes every norm of a model that fastnorm knows fastnorm's own, in place, and fuses what follows it.

    Only classes change: parameters, buffers, hooks, state dict keys and an optimizer built before stay what they are,
    and `isinstance(norm, torch.nn.BatchNorm2d)` still holds. A module that occurs under several names counts once.

    With `fuse`, a ReLU, LeakyReLU, ReLU6 or GeneralRelu behind a norm, and a sum between them, is computed by the norm
    wherever that is proven to mean the same; docs/fusing.md says what is proven and how. Norms stay plain layers: the
    fusion lives in the forward of the module around them, which falls back to the original forward as soon as a hook,
    another layer or another setting makes the proof void.

    Args:
        model: any module; a norm itself as well.
        fuse: whether to fuse.

    Returns:
        What was replaced, what was fused, and what was left, with the reason. Converting again does what is new.

    Raises:
        TypeError: for something that is no nn.Module.
    """
    _check(model)
    modules = list(model.named_modules())
    replaced: list[Replaced] = []
    fused: list[Fused] = []
    left: list[Left] = []
    for name, module in modules:
        before = type(module)
        try:
            twin = _twin(module)
        except Unprovable as reason:
            left.append(Left(name, class_name(before), str(reason)))
            continue
        if twin is not None:
            module.__class__ = twin
            replaced.append(Replaced(name, class_name(before), class_name(twin)))
            if own_activation(module).active:
                fused.append(Fused(name, name, class_name(before), str(own_activation(module)), False))
        elif is_norm(module) and not is_ours(module):
            left.append(Left(name, class_name(before), why_left(module)))
    for name, module in modules if fuse else ():
        new, refused = fuse_module(module, name)
        fused += new
        left += refused
    return ConversionReport(tuple(replaced), tuple(fused), tuple(left))


def revert(model: nn.Module) -> ConversionReport:
    """Gives every module that `convert` changed its original class back, in place.

    Norms that were built as fastnorm's stay so.

    Args:
        model: any module.

    Returns:
        What was given back, as `replaced`.

    Raises:
        TypeError: for something that is no nn.Module.
    """
    _check(model)
    replaced: list[Replaced] = []
    left: list[Left] = []
    for name, module in model.named_modules():
        before = type(module)
        original = class_before(before)
        if "activation" not in module.__dict__:
            original = original_of(original)
        if original is not before:
            module.__class__ = original
            replaced.append(Replaced(name, class_name(before), class_name(original)))
        elif is_parametrized(module) and _is_ours_by_conversion(before.__mro__[1]):
            left.append(Left(name, class_name(before), "parametrized since it was converted"))
    return ConversionReport(replaced=tuple(replaced), left=tuple(left))


def _is_ours_by_conversion(cls: type[nn.Module]) -> bool:
    return class_before(cls) is not cls or original_of(cls) is not cls


def _twin(module: nn.Module) -> type[nn.Module] | None:
    if "forward" in module.__dict__ or is_ours(module):
        return None
    return TWINS.get(type(module)) or twin_of(module)


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
