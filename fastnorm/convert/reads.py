"""Records what a forward reads of its module and of the modules below while it is traced.

A trace turns every attribute into a constant. So each one read becomes a check of the rewritten forward, and one that
cannot be checked makes the forward unprovable. For the time of the trace the modules get a subclass of their class that
writes down each look-up.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastnorm.convert.fused import MISSING, TENSOR, Checks, Path, class_before
from fastnorm.convert.pairs import Unprovable

_OWN = frozenset(nn.Module().__dict__) - {"training", "_modules"}  # what torch itself keeps in every module
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device, torch.memory_format, torch.layout, enum.Enum)


class Reads:
    """The look-ups of one trace. `training` of the root is what the trace is made for, whatever the module says."""

    def __init__(self, root: nn.Module, mode: bool) -> None:
        self.mode = mode
        self.mode_read = False
        self.paused = True
        self._paths: dict[int, Path] = {
            id(module): tuple(name.split(".")) if name else () for name, module in root.named_modules()
        }
        self._modules: dict[Path, type | None] = {}
        self._children: dict[Path, tuple[str, ...]] = {}
        self._values: dict[tuple[Path, str], Any] = {}

    def note(self, owner: nn.Module, name: str, value: Any) -> None:
        """Takes down that `owner.name` was looked up and gave `value`."""
        path = self._paths[id(owner)]
        if name == "_modules":
            if isinstance(owner, _CONTAINERS):
                self._children[path] = tuple(value)
        elif isinstance(value, nn.Module):
            self._modules[path + (name,)] = class_before(unrecorded(type(value)))
        elif isinstance(value, (Tensor, fx.Proxy)):
            self._values[path, name] = TENSOR
        elif isinstance(value, MethodType) and isinstance(value.__self__, (nn.Module, type)):
            pass  # a method: its own look-ups are recorded
        elif _checkable(value):
            self._values[path, name] = value
        else:
            where = ".".join((*path, name))
            raise Unprovable(f"its forward reads self.{where}, a {type(value).__name__}, which may change")

    def checks(self) -> Checks:
        return Checks(
            modules=tuple(self._modules.items()),
            children=tuple(self._children.items()),
            values=tuple((path, name, value) for (path, name), value in self._values.items()),
        )


def _checkable(value: Any) -> bool:
    """Whether a value can be compared later, and written to a pickle."""
    if value is None or isinstance(value, _PLAIN):
        return True
    if isinstance(value, tuple):
        return all(map(_checkable, value))
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return importable(value)
    return False


def importable(value: Any) -> bool:
    """Whether a function or class is found again under its own name."""
    try:
        owner: Any = importlib.import_module(value.__module__)
        return functools.reduce(getattr, value.__qualname__.split("."), owner) is value
    except (ImportError, AttributeError, TypeError):
        return False


_active: list[Reads] = []  # the trace that is going on, if any


def unrecorded(cls: type) -> type:
    """The class of which a recording one was made; any other class itself."""
    return vars(cls).get("fastnorm_recorded", cls)


@functools.cache
def _recording(cls: type[nn.Module]) -> type[nn.Module]:
    def note(self: nn.Module, name: str, value: Any) -> None:
        if _active and not _active[-1].paused:
            _active[-1].note(self, name, value)

    def __getattribute__(self: nn.Module, name: str) -> Any:
        if name[:2] == "__" or name in _OWN:
            return cls.__getattribute__(self, name)
        reads = _active[-1]
        if name == "training" and not reads.paused and reads._paths[id(self)] == ():
            reads.mode_read = True
            return reads.mode
        value = cls.__getattribute__(self, name)
        note(self, name, value)
        return value

    def __getattr__(self: nn.Module, name: str) -> Any:  # what nn.Module keeps in its dicts: after the look-up above
        try:
            value = cls.__getattr__(self, name)
        except AttributeError:
            note(self, name, MISSING)
            raise
        note(self, name, value)
        return value

    body = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__getattribute__": __getattribute__,
        "__getattr__": __getattr__,
        "fastnorm_recorded": cls,
    }
    return type(cls.__name__, (cls,), body)


@contextlib.contextmanager
def recorded(root: nn.Module, mode: bool) -> Iterator[Reads]:
    """Records look-ups on root and all below. Unprovable if a module is found changed afterwards; it is put back."""
    reads = Reads(root, mode)
    modules = list(root.modules())
    classes = [type(module) for module in modules]
    before = [_contents(module) for module in modules]
    _active.append(reads)
    changed = ""
    try:
        for module, cls in zip(modules, classes, strict=True):
            if not isinstance(module, torch.jit.ScriptModule):
                module.__class__ = _recording(cls)  # type: ignore[arg-type]
        yield reads
    finally:
        for module, cls in zip(modules, classes, strict=True):
            if not isinstance(module, torch.jit.ScriptModule):
                module.__class__ = cls
        _active.pop()
        for module, contents in zip(modules, before, strict=True):
            changed = changed or _restore(module, contents)
    if changed:
        raise Unprovable(f"its forward changes self.{changed}")


def _contents(module: nn.Module) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, dict) else value for name, value in module.__dict__.items()}


def _restore(module: nn.Module, contents: dict[str, Any]) -> str:
    """The name of an attribute that is not what it was, after putting it back; empty if there is none."""
    changed = ""
    for name in [*module.__dict__]:
        if name not in contents:
            changed = name
            del module.__dict__[name]
    for name, value in contents.items():
        now = module.__dict__.get(name)
        if isinstance(value, dict) and isinstance(now, dict):
            if now.keys() != value.keys() or any(now[key] is not value[key] for key in value):
                changed = name
                now.clear()
                now.update(value)
        elif now is not value:
            changed = name
            module.__dict__[name] = value
    return changed
