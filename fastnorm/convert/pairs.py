"""Finds norm (+ sum) -> activation in a traced graph and rewrites it to one call of the norm.

A rewritten norm node carries the activation, and with a sum the function that would have added, in `node.meta`. The
norm module itself stays plain: who calls it alone, or listens to it, meets the layer that was there.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastnorm import functional
from fastnorm.activation import Activation, as_activation, checked_activation
from fastnorm.convert.fused import at, untouched
from fastnorm.convert.twins import is_ours
from fastnorm.nn import GeneralRelu

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, GeneralRelu)
RELU = Activation(True)
RELU6 = Activation(True, None, None, 6.0)
ADDITIONS: dict[Any, Callable[[Any, Any], Any]] = {
    operator.add: operator.add,
    operator.iadd: operator.iadd,
    torch.add: operator.add,
    "add": operator.add,
    "add_": operator.iadd,
}
# Layers whose result is a new tensor, which nobody else can change before its only reader reads it.
FRESH = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
INPLACE = {
    getattr(operator, f"i{name}")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
}


class Unprovable(Exception):
    """A pattern or a forward that cannot be shown to mean the same when rewritten; the reason is for the report."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """One fusion: the norm's path, what it takes in, and the children that are no longer called."""

    norm: str
    act: Activation
    residual: bool
    skipped: tuple[str, ...]


def fuse_pairs(graph: fx.Graph, root: nn.Module) -> tuple[list[Pair], list[tuple[str, str]]]:
    """Rewrites the graph in place. Returns the pairs, and (norm's path, reason) for each that had to be left."""
    pairs: list[Pair] = []
    left: list[tuple[str, str]] = []
    for node in list(graph.nodes):
        act = activation_of(node, root)
        if act is None or not isinstance(node.args[0], fx.Node):
            continue
        source, chain = _through_identities(node.args[0], root)
        try:
            if _norm_of(source, root) is not None:
                pairs.append(_fuse_one(source, node, chain, act, root))
            elif _addition(source) is not None:
                pair = _fuse_sum(source, node, chain, act, root)
                if pair is not None:
                    pairs.append(pair)
        except Unprovable as reason:
            left.append((_norms_before(source, root), str(reason)))
    return pairs, left


def activation_of(node: fx.Node, root: nn.Module) -> Activation | None:
    """The numbers of a node that computes an activation which norms can take in; None for any other node."""
    if node.op == "call_module":
        module = _module(node, root)
        if type(module) in ACTIVATIONS and len(node.args) == 1 and not node.kwargs:
            return as_activation(module)
        return None
    if node.op == "call_method" and node.target in ("relu", "relu_") and len(node.args) == 1:
        return RELU
    if node.op != "call_function" or not node.args:
        return None
    given, rest = dict(node.kwargs), node.args[1:]
    if node.target in (torch.relu, torch.relu_):
        return RELU
    if node.target is F.relu:
        return RELU
    if node.target is F.relu6:
        return RELU6
    if node.target in (F.leaky_relu, torch._C._nn.leaky_relu_):
        slope = rest[0] if rest else given.get("negative_slope", 0.01)
        return Activation(True, float(slope)) if isinstance(slope, (int, float)) else None
    if node.target is F.hardtanh:
        bounds = (*rest, *(given[name] for name in ("min_val", "max_val") if name in given))[:2]
        return RELU6 if bounds == (0, 6) else None
    if node.target is functional.general_relu:
        names = ("leak", "sub", "maxv", "max_leak")
        numbers = {**dict(zip(names, rest, strict=False)), **{k: v for k, v in given.items() if k in names}}
        if all(value is None or isinstance(value, (int, float)) for value in numbers.values()):
            return checked_activation(*(numbers.get(name) for name in names))  # type: ignore[arg-type]
    return None


def _module(node: fx.Node, root: nn.Module) -> nn.Module | None:
    return at(root, tuple(str(node.target).split("."))) if node.op == "call_module" else None


def _norm_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    module = _module(node, root)
    return module if module is not None and is_ours(module) else None


def _through_identities(node: fx.Node, root: nn.Module) -> tuple[fx.Node, list[fx.Node]]:
    """The first node before `node` (or itself) that is no exact nn.Identity, and those in between."""
    chain: list[fx.Node] = []
    while type(_module(node, root)) is nn.Identity and isinstance(node.args[0], fx.Node):
        chain.append(node)
        node = node.args[0]
    return node, chain


def _addition(node: fx.Node) -> Callable[[Any, Any], Any] | None:
    """The Python operator of a node that adds two values, alpha being 1."""
    if node.op not in ("call_function", "call_method") or len(node.args) != 2 or node.kwargs:
        return None
    return ADDITIONS.get(node.target)


