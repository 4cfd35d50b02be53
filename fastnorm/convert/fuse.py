"""Fuses what follows norms into them, module by module: in nn.Sequential, and in forwards that can be traced."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType

import torch
from torch import Tensor, fx, nn

from fastnorm.convert.fused import Checks, Recipe, Variant, class_before, digest_of, fused_class
from fastnorm.convert.pairs import ACTIVATIONS, Pair, Unprovable, fuse_pairs
from fastnorm.convert.report import Fused, Left
from fastnorm.convert.source import Writer
from fastnorm.convert.trace import Signature, signature_of, trace
from fastnorm.convert.twins import class_name, is_ours

_RELUS = {"relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "hardtanh", "general_relu"}


def fuse_module(module: nn.Module, name: str) -> tuple[list[Fused], list[Left]]:
    """Gives the module a class whose forward is fused, where that can be proven. Returns what is new, and what is left.

    A module that is fused already is looked at afresh, for layers may have been added to it.
    """
    fused_before = type(module)
    original = class_before(fused_before)
    if not _may_fuse(module, original):
        return [], []
    module.__class__ = original
    rewriting = _Rewriting(module)
    try:
        _refuse_class(module)
        if _is_chain(original):
            rewriting.add_chain()
        else:
            rewriting.add_traces()
    except Unprovable as reason:
        return [], [Left(name, class_name(original), str(reason))]
    left = [Left(_join(name, norm), class_name(type(module.get_submodule(norm))), why) for norm, why in rewriting.left]
    if not rewriting.pairs:
        return [], left
    module.__class__ = fused_class(rewriting.recipe())
    if type(module) is fused_before:
        return [], left
    inside = class_name(original)
    return [Fused(_join(name, p.norm), name, inside, str(p.act), p.residual) for p in rewriting.pairs], left


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _near(module: nn.Module) -> Iterator[nn.Module]:
    """The children that a module's own forward can call: its own, and those of containers, which have no forward."""
    for child in module.children():
        yield child
        if not isinstance(child, torch.jit.ScriptModule) and type(child).forward is nn.Module.forward:
            yield from _near(child)


def _functions(cls: type) -> Iterator[FunctionType]:
    """The functions of a class and its bases, without torch's own."""
    for base in cls.__mro__:
        if base.__module__.split(".")[0] != "torch":
            yield from (value for value in vars(base).values() if isinstance(value, FunctionType))


def _may_fuse(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether a norm and an activation are there to be called: only then is it worth a trace."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    near = list(_near(module))
    if cls.forward is nn.Module.forward or not any(map(is_ours, near)) or is_ours(module):
        return False
    return any(type(child) in ACTIVATIONS for child in near) or any(
        _RELUS.intersection(function.__code__.co_names) for function in _functions(cls)
    )


def _is_chain(cls: type[nn.Module]) -> bool:
    """Whether calling the class runs its children one after the other, and nothing else."""
    return issubclass(cls, nn.Sequential) and all(
        getattr(cls, name) is getattr(nn.Sequential, name) for name in ("forward", "__call__", "__iter__")
    )


def _refuse_class(module: nn.Module) -> None:
    """Raises Unprovable for a module whose class cannot be exchanged for one that is made on the spot."""
    cls = type(module)
    if "forward" in module.__dict__:
        raise Unprovable("its forward was replaced on the instance")
    if cls.__call__ is not nn.Module.__call__:
        raise Unprovable("its class has a __call__ of its own")
    if cls.__reduce__ is not object.__reduce__ or cls.__reduce_ex__ is not object.__reduce_ex__:
        raise Unprovable("its class pickles itself in its own way")
    if getattr(cls.__init_subclass__, "__func__", None) is not None:
        raise Unprovable("its class acts on being subclassed")
    if type(cls) is not type:
        raise Unprovable(f"its class has the metaclass {type(cls).__name__}")


class _Rewriting:
    """Collects the variants of one module's forward, and what becomes of its norms in them."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.signature = Signature(("input",), 1)
        self.variants: list[Variant] = []
        self.pairs: list[Pair] = []
        self.left: list[tuple[str, str]] = []
        self.writer = Writer()

    def add_chain(self) -> None:
        """The forward of a Sequential, whose graph is known without a trace."""
        graph = fx.Graph()
        value = graph.placeholder("input")
        for child in self.module._modules:
            value = graph.call_module(child, (value,))
        graph.output(value)
        self._add(graph, None, {}, Checks(children=(((), tuple(self.module._modules)),)))

    def add_traces(self) -> None:
        """A traced forward, in training and evaluation; for a single argument that may be a list, both ways."""
        self.signature = signature_of(type(self.module))
        required = self.signature.parameters[: self.signature.required]
        kinds: list[type] = [Tensor]
        if len(required) == 1 and any("isinstance" in f.__code__.co_names for f in _functions(type(self.module))):
            kinds.append(list)
        refused: list[Unprovable] = []
        for kind in kinds:
            try:
                self._add_modes(dict.fromkeys(required, kind))
            except Unprovable as reason:
                refused.append(reason)
        if len(refused) == len(kinds):
            raise refused[0]

    def _add_modes(self, kinds: dict[str, type]) -> None:
        training = trace(self.module, True, kinds)
        if not training.mode_read:  # then evaluation takes the same way
            self._add(training.graph, None, kinds, training.checks)
            return
        evaluation = trace(self.module, False, kinds)
        self._add(training.graph, True, kinds, training.checks)
        self._add(evaluation.graph, False, kinds, evaluation.checks)

    def _add(self, graph: fx.Graph, mode: bool | None, kinds: dict[str, type], checks: Checks) -> None:
        pairs, left = fuse_pairs(graph, self.module)
        self.left += [refusal for refusal in left if refusal not in self.left]
        if not pairs:
            return
        self.pairs += [pair for pair in pairs if pair not in self.pairs]
        body = self.writer.body(graph)
        checks = _pair_checks(self.module, pairs, checks)
        self.variants.append(Variant(body, mode, tuple(kinds.items()), checks))

    def recipe(self) -> Recipe:
        parts = [f"{pair.norm}{' + residual' if pair.residual else ''} -> {pair.act}" for pair in self.pairs]
        return Recipe(
            original=type(self.module),
            parameters=self.signature.parameters,
            required=self.signature.required,
            variants=tuple(self.variants),
            activations=tuple(self.writer.activations),
            names=tuple((name, *where) for name, where in sorted(self.writer.names.items())),
            summary=f"fused: {', '.join(parts)}",
            digest=digest_of(type(self.module)),
        )


def _pair_checks(module: nn.Module, pairs: list[Pair], checks: Checks) -> Checks:
    """The checks, and what the pairs stand on: the norms' classes, and the children that are not called any more."""
    norms, skipped = {}, {}
    for pair in pairs:
        norms[tuple(pair.norm.split("."))] = type(module.get_submodule(pair.norm))
        for name in pair.skipped:
            kind = type(module.get_submodule(name))
            has_numbers = kind in ACTIVATIONS and kind not in (nn.ReLU, nn.ReLU6)
            skipped[tuple(name.split("."))] = (kind, pair.act if has_numbers else None)
    return checks._replace(
        norms=tuple(norms.items()),
        skipped=tuple((path, *what) for path, what in skipped.items()),
        modules=tuple((path, kind) for path, kind in checks.modules if path not in norms and path not in skipped),
    )
