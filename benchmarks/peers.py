"""The candidates: the same op as eager PyTorch, as torch.compile makes it, and as fastnorm computes it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import EPS, LEAK, MAXV, MOMENTUM, SUB, Case
from benchmarks.libraries import LIBRARIES, Library, call_of, serves
from fastnorm.testing.problems import Problem
from fastnorm.timing import Run

Results = dict[str, Tensor]


class Function(Protocol):
    """One forward: tensors in, y out, running statistics updated in place."""

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
    ) -> Tensor: ...


Norm = Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None], Tensor]


class Peer(NamedTuple):
    """A candidate: how it makes the op of a case as a function, and as a module for the module cases."""

    function: Callable[[Case], Function]
    module: Callable[[Case], nn.Module]


class Prepared(NamedTuple):
    """A candidate with its inputs: `run` is timed, `results` calls it once and names what came out."""

    run: Run
    results: Callable[[], Results]


def composed_relu(z: Tensor) -> Tensor:
    """GeneralRelu as three PyTorch ops."""
    return (F.leaky_relu(z, LEAK) - SUB).clamp_max(MAXV)


def inplace_relu(z: Tensor) -> Tensor:
    """GeneralRelu as the lessons write it: subtract and clamp in place."""
    return F.leaky_relu(z, LEAK).sub_(SUB).clamp_max_(MAXV)


def torch_norm(case: Case) -> Norm:
    """PyTorch's own function for the norm of a case, of x, weight, bias and the running statistics."""
    spec, shape = case.spec, case.shape
    if spec.kind == "batch":
        return lambda x, w, b, mean, var: F.batch_norm(x, mean, var, w, b, spec.training, MOMENTUM, EPS)
    functions: dict[str, Norm] = {
        "layer": lambda x, w, b, *_: F.layer_norm(x, shape[1:], w, b, EPS),
        "rms": lambda x, w, *_: F.rms_norm(x, shape[1:], w, EPS),
        "group": lambda x, w, b, *_: F.group_norm(x, case.groups, w, b, EPS),
        "instance": lambda x, w, b, *_: F.instance_norm(x, weight=w, bias=b, eps=EPS),
        # As ConvNeXt has it: the channels go to the end and come back.
        "position": lambda x, w, b, *_: F.layer_norm(x.movedim(1, -1), shape[1:2], w, b, EPS).movedim(-1, 1),
    }
    return functions[spec.kind]


def composed(case: Case, act: Callable[[Tensor], Tensor] = composed_relu) -> Function:
    """The op out of PyTorch's own functions, as a user of torch.nn would write it."""
    spec = case.spec
    norm = None if spec.kind == "none" else torch_norm(case)

    def forward(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
    ) -> Tensor:
        z = x if norm is None else norm(x, weight, bias, running_mean, running_var)
        if residual is not None:
            z = z + residual
        return act(z) if spec.act else z

    return forward