def _norms_before(source: fx.Node, root: nn.Module) -> str:
    """The norm a refusal is about: the source, or the last of the summands that is one."""
    if _norm_of(source, root) is not None:
        return str(source.target)
    ends = [_through_identities(arg, root)[0] for arg in source.args if isinstance(arg, fx.Node)]
    return [str(end.target) for end in ends if _norm_of(end, root) is not None][-1]


def _checked(norm: fx.Node, chain: list[fx.Node], act: fx.Node, root: nn.Module) -> None:
    """Raises Unprovable unless the norm's result goes nowhere but to the activation, and nobody listens in between."""
    module = _norm_of(norm, root)
    assert module is not None
    if module.activation.active:  # type: ignore[union-attr]
        raise Unprovable("it has an activation of its own already")
    if len(norm.args) != 1 or norm.kwargs:
        raise Unprovable("it is called with more than its input")
    if any(len(node.users) > 1 for node in (norm, *chain)):
        raise Unprovable("its result is used elsewhere as well, before the activation")
    for node in (norm, *chain, act):
        called = _module(node, root)
        if called is not None and not untouched(called):
            what = "a forward of its own instance" if "forward" in called.__dict__ else "hooks"
            raise Unprovable(f"{'it' if node is norm else str(node.target)} carries {what}")


def _skipped(nodes: list[fx.Node]) -> tuple[str, ...]:
    return tuple(str(node.target) for node in nodes if node.op == "call_module")


def _fuse_one(norm: fx.Node, node: fx.Node, chain: list[fx.Node], act: Activation, root: nn.Module) -> Pair:
    _checked(norm, chain, node, root)
    norm.meta["act"] = act
    node.replace_all_uses_with(norm)
    for gone in (node, *chain):
        norm.graph.erase_node(gone)
    return Pair(str(norm.target), act, False, _skipped([node, *chain]))


def _fuse_sum(add: fx.Node, node: fx.Node, after: list[fx.Node], act: Activation, root: nn.Module) -> Pair | None:
    """Takes the sum and the activation into the one of its summands that is a norm; None where neither is."""
    summands = [arg for arg in add.args if isinstance(arg, fx.Node)]
    if len(summands) != 2:
        return None
    ends = [_through_identities(arg, root) for arg in summands]
    norms = [index for index in (0, 1) if _norm_of(ends[index][0], root) is not None]
    if not norms:
        return None
    if any(len(n.users) > 1 for n in (add, *after)):
        raise Unprovable("the sum is used elsewhere as well, before the activation")
    operation = _addition(add)
    assert operation is not None
    if operation is operator.iadd and 0 not in norms:
        raise Unprovable("the sum is written into the other summand")
    if summands[0] is summands[1]:
        raise Unprovable("it is added to itself")
    order = {n: index for index, n in enumerate(add.graph.nodes)}
    chosen = max(norms, key=lambda index: order[ends[index][0]])  # the later: the other is there when it runs
    if operation is operator.iadd:
        for index in norms:
            _checked(ends[index][0], ends[index][1], node, root)
    norm, chain = ends[chosen]
    _checked(norm, [*chain, *after], node, root)
    _check_move(norm, add, root)
    _check_kept(summands[1 - chosen], add, root)
    with add.graph.inserting_before(add):
        merged = add.graph.call_module(str(norm.target), (norm.args[0], summands[1 - chosen]))
    merged.meta["act"], merged.meta["add"] = act, operation
    node.replace_all_uses_with(merged)
    for gone in (node, *after, add, *chain, norm):
        add.graph.erase_node(gone)
    return Pair(str(norm.target), act, True, _skipped([node, *after, *chain]))


def _check_move(norm: fx.Node, add: fx.Node, root: nn.Module) -> None:
    """Raises Unprovable unless the norm may run where the sum stands: nothing in between can change what it reads."""
    source = norm.args[0]
    assert isinstance(source, fx.Node)
    between = norm.next
    while between is not add and type(_module(between, root)) is nn.Identity:
        between = between.next
    if between is add:
        return
    if type(_module(source, root)) not in FRESH or len(source.users) > 1:
        raise Unprovable("what it reads could be changed before the other summand is computed")


def _check_kept(residual: fx.Node, add: fx.Node, root: nn.Module) -> None:
    """Raises Unprovable where the other summand is changed after the sum: a fused norm saves it, a sum does not."""
    later = add.next
    while later.op != "output":
        if residual in later.all_input_nodes and _writes(later, root) and later.args[0] is residual:
            raise Unprovable("the other summand is changed in place after the sum")
        later = later.next


def _writes(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node may change its first argument: in-place operators, torch's names that end in _, `inplace`."""
    if node.op == "call_module":
        return bool(getattr(_module(node, root), "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    asked = bool(node.kwargs.get("inplace")) or any(arg is True for arg in node.args)
    return node.target in INPLACE or asked or (name.endswith("_") and not name.endswith("__"))
