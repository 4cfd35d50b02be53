"""torch.compile(fullgraph=True): same results and statistics, the fused ops in the graph, no recompiles."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch.aot_autograd import aot_module_simplified
from torch.testing import assert_close

import fastnorm


class Block(nn.Module):
    """conv - norm - activation twice, with a residual around the second."""

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        act = fastnorm.GeneralRelu(0.1, 0.4, 2.0)
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.norm1 = fastnorm.BatchNorm2d(4, momentum=momentum, act=act)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm2 = fastnorm.BatchNorm2d(4, momentum=momentum, act=nn.ReLU())
        self.act = fastnorm.GeneralRelu(0.2, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x))
        return self.act(self.norm2(self.conv2(x), x))


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(net: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Result and gradient of the input; the parameters' gradients are left in the module."""
    x = x.clone().requires_grad_()
    y = net(x)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape, dtype=y.dtype))
    return y.detach(), x.grad


def assert_same_training(compiled: Callable[[Tensor], Tensor], net: nn.Module, plain: nn.Module, x: Tensor) -> None:
    assert_close(step(compiled, x), step(plain, x))
    assert_close([p.grad for p in net.parameters()], [p.grad for p in plain.parameters()], rtol=1e-4, atol=1e-4)
    assert_close(dict(net.named_buffers()), dict(plain.named_buffers()))
    assert net.norm1.num_batches_tracked > 0


def compiled_twin(plain: nn.Module, **options: Any) -> tuple[nn.Module, Callable[..., Tensor]]:
    """A copy of the module, and that copy compiled."""
    net = copy.deepcopy(plain)
    return net, torch.compile(net, fullgraph=True, **options)


def check_dynamic_batch_size(plain: nn.Module, compiler: str, same_training: Callable[..., None]) -> None:
    counter = CompileCounterWithBackend(compiler)
    net, compiled = compiled_twin(plain, backend=counter, dynamic=True)
    same_training(compiled, net, plain, torch.randn(2, 3, 6, 6))
    first = counter.frame_count  # dynamo may call the compiler twice for it, to make symbolic floats constants
    for batch in (5, 3, 7):
        same_training(compiled, net, plain, torch.randn(batch, 3, 6, 6))
    assert counter.frame_count == first


# The eager ops are opaque to inductor, as the native ones are: one backend is enough for the slow compiler.
either_compiler = pytest.mark.parametrize(
    "compiler, cpu_backend",
    [
        ("aot_eager", "eager"),
        ("aot_eager", "native"),
        pytest.param("inductor", "native", marks=pytest.mark.slow),
    ],
    indirect=["cpu_backend"],
)


@either_compiler
@pytest.mark.parametrize("momentum", [0.1, None], ids=["momentum", "cumulative"])
def test_training(cpu_backend: str, compiler: str, momentum: float | None) -> None:
    plain = Block(momentum)
    counter = CompileCounterWithBackend(compiler)
    net, compiled = compiled_twin(plain, backend=counter)
    for _ in range(3):
        assert_same_training(compiled, net, plain, torch.randn(2, 3, 6, 6))
    assert net.norm1.num_batches_tracked == 3
    assert counter.frame_count == 1


