"""torch.compile(fullgraph=True) of the row family: same results and statistics, the fused ops in the graph."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_compile import (
    _fresh_dynamo,  # noqa: F401  the fixture is autouse
    called_ops,
    check_dynamic_batch_size,
    compiled_graphs,
    compiled_twin,
    either_compiler,
    step,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

import fastnorm


class Block(nn.Module):
    """Every norm once, two of them around a residual."""

    def __init__(self) -> None:
        super().__init__()
        act = fastnorm.GeneralRelu(0.1, 0.4, 2.0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.group = fastnorm.GroupNorm(2, 4, act=act)
        self.instance = fastnorm.InstanceNorm2d(4, affine=True, track_running_stats=True, act=nn.ReLU())
        self.position = fastnorm.LayerNorm2d(4, act=nn.LeakyReLU(0.1))
        self.lesson = fastnorm.LessonLayerNorm(4, act=act)
        self.layer = fastnorm.LayerNorm((4, 6, 6))
        self.rms = fastnorm.RMSNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(self.conv(x))
        x = self.position(self.instance(x), x)
        return self.rms(self.layer(self.lesson(x), x))


NORMS = 6


def assert_same_training(compiled: Any, net: nn.Module, plain: nn.Module, x: Tensor) -> None:
    assert_close(step(compiled, x), step(plain, x), rtol=1e-4, atol=1e-5)
    assert_close([p.grad for p in net.parameters()], [p.grad for p in plain.parameters()], rtol=1e-4, atol=1e-4)
    assert_close(dict(net.named_buffers()), dict(plain.named_buffers()))


@either_compiler
def test_training_and_evaluation(cpu_backend: str, compiler: str) -> None:
    plain = Block()
    counter = CompileCounterWithBackend(compiler)
    net, compiled = compiled_twin(plain, backend=counter)
    for _ in range(2):
        assert_same_training(compiled, net, plain, torch.randn(2, 3, 6, 6))
    assert counter.frame_count == 1
    net.eval(), plain.eval()
    assert_same_training(compiled, net, plain, torch.randn(2, 3, 6, 6))
    with torch.no_grad():
        x = torch.randn(2, 3, 6, 6)
        assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)


@either_compiler
def test_dynamic_batch_size(cpu_backend: str, compiler: str) -> None:
    check_dynamic_batch_size(Block(), compiler, assert_same_training)


@pytest.mark.slow
@pytest.mark.parametrize("cpu_backend", ["native"], indirect=True)
def test_inductor_channels_last(cpu_backend: str) -> None:
    plain = Block().to(memory_format=torch.channels_last)
    net, compiled = compiled_twin(plain)
    x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    assert_same_training(compiled, net, plain, x)
    assert compiled(x).is_contiguous(memory_format=torch.channels_last)


def test_graphs_hold_the_fused_ops(cpu_backend: str) -> None:
    """Forward and backward call the chosen backend's op, and none of torch's norms or activations."""
    net = Block()
    net.instance.track_running_stats = False  # its buffers are moved by plain PyTorch
    graphs = compiled_graphs(net, torch.randn(2, 3, 6, 6))
    namespace = getattr(torch.ops, f"fastnorm_{cpu_backend}")
    for direction, suffix in (("forward", "fwd"), ("backward", "bwd")):
        called = called_ops(graphs[direction])
        assert called.count(getattr(namespace, f"row_norm_{suffix}").default) == NORMS, direction
        names = {str(target) for target in called}
        assert not any(
            word in name for name in names for word in ("native_layer", "native_group", "relu", "var_mean", "rsqrt")
        ), direction


def test_layouts_and_dtypes_compile(cpu_backend: str) -> None:
    """What the graph believes of strides and dtypes is what the ops return."""
    layers: list[tuple[nn.Module, Tensor]] = [
        (fastnorm.InstanceNorm2d(4), torch.randn(2, 4, 5, 3).to(memory_format=torch.channels_last)),
        (fastnorm.LayerNorm((4, 5, 3)), torch.randn(2, 4, 5, 3).to(memory_format=torch.channels_last).bfloat16()),
        (fastnorm.GroupNorm(2, 4, act=nn.ReLU()), torch.randn(2, 4, 5, 6)[..., ::2]),
        (fastnorm.LayerNorm2d(4), torch.randn(3, 5, 4).transpose(1, 2).double()),
        (fastnorm.RMSNorm((4, 3), elementwise_affine=False), torch.randn(2, 5, 4, 3).half()),
        (fastnorm.InstanceNorm1d(4, affine=True), torch.randn(4, 5)),
        (fastnorm.GroupNorm(2, 4), torch.randn(0, 4, 5)),
    ]
    for layer, x in layers:
        twin = copy.deepcopy(layer)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        y, expected = compiled(x * 1), twin(x * 1)
        assert_close(y, expected)
        assert y.stride() == expected.stride() and y.dtype == expected.dtype
        assert_close(step(compiled, x), step(twin, x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(cpu_backend: str, mode: Any) -> None:
    plain = Block()
    net, compiled = compiled_twin(plain, backend="aot_eager")
    with mode():
        x = torch.randn(2, 3, 6, 6)
        assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)
    assert_close(dict(net.named_buffers()), dict(plain.named_buffers()))


def test_autocast_with_compile(cpu_backend: str) -> None:
    plain = Block()
    _, compiled = compiled_twin(plain, backend="aot_eager")
    x = torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = compiled(x), plain(x)
    assert y.dtype == expected.dtype
    assert_close(y, expected)
