"""A candidate with its inputs, ready to be timed: forward, backward, both, or a module's call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.cases import Case
from benchmarks.peers import Function, Peer, stats_function
from fastnorm.testing.problems import Problem
from fastnorm.timing import Run

Results = dict[str, Tensor]


class Prepared(NamedTuple):
    """A candidate with its inputs: `run` is timed, `results` calls it once and names what came out."""

    run: Run
    results: Callable[[], Results]


def prepare(case: Case, peer: Peer) -> Callable[[Problem], Prepared]:
    """Makes (compiles) the candidate once; the result readies it for one set of p."""
    if case.spec.kind == "stats":
        statistics = stats_function(peer)
        return lambda p: prepare_stats(statistics, p)
    if case.spec.module:
        module = peer.module(case).to(case.device)
        if case.direction == "call":
            return lambda p: prepare_call(module, p)
        return lambda p: prepare_module(module, p)
    function = peer.function(case)
    ready = {"fwd": prepare_forward, "bwd": prepare_backward, "fwd+bwd": prepare_both}[case.direction]
    return lambda p: ready(case, function, p)


def arguments(case: Case, p: Problem) -> dict[str, Any]:
    """A Function's arguments in order: gradients wanted when training, running statistics of the candidate's own."""

    def wanted(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.detach().requires_grad_(case.spec.training)

    def own(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.clone()

    return {
        "x": wanted(p.x),
        "residual": wanted(p.residual),
        "weight": wanted(p.weight),
        "bias": wanted(p.bias),
        "running_mean": own(p.running_mean),
        "running_var": own(p.running_var),
    }


def prepare_stats(statistics: Callable[[Tensor], Any], p: Problem) -> Prepared:
    def results() -> Results:
        mean, std, hist = statistics(p.x)
        return {"mean": mean, "std": std, "hist": hist.double()}

    return Prepared(lambda: statistics(p.x), results)


def prepare_forward(case: Case, function: Function, p: Problem) -> Prepared:
    timed = arguments(case, p)

    def results() -> Results:
        checked = arguments(case, p)
        y = function(*checked.values()).detach()
        moved = ("running_mean", "running_var") if case.spec.training else ()
        return {"y": y} | {name: checked[name] for name in moved if checked[name] is not None}

    return Prepared(lambda: function(*timed.values()), results)


def prepare_backward(case: Case, function: Function, p: Problem) -> Prepared:
    given = arguments(case, p)
    leaves = {k: v for k, v in given.items() if v is not None and v.requires_grad}
    y = function(*given.values())
    wanted, dy = tuple(leaves.values()), p.dy

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, wanted, dy, retain_graph=True)

    return Prepared(run, lambda: dict(zip((f"d{name}" for name in leaves), run(), strict=True)))


def prepare_both(case: Case, function: Function, p: Problem) -> Prepared:
    given = arguments(case, p)
    leaves = {k: v for k, v in given.items() if v is not None and v.requires_grad}
    wanted, dy = tuple(leaves.values()), p.dy

    def run() -> tuple[Tensor, ...]:
        y = function(*given.values())
        return y, *torch.autograd.grad(y, wanted, dy)

    return Prepared(run, lambda: dict(zip(("y", *(f"d{name}" for name in leaves)), run(), strict=True)))


def prepare_call(module: nn.Module, p: Problem) -> Prepared:
    """The module's call alone is timed; what is checked is forward and backward."""
    both = prepare_module(module, p)
    x = p.x.detach().requires_grad_()
    return Prepared(lambda: module(x), both.results)


def prepare_module(module: nn.Module, p: Problem) -> Prepared:
    """Forward and backward through the module's call; its parameters and buffers are set to the inputs'."""
    state = {"weight": p.weight, "bias": p.bias}
    state |= {"running_mean": p.running_mean, "running_var": p.running_var}
    x = p.x.detach().requires_grad_()
    dy, wanted = p.dy, (x, *module.parameters())
    names = ["dx", *(f"d{name.rpartition('.')[2]}" for name, _ in module.named_parameters())]

    def load() -> None:
        with torch.no_grad():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                given = state.get(name.rpartition(".")[2])
                if given is not None:
                    tensor.data = tensor.data.to(given.dtype)
                    tensor.copy_(given)

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(module(x), wanted, dy)

    def results() -> Results:
        load()
        grads = dict(zip(names, run(), strict=True))
        buffers = {n.rpartition(".")[2]: b.clone() for n, b in module.named_buffers()}
        return grads | {n: b for n, b in buffers.items() if n.startswith("running")}

    load()
    return Prepared(run, results)
