"""torch.fx: a symbolic trace records our modules and functionals as single calls, and runs as the net did."""

from __future__ import annotations

import copy
import operator
import pickle

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.testing import assert_close

import fastnorm


class Net(nn.Module):
    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = fastnorm.BatchNorm2d(3, momentum=momentum, act=fastnorm.GeneralRelu(0.1, 0.4, 2.0))
        self.act = fastnorm.GeneralRelu(0.2)
        self.lesson = fastnorm.LessonBatchNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lesson(self.act(self.norm(self.conv(x), x)))


class WholeModules(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module).__module__.startswith("fastnorm.") or super().is_leaf_module(module, name)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_traced_net_runs_as_the_net(cpu_backend: str, training: bool) -> None:
    net = Net().train(training)
    reference = copy.deepcopy(net)
    traced = fx.symbolic_trace(net)
    called = [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"]
    ours = [name.removeprefix("_module_") for name in called if name != "Activation"]  # a plain tuple of numbers
    assert ours == ["batch_norm", "general_relu", "batch_norm"]
    dy = torch.randn(2, 3, 6, 6)
    for module in (traced, reference):
        x = torch.ones(2, 3, 6, 6).cumsum(3).requires_grad_()
        y = module(x)
        y.backward(dy)
        module.found = [y.detach(), x.grad, *(p.grad for _, p in sorted(module.named_parameters()))]
    assert_close(traced.found, reference.found)


def test_counter_and_statistics_move_in_the_trace(cpu_backend: str) -> None:
    for momentum in (0.1, None):
        net = Net(momentum)
        reference = copy.deepcopy(net)
        traced = fx.symbolic_trace(net)
        for step in range(2):
            x = torch.randn(2, 3, 6, 6) + step
            assert_close(traced(x), reference(x))
        expected = dict(reference.norm.named_buffers())
        assert_close({name: traced.get_buffer(f"norm.{name}") for name in expected}, expected)


def test_modules_as_leaves(cpu_backend: str) -> None:
    net = Net().eval()
    graph = WholeModules().trace(net)
    modules = [node.target for node in graph.nodes if node.op == "call_module"]
    assert modules == ["conv", "norm", "act", "lesson"]
    traced = fx.GraphModule(net, graph)
    x = torch.randn(2, 3, 6, 6)
    assert_close(traced(x), net(x), rtol=0, atol=0)


def test_edited_graph(cpu_backend: str) -> None:
    """What the graph says is what runs: change the residual add and see it."""
    net = Net().eval()
    traced = fx.symbolic_trace(net)
    node = next(n for n in traced.graph.nodes if n.name.endswith("batch_norm"))
    given = next(n for n in traced.graph.nodes if n.op == "placeholder")
    assert given in node.all_input_nodes
    with traced.graph.inserting_before(node):
        doubled = traced.graph.call_function(operator.mul, (given, 2))
    node.replace_input_with(given, doubled)
    traced.recompile()
    x = torch.randn(2, 3, 6, 6)
    assert_close(traced(x), net.lesson(net.act(net.norm(net.conv(x), 2 * x))))


def test_trace_survives_pickle_and_shape_propagation(cpu_backend: str) -> None:
    """Over Sequential: fx cannot pickle a forward() whose annotations are strings, as in this file."""
    net = nn.Sequential(*Net().eval().children())
    traced = fx.symbolic_trace(net)
    x = torch.randn(2, 3, 6, 6)
    ShapeProp(traced).propagate(x)
    ours = [n for n in traced.graph.nodes if "batch_norm" in n.name or "general_relu" in n.name]
    assert len(ours) == 3 and {tuple(n.meta["tensor_meta"].shape) for n in ours} == {(2, 3, 6, 6)}
    assert_close(pickle.loads(pickle.dumps(traced))(x), net(x))


def test_make_fx_sees_the_ops(cpu_backend: str) -> None:
    net = Net().eval()
    x = torch.randn(2, 3, 6, 6)
    graph = fx.experimental.proxy_tensor.make_fx(net, tracing_mode="real")(x)
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert called.count(f"fastnorm_{cpu_backend}.batch_norm_fwd.default") == 2
    assert_close(graph(x), net(x))