def composed_stats(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, std and histogram of |x| as the lessons take them. CPUs have no histogram of 16-bit numbers."""
    return x.mean(), x.std(), x.abs().float().histc(40, 0, 10)


def stats_function(peer: Peer) -> Callable[[Tensor], Any]:
    """A candidate's activation_stats."""
    import fastnorm

    if peer.module is fastnorm_module:
        backend = None if peer is PEERS["fastnorm"] else "native"
        return functools.partial(fastnorm.functional.activation_stats, backend=backend)
    if peer is not PEERS["compile"]:
        return composed_stats
    reset_compiler()
    return torch.compile(composed_stats, dynamic=False)


class ComposedRelu(nn.Module):
    """GeneralRelu as a module of three PyTorch ops."""

    def forward(self, z: Tensor) -> Tensor:
        return composed_relu(z)


class InplaceRelu(nn.Module):
    """GeneralRelu as a module, as the lessons write it."""

    def forward(self, z: Tensor) -> Tensor:
        return inplace_relu(z)


def composed_module(case: Case, act: type[nn.Module] = ComposedRelu) -> nn.Module:
    """torch.nn modules in a row."""
    norm = [] if case.spec.kind == "none" else [norm_module(nn, case)]
    return nn.Sequential(*norm, *([act()] if case.spec.act else []))


def norm_module(namespace: Any, case: Case, **fused: Any) -> nn.Module:
    """The norm of a case as a module of torch.nn or of fastnorm."""
    channels = case.shape[1]
    if case.spec.kind == "layer":
        module = namespace.LayerNorm(case.shape[1:], eps=EPS, **fused)
    elif case.spec.kind == "group":
        module = namespace.GroupNorm(case.groups, channels, eps=EPS, **fused)
    else:
        module = namespace.BatchNorm2d(channels, eps=EPS, momentum=MOMENTUM, **fused)
    assert isinstance(module, nn.Module)
    return module


def compiled(case: Case) -> Function:
    """torch.compile of the composed function, specialised to the shape as it would be in training."""
    reset_compiler()
    function: Function = torch.compile(composed(case), fullgraph=True, dynamic=False)
    return function


def compiled_module(case: Case) -> nn.Module:
    reset_compiler()
    module: nn.Module = torch.compile(composed_module(case), fullgraph=True, dynamic=False)  # type: ignore[assignment]
    return module


def reset_compiler() -> None:
    """Forgets earlier cases (they would count against the recompile limit); disk caches stay."""
    import torch._functorch.config

    torch._dynamo.reset()
    # A donated buffer may be overwritten by the backward, which then cannot run twice with retain_graph.
    torch._functorch.config.donated_buffer = False


def fastnorm_norm(case: Case) -> Callable[..., Tensor]:
    """fastnorm's public function for the norm of a case, with torch_norm's arguments and the fused ones."""
    import fastnorm.functional as ours

    spec, shape = case.spec, case.shape
    if spec.kind == "batch":
        return lambda x, w, b, mean, var, **fused: ours.batch_norm(
            x, mean, var, w, b, spec.training, MOMENTUM, EPS, **fused
        )
    functions: dict[str, Callable[..., Tensor]] = {
        "layer": lambda x, w, b, *_, **fused: ours.layer_norm(x, shape[1:], w, b, EPS, **fused),
        "rms": lambda x, w, *_, **fused: ours.rms_norm(x, shape[1:], w, EPS, **fused),
        "group": lambda x, w, b, *_, **fused: ours.group_norm(x, case.groups, w, b, EPS, **fused),
        "instance": lambda x, w, b, *_, **fused: ours.instance_norm(x, weight=w, bias=b, eps=EPS, **fused),
        "position": lambda x, w, b, *_, **fused: ours.layer_norm_2d(x, w, b, EPS, **fused),
    }
    return functions[spec.kind]


NATIVE = "fastnorm native"  # on a GPU, where another backend is the automatic choice


def fastnorm_function(case: Case, backend: str | None = None) -> Function:
    """fastnorm's public function, its backend chosen automatically unless one is given."""
    import fastnorm

    if case.spec.kind == "none":
        return lambda x, *_, **__: fastnorm.functional.general_relu(x, LEAK, SUB, MAXV)
    act = fastnorm.GeneralRelu(LEAK, SUB, MAXV) if case.spec.act else None
    norm = fastnorm_norm(case)

    def forward(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
    ) -> Tensor:
        return norm(x, weight, bias, running_mean, running_var, act=act, residual=residual, backend=backend)

    return forward


def native_on_a_gpu(case: Case) -> dict[str, Peer]:
    """The CUDA C++ kernels, where they are built and not chosen anyway; not as a module, which chooses for itself."""
    from fastnorm.ops.backend import available_backends

    backends = available_backends("cuda", case.spec.column) if case.device == "cuda" and not case.spec.module else []
    other = "native" in backends[1:]
    return {NATIVE: Peer(functools.partial(fastnorm_function, backend="native"), fastnorm_module)} if other else {}


def fastnorm_module(case: Case) -> nn.Module:
    import fastnorm

    if case.spec.kind == "none":
        return fastnorm.GeneralRelu(LEAK, SUB, MAXV)
    act = fastnorm.GeneralRelu(LEAK, SUB, MAXV) if case.spec.act else None
    return norm_module(fastnorm, case, act=act)


PEERS = {
    "eager": Peer(composed, composed_module),
    "eager_inplace": Peer(lambda c: composed(c, inplace_relu), lambda c: composed_module(c, InplaceRelu)),
    "compile": Peer(compiled, compiled_module),
    "fastnorm": Peer(fastnorm_function, fastnorm_module),
}


def library_function(library: Library, case: Case) -> Function:
    """Another library's function for the norm of a case, which has neither activation nor residual."""
    call = call_of(library, case)

    def forward(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
    ) -> Tensor:
        return call(x, weight, bias, running_mean, running_var)

    return forward


def other_libraries(case: Case) -> dict[str, Peer]:
    return {
        name: Peer(functools.partial(library_function, library), composed_module)
        for name, library in LIBRARIES.items()
        if serves(name, library, case)
    }


def peers_of(case: Case, *, compile: bool) -> dict[str, Peer]:
    """The candidates of a case: in-place GeneralRelu only where it makes a difference, in a forward."""
    inplace = case.spec.act and case.direction != "bwd"
    skipped = {name for name, wanted in (("compile", compile), ("eager_inplace", inplace)) if not wanted}
    ours = {name: peer for name, peer in PEERS.items() if name not in skipped} | native_on_a_gpu(case)
    return ours | other_libraries(case)


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
    """The function's arguments: gradients wanted when training, running statistics of the candidate's own."""

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
        y = function(**checked).detach()
        moved = ("running_mean", "running_var") if case.spec.training else ()
        return {"y": y} | {name: checked[name] for name in moved if checked[name] is not None}

    return Prepared(lambda: function(**timed), results)


def prepare_backward(case: Case, function: Function, p: Problem) -> Prepared:
    given = arguments(case, p)
    leaves = {k: v for k, v in given.items() if v is not None and v.requires_grad}
    y = function(**given)
    wanted, dy = tuple(leaves.values()), p.dy

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, wanted, dy, retain_graph=True)

    return Prepared(run, lambda: dict(zip((f"d{name}" for name in leaves), run(), strict=True)))


def prepare_both(case: Case, function: Function, p: Problem) -> Prepared:
    given = arguments(case, p)
    leaves = {k: v for k, v in given.items() if v is not None and v.requires_grad}
    wanted, dy = tuple(leaves.values()), p.dy

    def run() -> tuple[Tensor, ...]:
        y = function(**given)
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
