"""Modules whose forward computes norm, sum and activation in one: the class that such an instance gets.

The class is a subclass of the module's own, made from a `Recipe`: plain data, so that a copy, a pickle and another
process make the same class again. Its forward begins with a check of all that the proof of the rewriting stood on
(`holds`); where anything has changed since, the original forward runs, which is always right.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import importlib
import linecache
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook

from fastnorm.activation import Activation, as_activation
from fastnorm.functional import general_relu

fx.wrap("general_relu")  # a symbolic trace records the call; it must not look inside

Path = tuple[str, ...]  # the names of children, from the fused module down


class Checks(NamedTuple):
    """What must hold of a module for its rewritten forward to mean the same as the original."""

    norms: tuple[tuple[Path, type], ...] = ()
    skipped: tuple[tuple[Path, type, Activation | None], ...] = ()  # activations and identities that are not called
    modules: tuple[tuple[Path, type | None], ...] = ()  # other children that forward looked at, or found missing
    children: tuple[tuple[Path, tuple[str, ...]], ...] = ()  # of containers that forward went through
    values: tuple[tuple[Path, str, Any], ...] = ()  # attributes that forward read


class Variant(NamedTuple):
    """The body of a rewritten forward, and when it holds. mode: of `training`, or None for both."""

    body: str
    mode: bool | None
    argument_types: tuple[tuple[str, type], ...]
    checks: Checks


class Recipe(NamedTuple):
    """All that a fused class is made from. names: global name -> where it is imported from."""

    original: type[nn.Module]
    parameters: tuple[str, ...]  # of forward, without self
    required: int  # the first of them that have no default
    variants: tuple[Variant, ...]
    activations: tuple[Activation, ...]
    names: tuple[tuple[str, str, str], ...]
    summary: str
    digest: str

    def __deepcopy__(self, memo: dict[int, Any]) -> Recipe:
        return self


MISSING = "<missing>"  # the value of an attribute that forward looked for in vain
TENSOR = "<tensor>"  # of one that was a parameter, a buffer or another tensor


def digest_of(cls: type) -> str:
    """Of the code of a class, up to torch's own: a rewritten forward is only used beside the code that it came from."""
    code = hashlib.sha256()
    for base in cls.__mro__:
        if base.__module__.split(".")[0] == "torch" and base is not cls:
            continue
        for name, value in sorted(vars(base).items()):
            if isinstance(value, FunctionType):
                names = (value.__code__.co_names, value.__code__.co_varnames)
                code.update(repr((name, value.__code__.co_code, names, _steady(value.__code__.co_consts))).encode())
    return code.hexdigest()


def _steady(constants: Any) -> list[str]:
    """Constants as text that is the same in every process: without code objects, sets in order."""
    return [
        repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)
        for constant in constants
        if not isinstance(constant, CodeType)
    ]


