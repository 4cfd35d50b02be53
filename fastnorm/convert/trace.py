"""Traces a module's own forward with torch.fx: every module below is one call in the graph."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from fastnorm import functional
from fastnorm.convert.fused import Checks
from fastnorm.convert.pairs import Unprovable
from fastnorm.convert.reads import Reads, recorded
from fastnorm.convert.watch import watched

_LIST_TAKERS = (torch.cat, torch.concat, torch.stack)  # which a proxy that stands for a list cannot be passed to
_OURS = tuple(value for name in functional.__all__ if callable(value := getattr(functional, name)))


class Signature(NamedTuple):
    """The parameters of a forward without self; the first `required` have no default."""

    parameters: tuple[str, ...]
    required: int


class Trace(NamedTuple):
    """A graph of a forward, whether it asked for `training`, and what else it stands on."""

    graph: fx.Graph
    mode_read: bool
    checks: Checks


def signature_of(cls: type[nn.Module]) -> Signature:
    """Unprovable for a forward that is no plain function of positional parameters."""
    forward = cls.forward
    if not isinstance(forward, FunctionType) or hasattr(forward, "__wrapped__"):
        raise Unprovable("its forward is decorated")
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    if any(parameter.kind is not parameter.POSITIONAL_OR_KEYWORD for parameter in parameters):
        raise Unprovable("its forward takes *args, **kwargs or keyword-only arguments")
    names = tuple(parameter.name for parameter in parameters)
    if any(name.startswith("fn_") for name in names):
        raise Unprovable("an argument of its forward has a name that is taken")
    return Signature(names, sum(parameter.default is parameter.empty for parameter in parameters))


def trace(module: nn.Module, mode: bool, kinds: dict[str, type]) -> Trace:
    """The graph of module.forward in training (mode) or evaluation, its arguments being of the kinds given.

    Arguments with a default have it. Raises Unprovable, with the reason, where a later call could do something else.
    """
    with recorded(module, mode) as reads:
        try:
            with watched(type(module), kinds):
                graph = _Tracer(tuple(kinds), reads).trace(module)
        except Unprovable:
            raise
        except Exception as error:  # whatever a forward does with a stand-in for a tensor
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Unprovable(f"its forward cannot be traced: {said}") from error
    return Trace(graph, reads.mode_read, reads.checks())


class _Stand(fx.Proxy):
    """Stands for a tensor. Augmented assignments are recorded as what they are; fx's own proxy makes `+=` a `+`."""


def _recording_inplace(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: _Stand, *args: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, *args), {})

    return method


_OPERATORS = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
for _name in (*(f"__i{name}__" for name in _OPERATORS), "__setitem__"):
    setattr(_Stand, _name, _recording_inplace(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, arguments: tuple[str, ...], reads: Reads) -> None:
        super().__init__(autowrap_functions=(*_LIST_TAKERS, *_OURS))
        self._autowrap_search += [torch, functional]
        self._arguments, self._reads = arguments, reads

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Stand-ins for the arguments without default; Python fills in the others."""
        arguments = [self.create_proxy("placeholder", name, (), {}) for name in self._arguments]
        self._reads.paused = False
        return root_fn, [self.root, *arguments]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Stand(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        self._reads.paused = True  # fx goes through all parameters to find the name of one
        try:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        finally:
            self._reads.paused = False

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor):  # a parameter or buffer is a proxy by now
            raise Unprovable("its forward uses a tensor that is neither an argument, a parameter nor a buffer")
        if isinstance(a, nn.Module):
            raise Unprovable("its forward passes a module to a function")
        return super().create_arg(a)
