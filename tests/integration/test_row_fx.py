"""torch.fx over the row family: single calls in the trace, which runs, is pickled and edited as the net was."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from test_fx import WholeModules
from test_row_compile import Block
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.testing import assert_close

CALLS = ["group_norm", "instance_norm", "layer_norm_2d", "lesson_layer_norm", "layer_norm", "rms_norm"]
MODULES = ["conv", "group", "instance", "position", "lesson", "layer", "rms"]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_traced_net_runs_as_the_net(cpu_backend: str, training: bool) -> None:
    net = Block().train(training)
    reference = copy.deepcopy(net)
    traced = fx.symbolic_trace(net)
    called = [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"]
    assert [name.removeprefix("_module_") for name in called if name != "Activation"] == CALLS
    dy = torch.randn(2, 4, 6, 6)
    results = []
    for module in (traced, reference):
        x = torch.linspace(-1, 1, 216).reshape(2, 3, 6, 6).requires_grad_()
        y = module(x)
        y.backward(dy)
        parameters = [p.grad for _, p in sorted(module.named_parameters())]
        statistics = [module.get_buffer(f"instance.running_{name}") for name in ("mean", "var")]
        results.append([y.detach(), x.grad, *parameters, *statistics])
    assert_close(*results)


def test_modules_as_leaves(cpu_backend: str) -> None:
    net = Block().eval()
    graph = WholeModules().trace(net)
    assert [node.target for node in graph.nodes if node.op == "call_module"] == MODULES
    x = torch.randn(2, 3, 6, 6)
    assert_close(fx.GraphModule(net, graph)(x), net(x), rtol=0, atol=0)


def test_trace_survives_pickle_and_shape_propagation(cpu_backend: str) -> None:
    """Over Sequential: fx cannot pickle a forward() whose annotations are strings."""
    net = nn.Sequential(*Block().eval().children())
    traced = fx.symbolic_trace(net)
    x = torch.randn(2, 3, 6, 6)
    ShapeProp(traced).propagate(x)
    ours = [n for n in traced.graph.nodes if "norm" in n.name and n.op == "call_function"]
    assert len(ours) == len(CALLS) and {tuple(n.meta["tensor_meta"].shape) for n in ours} == {(2, 4, 6, 6)}
    assert_close(pickle.loads(pickle.dumps(traced))(x), net(x))


def test_make_fx_sees_the_ops(cpu_backend: str) -> None:
    net, x = Block(), torch.randn(2, 3, 6, 6)
    net.instance.track_running_stats = False
    graph = fx.experimental.proxy_tensor.make_fx(net, tracing_mode="real")(x)
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert called.count(f"fastnorm_{cpu_backend}.row_norm_fwd.default") == len(CALLS)
    assert_close(graph(x), net(x))
