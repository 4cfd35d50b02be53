"""The candidates: the same op as eager PyTorch, as torch.compile makes it, and as fastnorm computes it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import EPS, LEAK, MAXV, MOMENTUM, SUB, Case
from benchmarks.libraries import LIBRARIES, Library, call_of, serves

# x, residual, weight, bias, running_mean, running_var -> y; the running statistics are updated in place.
Function = Callable[..., Tensor]
# x, weight, bias, running_mean, running_var (and, of fastnorm, what is fused) -> y.
Norm = Callable[..., Tensor]


class Peer(NamedTuple):
    """A candidate: how it makes the op of a case as a function, and as a module for the module cases."""

    function: Callable[[Case], Function]
    module: Callable[[Case], nn.Module]


def composed_relu(z: Tensor) -> Tensor:
    """GeneralRelu as three PyTorch ops."""
    return (F.leaky_relu(z, LEAK) - SUB).clamp_max(MAXV)


def inplace_relu(z: Tensor) -> Tensor:
    """GeneralRelu as the lessons write it: subtract and clamp in place."""
    return F.leaky_relu(z, LEAK).sub_(SUB).clamp_max_(MAXV)


def norm_function(functions: Any, case: Case) -> Norm:
    """The norm of a case, out of torch.nn.functional or of fastnorm.functional."""
    spec, shape = case.spec, case.shape
    norms: dict[str, Norm] = {
        "batch": lambda x, w, b, mean, var, **fused: functions.batch_norm(
            x, mean, var, w, b, spec.training, MOMENTUM, EPS, **fused
        ),
        "layer": lambda x, w, b, *_, **fused: functions.layer_norm(x, shape[1:], w, b, EPS, **fused),
        "rms": lambda x, w, *_, **fused: functions.rms_norm(x, shape[1:], w, EPS, **fused),
        "group": lambda x, w, b, *_, **fused: functions.group_norm(x, case.groups, w, b, EPS, **fused),
        "instance": lambda x, w, b, *_, **fused: functions.instance_norm(x, weight=w, bias=b, eps=EPS, **fused),
        "position": lambda x, w, b, *_, **fused: functions.layer_norm_2d(x, w, b, EPS, **fused),
    }
    if functions is F:  # as ConvNeXt has it: the channels go to the end and come back
        norms["position"] = lambda x, w, b, *_: F.layer_norm(x.movedim(1, -1), shape[1:2], w, b, EPS).movedim(-1, 1)
    return norms[spec.kind]


def composed(case: Case, act: Callable[[Tensor], Tensor] = composed_relu) -> Function:
    """The op out of PyTorch's own functions, as a user of torch.nn would write it."""
    spec = case.spec
    norm = None if spec.kind == "none" else norm_function(F, case)

    def forward(x: Tensor, residual: Tensor | None, *rest: Tensor | None) -> Tensor:
        z = x if norm is None else norm(x, *rest)
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


NATIVE = "fastnorm native"  # on a GPU, where another backend is the automatic choice


def fastnorm_function(case: Case, backend: str | None = None) -> Function:
    """fastnorm's public function, its backend chosen automatically unless one is given."""
    import fastnorm

    if case.spec.kind == "none":
        return lambda x, *_, **__: fastnorm.functional.general_relu(x, LEAK, SUB, MAXV)
    act = fastnorm.GeneralRelu(LEAK, SUB, MAXV) if case.spec.act else None
    norm = norm_function(fastnorm.functional, case)

    def forward(x: Tensor, residual: Tensor | None, *rest: Tensor | None) -> Tensor:
        return norm(x, *rest, act=act, residual=residual, backend=backend)

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

    def forward(x: Tensor, residual: Tensor | None, *rest: Tensor | None) -> Tensor:
        return call(x, *rest)

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