def class_before(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that a fused one was made from; any other class itself."""
    recipe = vars(cls).get("fastnorm_recipe")  # its own: a class that torch has made of a fused one is another one
    return cls if recipe is None else recipe.original


def untouched(module: nn.Module) -> bool:
    """Whether nobody listens to a module's calls or has put another forward in its place."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def at(module: nn.Module, path: Path) -> nn.Module | None:
    """The child at a path, or None."""
    for name in path:
        child = module._modules.get(name)
        if child is None:
            return None
        module = child
    return module


def holds(module: nn.Module, checks: Checks) -> bool:
    """Whether all is as it was when the forward was rewritten. Runs at each call: plain look-ups, no allocation."""
    if _has_any_global_hook():
        return False
    for path, expected in checks.norms:
        norm = at(module, path)
        if norm is None or type(norm) is not expected or not untouched(norm):
            return False
        if norm.activation.active:  # type: ignore[union-attr]
            return False
    for path, expected, activation in checks.skipped:
        child = at(module, path)
        if child is None or type(child) is not expected or not untouched(child):
            return False
        if activation is not None and as_activation(child) != activation:
            return False
    for path, kind in checks.modules:
        child = at(module, path)
        if (None if child is None else class_before(type(child))) is not kind:
            return False
    for path, names in checks.children:
        container = at(module, path)
        if container is None or tuple(container._modules) != names:
            return False
    for path, name, value in checks.values:
        owner = at(module, path)
        found = getattr(owner, name, MISSING)
        if value == TENSOR and isinstance(found, Tensor):
            continue
        if found is not value and (type(found) is not type(value) or found != value):
            return False
    return True


def norm_add_act(
    norm: nn.Module,
    x: Tensor,
    residual: Tensor,
    act: Activation,
    add: Callable[[Any, Any], Tensor],
) -> Tensor:
    """act(norm(x) + residual) in one; in three steps for a residual that is broadcast or of another dtype."""
    if (
        isinstance(residual, Tensor)
        and residual.shape == x.shape
        and residual.dtype == x.dtype
        and residual.device == x.device
    ):
        return norm(x, residual, act=act)
    return general_relu(add(norm(x), residual), *act[1:])


@functools.cache
def fused_class(recipe: Recipe) -> type[nn.Module]:
    """The subclass of the recipe's class with the rewritten forward. Its name and module are the original's."""
    original = recipe.original
    namespace: dict[str, Any] = {
        "fn_holds": holds,
        "fn_original": original,
        "fn_traced": original.forward,
        "fn_norm_add_act": norm_add_act,
        "torch": torch,
    }
    for index, act in enumerate(recipe.activations):
        namespace[f"fn_act{index}"] = act
    for index, variant in enumerate(recipe.variants):
        namespace[f"fn_checks{index}"] = variant.checks
        for name, kind in variant.argument_types:
            namespace[f"fn_type{index}_{name}"] = kind
    defaults = original.forward.__defaults__ or ()
    for name, default in zip(recipe.parameters[recipe.required :], defaults, strict=True):
        namespace[f"fn_default_{name}"] = default
    for name, module, qualname in recipe.names:
        namespace[name] = functools.reduce(getattr, qualname.split("."), importlib.import_module(module))
    source = forward_source(recipe)
    filename = f"<fastnorm fused {original.__qualname__} {hashlib.sha256(source.encode()).hexdigest()[:12]}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    exec(compile(source, filename, "exec"), namespace)
    forward = namespace["forward"]
    forward.__doc__, forward.__annotations__ = original.forward.__doc__, original.forward.__annotations__
    body = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": _reduce_ex,
        "extra_repr": _extra_repr,
        "forward": forward,
        "fastnorm_recipe": recipe,
    }
    return type(original.__name__, (original,), body)


def forward_source(recipe: Recipe) -> str:
    """The text of the rewritten forward: each variant behind its conditions, then the original."""
    required, optional = recipe.parameters[: recipe.required], recipe.parameters[recipe.required :]
    signature = ", ".join(["self", *required, *(f"{name}=fn_default_{name}" for name in optional)])
    lines = [f"def forward({signature}):"]
    for index, variant in enumerate(recipe.variants):
        conditions = [] if variant.mode is None else ["self.training" if variant.mode else "not self.training"]
        conditions += [f"isinstance({name}, fn_type{index}_{name})" for name, _ in variant.argument_types]
        conditions += [f"{name} is fn_default_{name}" for name in optional]
        conditions += ["fn_original.forward is fn_traced", f"fn_holds(self, fn_checks{index})"]
        lines += [f"    if {' and '.join(conditions)}:", variant.body]
    lines.append(f"    return fn_original.forward({', '.join(['self', *recipe.parameters])})")
    return "\n".join(lines) + "\n"


def rebuild(recipe: Recipe) -> nn.Module:
    """An empty instance for a pickle or a copy to fill; of the original class where its code is another one now."""
    cls = fused_class(recipe) if digest_of(recipe.original) == recipe.digest else recipe.original
    return cls.__new__(cls)


def _reduce_ex(self: nn.Module, protocol: Any) -> Any:
    recipe: Recipe = type(self).fastnorm_recipe  # type: ignore[attr-defined]
    made = recipe.original.__reduce_ex__(self, max(int(protocol), 2))
    if isinstance(made, tuple) and made[0] is copyreg.__newobj__ and made[1] == (type(self),):  # type: ignore[attr-defined]
        return rebuild, (recipe,), *made[2:]
    return made


def _extra_repr(self: nn.Module) -> str:
    recipe: Recipe = type(self).fastnorm_recipe  # type: ignore[attr-defined]
    own = recipe.original.extra_repr(self)
    return f"{own}\n{recipe.summary}" if own else recipe.summary