@either_compiler
def test_evaluation(cpu_backend: str, compiler: str) -> None:
    plain = Block()
    plain(torch.randn(2, 3, 6, 6))
    net, compiled = compiled_twin(plain.eval(), backend=compiler)
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        assert_close(compiled(x), plain(x))
    assert_close(step(compiled, x), step(plain, x))
    assert_close(dict(net.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)


@either_compiler
def test_dynamic_batch_size(cpu_backend: str, compiler: str) -> None:
    check_dynamic_batch_size(Block(), compiler, assert_same_training)


@pytest.mark.slow
@pytest.mark.parametrize("cpu_backend", ["native"], indirect=True)
def test_inductor_channels_last(cpu_backend: str) -> None:
    plain = Block().to(memory_format=torch.channels_last)
    net, compiled = compiled_twin(plain)
    x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    for _ in range(2):
        assert_same_training(compiled, net, plain, x)
    assert compiled(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_mode_without_gradients(cpu_backend: str, mode: Any) -> None:
    """A8."""
    plain = Block()
    net, compiled = compiled_twin(plain, backend="aot_eager")
    with mode():
        for _ in range(2):
            x = torch.randn(2, 3, 6, 6)
            assert_close(compiled(x), plain(x))
    assert_close(dict(net.named_buffers()), dict(plain.named_buffers()))


def called_ops(graph: fx.GraphModule) -> list[Any]:
    """What a graph calls; an op that writes to its arguments is wrapped in auto_functionalized."""
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    return [n.args[0] if "auto_functionalized" in str(n.target) else n.target for n in calls]


def compiled_graphs(net: nn.Module, x: Tensor) -> dict[str, fx.GraphModule]:
    """The graphs of forward and backward."""
    graphs: dict[str, fx.GraphModule] = {}

    def keep(name: str) -> Callable[..., Any]:
        def compiler(graph: fx.GraphModule, inputs: Any) -> Any:
            graphs[name] = graph
            return graph

        return compiler

    def backend(graph: fx.GraphModule, inputs: Any) -> Any:
        return aot_module_simplified(graph, inputs, fw_compiler=keep("forward"), bw_compiler=keep("backward"))

    step(torch.compile(net, fullgraph=True, backend=backend), x)
    return graphs


def test_graphs_hold_the_fused_ops(cpu_backend: str) -> None:
    """Forward and backward call the chosen backend's ops, and not torch's batch norm or activation."""
    net = Block()
    graphs = compiled_graphs(net, torch.randn(2, 3, 6, 6))
    namespace = getattr(torch.ops, f"fastnorm_{cpu_backend}")
    for direction, suffix in (("forward", "fwd"), ("backward", "bwd")):
        called = called_ops(graphs[direction])
        assert called.count(getattr(namespace, f"batch_norm_{suffix}").default) == 2, direction
        assert called.count(getattr(namespace, f"general_relu_{suffix}").default) == 1, direction
        names = {str(target) for target in called}
        assert not any(word in name for name in names for word in ("native_batch_norm", "relu.default", "var_mean"))


def test_backend_choice_is_guarded(cpu_backend: str) -> None:
    """Another choice means another graph; the old one is not reused."""
    net = Block()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    x = torch.randn(2, 3, 6, 6)
    compiled(x)
    with fastnorm.use_backend("eager" if cpu_backend == "native" else "native"):
        compiled(x)
    assert counter.frame_count == 2
    compiled(x)
    assert counter.frame_count == 2


def test_every_norm_compiles(cpu_backend: str) -> None:
    cases: list[tuple[nn.Module, tuple[int, ...]]] = [
        (fastnorm.BatchNorm1d(3), (4, 3)),
        (fastnorm.BatchNorm1d(3, affine=False, track_running_stats=False), (4, 3, 5)),
        (fastnorm.BatchNorm3d(3, act=nn.LeakyReLU(0.1), bias=False), (2, 3, 2, 2, 2)),
        (fastnorm.BatchNorm2d(3, unbiased=True), (2, 3, 4, 4)),
        (fastnorm.LessonBatchNorm(3), (2, 3, 4, 4)),
        (fastnorm.GeneralRelu(0.1, maxv=1.0, max_leak=0.1), (2, 3)),
        (fastnorm.GeneralRelu(), ()),
    ]
    for layer, shape in cases:
        twin, x = copy.deepcopy(layer), torch.randn(shape)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert_close(step(compiled, x), step(twin, x))
        assert_close(dict(layer.named_buffers()), dict(twin.named_buffers()))


def test_functional_with_a_tensor_momentum(cpu_backend: str) -> None:
    def call(x: Tensor, mean: Tensor, var: Tensor, factor: Tensor) -> Tensor:
        return fastnorm.functional.batch_norm(x, mean, var, training=True, momentum=factor)

    x, factor = torch.randn(4, 3), torch.tensor(0.25)
    states = [(torch.zeros(3), torch.ones(3)) for _ in range(2)]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, *states[0], factor), call(x, *states[1], factor))
    assert_close(*states)


def test_inplace_general_relu_compiles(cpu_backend: str) -> None:
    def call(x: Tensor) -> Tensor:
        return fastnorm.functional.general_relu(x * 2, 0.1, 0.4, inplace=True)

    x = torch.randn(4, 3)
    assert_close(step(torch.compile(call, fullgraph=True, backend="aot_eager"), x), step(call, x))


def test_double_backward_in_eager_beside_compiled(cpu_backend: str) -> None:
    """A compiled call must leave nothing behind that changes the uncompiled one."""
    layer = fastnorm.BatchNorm2d(3, act=nn.LeakyReLU(0.1))
    x = torch.randn(2, 3, 4, 4, requires_grad=True)

    def second() -> Tensor:
        (dx,) = torch.autograd.grad((layer(x) * x.detach().sin()).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), x)[0]

    before = second()
    step(torch.compile(layer, fullgraph=True, backend="aot_eager"), torch.randn(2, 3, 4, 4))
    assert_close(second(), before, rtol=0, atol=0)
