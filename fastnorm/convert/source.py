"""A graph as the body of a forward: Python text, and the names that it needs."""

from __future__ import annotations

import builtins
import importlib
import math
import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import fx

from fastnorm.activation import Activation
from fastnorm.convert.pairs import Unprovable

_OPERATORS = {operator.add: "fn_add", operator.iadd: "fn_iadd"}


class Writer:
    """Writes graphs as text; `names` and `activations` collect what the text refers to."""

    def __init__(self) -> None:
        self.names: dict[str, tuple[str, str]] = {}
        self.activations: list[Activation] = []

    def body(self, graph: fx.Graph, indent: str = "        ") -> str:
        """One statement a node. A value is dropped after its last use, as in a function that rebinds its variables."""
        last_use: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            for argument in node.all_input_nodes:
                last_use[argument] = node
        lines = ["fn_modules = self._modules"]
        for node in graph.nodes:
            if node.op == "output":
                lines.append(f"return {self._text(node.args[0])}")
                continue
            if node.name.startswith("fn_"):
                raise Unprovable(f"its variable {node.name} has a name that is taken")
            if node.op != "placeholder":
                lines.append(f"{node.name} = {self._expression(node)}")
            done = [_name(argument) for argument in node.all_input_nodes if last_use[argument] is node]
            if done:
                lines.append(f"{' = '.join(done)} = None")
        return "\n".join(indent + line for line in lines)

    def _expression(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return self._module_call(node)
        if node.op == "get_attr":
            *above, name = str(node.target).split(".")
            return f"{_module(above)}.{name}" if above else f"self.{name}"
        if node.op == "call_method":
            return f"{self._text(node.args[0])}.{node.target}({self._arguments(node.args[1:], node.kwargs)})"
        if node.op != "call_function":
            raise Unprovable(f"its graph has a node of kind {node.op}")
        return f"{self._function(node.target)}({self._arguments(node.args, node.kwargs)})"

    def _module_call(self, node: fx.Node) -> str:
        module = _module(str(node.target).split("."))
        if "act" not in node.meta:
            return f"{module}({self._arguments(node.args, node.kwargs)})"
        act = self._activation(node.meta["act"])
        if "add" not in node.meta:
            return f"{module}({self._text(node.args[0])}, act={act})"
        x, residual = (self._text(argument) for argument in node.args)
        return f"fn_norm_add_act({module}, {x}, {residual}, {act}, {self._function(node.meta['add'])})"

    def _activation(self, act: Activation) -> str:
        if act not in self.activations:
            self.activations.append(act)
        return f"fn_act{self.activations.index(act)}"

    def _function(self, target: Any) -> str:
        """A global name for a function or class, and where every process finds it."""
        if target in _OPERATORS:
            name = _OPERATORS[target]
            self.names[name] = ("operator", target.__name__)
            return name
        own, short = getattr(target, "__module__", None), getattr(target, "__name__", "")
        places = [(own, getattr(target, "__qualname__", short))] if own else []
        for candidate, qualname in [*places, ("torch", short), ("torch._C._nn", short), ("builtins", short)]:
            if _finds(candidate, qualname, target):
                name = f"fn_{candidate}_{qualname}".replace(".", "_")
                self.names[name] = (candidate, qualname)
                return name
        raise Unprovable(f"it calls {target!r}, which has no name to import it by")

    def _arguments(self, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        return ", ".join([*map(self._text, args), *(f"{key}={self._text(value)}" for key, value in kwargs.items())])

    def _text(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return _name(value)
        if type(value) is tuple:
            return f"({''.join(self._text(item) + ', ' for item in value)})"
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            return f"[{', '.join(map(self._text, value))}]"
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return f"{{{', '.join(f'{key!r}: {self._text(item)}' for key, item in value.items())}}}"
        if isinstance(value, slice):
            return f"slice({self._text(value.start)}, {self._text(value.stop)}, {self._text(value.step)})"
        if type(value) is float and not math.isfinite(value):
            return f"float({str(value)!r})"
        if value is None or value is Ellipsis or type(value) in (bool, int, float, str, bytes, complex):
            return repr(value)
        if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
            return str(value)
        if isinstance(value, torch.device):
            return f"torch.{value!r}"
        if callable(value):
            return self._function(value)
        raise Unprovable(f"a {type(value).__name__} stands in its graph as a constant")


def _module(path: list[str]) -> str:
    return f"fn_modules[{path[0]!r}]" + "".join(f"._modules[{name!r}]" for name in path[1:])


def _name(node: fx.Node) -> str:
    """A placeholder keeps its parameter's name, which fx changes where Python has a builtin of that name."""
    return str(node.target) if node.op == "placeholder" else node.name


def _finds(module: str, qualname: str, target: Any) -> bool:
    try:
        return reduce(getattr, qualname.split("."), importlib.import_module(module)) is target
    except (ImportError, AttributeError):
        return getattr(builtins, qualname, None) is target and module == "builtins"
