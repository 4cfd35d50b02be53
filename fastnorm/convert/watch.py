"""Watches the Python code that runs during a trace for answers that a later call could get differently."""

from __future__ import annotations

import builtins
import contextlib
import dis
import enum
import functools
import random
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch
from torch import fx

from fastnorm.convert.pairs import Unprovable

_TRUSTED = {"torch", "fastnorm", *sys.stdlib_module_names}
_UNSTEADY = {"random", "time", "os", "datetime", "secrets", "numpy"}
_STEADY = (torch.dtype, torch.memory_format, torch.layout, enum.Enum)
_QUERIES = {
    "is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "is_autocast_cpu_enabled",
    "is_autocast_cache_enabled", "get_autocast_dtype", "get_autocast_gpu_dtype", "get_default_dtype",
    "get_default_device", "get_num_threads", "get_rng_state", "is_compiling", "is_exporting", "is_dynamo_compiling",
    "is_tracing", "is_initialized", "is_available", "get_world_size", "get_rank", "is_tensor", "is_deterministic",
    "are_deterministic_algorithms_enabled", "getenv", "globals", "vars", "callable", "issubclass",
    "print", "open", "warn",
}  # fmt: skip
# What a graph does not hold, whoever calls it: modes that the operations in between run under, and checkpoints.
_MODE_REASON = "its forward enters a context (no_grad, autocast, a checkpoint), which a graph does not hold"
_MODES = {
    "_set_grad_enabled", "set_autocast_enabled", "set_autocast_dtype", "autocast_increment_nesting",
    "_set_deterministic_algorithms", "_InferenceMode", "checkpoint", "checkpoint_sequential",
}  # fmt: skip


@functools.cache
def is_users(name: str | None) -> bool:
    """Whether a module is of the model's author: not of torch, of Python or of this package."""
    first = (name or "").split(".")[0]
    return first == "__main__" or first not in _TRUSTED


@functools.cache
def _is_unsteady(name: str | None) -> bool:
    return (name or "").split(".")[0] in _UNSTEADY


@contextlib.contextmanager
def watched(cls: type, kinds: dict[str, type]) -> Iterator[None]:
    """Runs a trace of a class's forward; Unprovable for code that asks for types, global state or randomness.

    kinds: what each argument is taken to be when the code asks `isinstance`.
    """
    functions = [value for base in cls.__mro__ for value in vars(base).values() if isinstance(value, FunctionType)]
    tables = {id(f.__globals__): f.__globals__ for f in functions if is_users(f.__module__)}
    stand_ins = {"isinstance": functools.partial(_is_instance, kinds), "hasattr": _has_attr, "getattr": _get_attr}
    patched = [(table, name) for table in tables.values() for name in stand_ins if name not in table]
    codes: dict[CodeType, dict[str, Any]] = {}
    problems: list[str] = []
    before = sys.getprofile()
    states = (torch.get_rng_state(), random.getstate())
    for table, name in patched:
        table[name] = stand_ins[name]
    sys.setprofile(_profiler(codes, problems))
    try:
        yield
    finally:
        sys.setprofile(before)
        for table, name in patched:
            del table[name]
        drawn = not torch.equal(states[0], torch.get_rng_state()) or states[1] != random.getstate()
        torch.set_rng_state(states[0])
        random.setstate(states[1])
    if drawn:
        raise Unprovable("its forward draws random numbers outside its modules")
    if problems:
        raise Unprovable(problems[0])
    for code, table in codes.items():
        _check_globals(code, table)
    for function in functions:
        if function.__code__ in codes:
            _check_closure(function)


def _profiler(codes: dict[CodeType, dict[str, Any]], problems: list[str]) -> Callable[[FrameType, str, Any], None]:
    def profile(frame: FrameType, event: str, arg: Any) -> None:
        name = frame.f_globals.get("__name__")
        if event == "c_call":
            entered = arg.__name__ in _MODES
            if (entered or (is_users(name) and _asks(arg))) and not _importing(frame):
                problems.append(_MODE_REASON if entered else f"its forward asks {arg.__name__}()")
        elif event == "call":
            called = frame.f_code.co_name
            unsteady = called in _QUERIES or called in _MODES or called == "__enter__" or _is_unsteady(name)
            if (not unsteady and not is_users(name)) or _importing(frame):
                return
            caller = frame.f_back.f_globals.get("__name__") if frame.f_back else None
            if called in _MODES or (called == "__enter__" and is_users(caller)):
                problems.append(_MODE_REASON)
            elif unsteady and is_users(caller):
                problems.append(f"its forward asks {called}()")
            if is_users(name):
                codes[frame.f_code] = frame.f_globals

    return profile


def _asks(function: Any) -> bool:
    """Whether a function of C's answer depends on more than its arguments, or on what a stand-in hides."""
    module = str(getattr(function, "__module__", None) or "").lstrip("_")
    return function.__name__ in _QUERIES or function in (isinstance, hasattr, getattr) or _is_unsteady(module)


def _importing(frame: FrameType) -> bool:
    """Whether the code runs because something that the forward calls imports it just now."""
    above: FrameType | None = frame
    while above is not None and above.f_code is not fx.Tracer.trace.__code__:
        if above.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        above = above.f_back
    return False


def _check_globals(code: CodeType, table: dict[str, Any]) -> None:
    """Raises Unprovable for a global that is no module, function or class: it may be another one at the next call.

    So may be what is read of a module or a class: `settings.FLAG`.
    """
    current: Any = None  # the module or class that was just looked up
    for instruction in dis.get_instructions(code):
        name = str(instruction.argval)
        if instruction.opname == "IMPORT_NAME":
            raise Unprovable("its forward imports something")
        if instruction.opname == "LOAD_GLOBAL":
            if name == "type" and name not in table:
                raise Unprovable("its forward asks for the type of something")
            current = _checked_global(name, table.get(name, getattr(builtins, name, None)))
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and current is not None:
            current = _checked_global(name, getattr(current, name, None))
        elif instruction.opname == "STORE_ATTR" and current is not None:
            raise Unprovable(f"its forward sets {name} of a module or class")
        elif instruction.opname not in ("CACHE", "PUSH_NULL"):
            current = None


def _checked_global(name: str, value: Any) -> Any:
    """The value if it is one whose own attributes matter, else None."""
    if isinstance(value, (ModuleType, type)):
        return value
    if not callable(value) and not isinstance(value, _STEADY):
        raise Unprovable(f"its forward reads the global {name}, which may change")
    return None


def _check_closure(function: FunctionType) -> None:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if not isinstance(cell.cell_contents, ModuleType) and not callable(cell.cell_contents):
            raise Unprovable(f"its forward reads {name} of the function around it, which may change")


def _is_instance(kinds: dict[str, type], value: Any, classes: Any) -> bool:
    if not isinstance(value, fx.Proxy):
        return isinstance(value, classes)
    if value.node.op != "placeholder":
        raise Unprovable("its forward asks for the type of a result")
    return issubclass(kinds[str(value.node.target)], classes)


def _has_attr(value: Any, name: str) -> bool:
    if isinstance(value, fx.Proxy):
        raise Unprovable(f"its forward asks whether a value has the attribute {name}")
    return hasattr(value, name)


def _get_attr(value: Any, name: str, *default: Any) -> Any:
    if isinstance(value, fx.Proxy) and default:
        raise Unprovable(f"its forward asks whether a value has the attribute {name}")
    return getattr(value, name, *default)
