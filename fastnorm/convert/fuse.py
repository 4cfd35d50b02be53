"""Fuses what follows norms into them, module by module: in nn.Sequential, and in the forwards that can be traced."""

from __future__ import annotations

from torch import fx, nn

from fastnorm.convert.fused import Checks, Recipe, Variant, class_before, digest_of, fused_class
from fastnorm.convert.pairs import ACTIVATIONS, Pair, Unprovable, fuse_pairs
from fastnorm.convert.report import Fused, Left
from fastnorm.convert.source import Writer
from fastnorm.convert.twins import class_name, is_ours


def fuse_module(module: nn.Module, name: str) -> tuple[list[Fused], list[Left]]:
    """Gives the module a class whose forward is fused, where that can be proven. Returns what is new, and what is left.

    A module that is fused already is looked at afresh, for layers may have been added to it.
    """
    fused_before = type(module)
    original = class_before(fused_before)
    if not _is_chain(original) or not any(is_ours(child) for child in module._modules.values() if child is not None):
        return [], []
    module.__class__ = original
    try:
        recipe, pairs, refusals = _chain_recipe(module)
    except Unprovable as reason:
        return [], [Left(name, class_name(original), str(reason))]
    left = [Left(_join(name, norm), class_name(type(module.get_submodule(norm))), why) for norm, why in refusals]
    if recipe is None:
        return [], left
    module.__class__ = fused_class(recipe)
    if type(module) is fused_before:
        return [], left
    inside = class_name(original)
    return [Fused(_join(name, p.norm), name, inside, str(p.act), p.residual) for p in pairs], left


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _is_chain(cls: type[nn.Module]) -> bool:
    """Whether calling the class runs its children one after the other, and nothing else."""
    return issubclass(cls, nn.Sequential) and all(
        getattr(cls, name) is getattr(nn.Sequential, name) for name in ("forward", "__call__", "__iter__")
    )


def _chain_recipe(module: nn.Module) -> tuple[Recipe | None, list[Pair], list[tuple[str, str]]]:
    """The recipe of a Sequential, whose graph is known without a trace."""
    refuse_class(module)
    graph = fx.Graph()
    value = graph.placeholder("input")
    for child in module._modules:
        value = graph.call_module(child, (value,))
    graph.output(value)
    pairs, refusals = fuse_pairs(graph, module)
    if not pairs:
        return None, pairs, refusals
    writer = Writer()
    body = writer.body(graph)
    checks = pair_checks(module, pairs)._replace(children=(((), tuple(module._modules)),))
    return make_recipe(type(module), ("input",), 1, [Variant(body, None, (), checks)], writer, pairs), pairs, refusals


def refuse_class(module: nn.Module) -> None:
    """Raises Unprovable for a module whose class cannot be exchanged for one that is made on the spot."""
    cls = type(module)
    if "forward" in module.__dict__:
        raise Unprovable("its forward was replaced on the instance")
    if cls.__reduce__ is not object.__reduce__ or cls.__reduce_ex__ is not object.__reduce_ex__:
        raise Unprovable("its class pickles itself in its own way")
    if getattr(cls.__init_subclass__, "__func__", None) is not None:
        raise Unprovable("its class acts on being subclassed")
    if type(cls) is not type:
        raise Unprovable(f"its class has the metaclass {type(cls).__name__}")


def pair_checks(module: nn.Module, pairs: list[Pair]) -> Checks:
    """What the pairs themselves stand on: the norms' classes, and the children that are not called any more."""
    norms = {pair.norm: type(module.get_submodule(pair.norm)) for pair in pairs}
    skipped = {}
    for pair in pairs:
        for name in pair.skipped:
            child = module.get_submodule(name)
            takes_numbers = type(child) in ACTIVATIONS and "ReLU" not in (type(child).__name__[:4])
            skipped[name] = (type(child), pair.act if takes_numbers else None)
    return Checks(
        norms=tuple((tuple(name.split(".")), kind) for name, kind in norms.items()),
        skipped=tuple((tuple(name.split(".")), *what) for name, what in skipped.items()),
    )


def make_recipe(
    original: type[nn.Module],
    parameters: tuple[str, ...],
    required: int,
    variants: list[Variant],
    writer: Writer,
    pairs: list[Pair],
) -> Recipe:
    parts = [f"{pair.norm}{' + residual' if pair.residual else ''} -> {pair.act}" for pair in pairs]
    return Recipe(
        original=original,
        parameters=parameters,
        required=required,
        variants=tuple(variants),
        activations=tuple(writer.activations),
        names=tuple((name, *where) for name, where in sorted(writer.names.items())),
        summary=f"fused: {', '.join(parts)}",
        digest=digest_of(original),
    )
