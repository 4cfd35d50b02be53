"""torch.export of evaluation and training graphs, saved and loaded again."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.testing import assert_close

import fastnorm


class Net(nn.Module):
    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = fastnorm.BatchNorm2d(3, momentum=momentum, act=fastnorm.GeneralRelu(0.1, 0.4, 2.0))
        self.act = fastnorm.GeneralRelu(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x), x))


def travelled(program: ExportedProgram) -> ExportedProgram:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def fused_calls(program: ExportedProgram, backend: str) -> list[str]:
    """The calls of this backend's ops; one that writes may be wrapped in auto_functionalized."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    targets = [str(n.args[0] if "auto_functionalized" in str(n.target) else n.target) for n in calls]
    assert not any("aten.native_batch_norm" in name or "aten.leaky_relu" in name for name in targets), targets
    return [name for name in targets if name.startswith(f"fastnorm_{backend}.")]


def batch_sized(x: Tensor) -> dict[str, Any]:
    return {"args": (x,), "dynamic_shapes": ({0: Dim("batch", min=2)},)}


def check_trains(net: nn.Module, **tolerance: float) -> None:
    """The exported module leaves its parameters the gradients that the module itself does."""
    reference = copy.deepcopy(net)
    module = export(net, (torch.randn(4, 3, 6, 6),)).module()
    x = torch.randn(4, 3, 6, 6)
    y = module(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    reference(x).backward(dy)
    found = {name: p.grad for name, p in module.named_parameters()}
    assert_close(found, {name: p.grad for name, p in reference.named_parameters()}, **tolerance)


def test_evaluation(cpu_backend: str) -> None:
    net = Net()
    net(torch.randn(4, 3, 6, 6))
    net.eval()
    program = travelled(export(net, **batch_sized(torch.randn(4, 3, 6, 6))))
    assert len(fused_calls(program, cpu_backend)) == 2
    for batch in (2, 7):
        x = torch.randn(batch, 3, 6, 6)
        assert_close(program.module()(x), net(x))


@pytest.mark.parametrize("momentum", [0.1, None], ids=["momentum", "cumulative"])
def test_training_graph_moves_the_statistics(cpu_backend: str, momentum: float | None) -> None:
    net = Net(momentum)
    reference = copy.deepcopy(net)
    program = export(net, **batch_sized(torch.randn(4, 3, 6, 6)))
    assert_close(dict(net.named_buffers()), dict(reference.named_buffers()), rtol=0, atol=0)
    module = travelled(program).module()
    assert len(fused_calls(program, cpu_backend)) == 2
    for batch in (2, 7):
        x = torch.randn(batch, 3, 6, 6)
        assert_close(module(x), reference(x))
    assert_close(dict(module.named_buffers()), dict(reference.named_buffers()))
    assert module.get_buffer("norm.num_batches_tracked") == 2


def test_training_graph_can_be_trained(cpu_backend: str) -> None:
    check_trains(Net())


def test_decompositions_leave_the_fused_ops(cpu_backend: str) -> None:
    program = export(Net().eval(), (torch.randn(4, 3, 6, 6),)).run_decompositions()
    assert len(fused_calls(program, cpu_backend)) == 2


def test_lesson_layer_and_one_dimension(cpu_backend: str) -> None:
    for layer, shape in ((fastnorm.LessonBatchNorm(3), (4, 3, 6, 6)), (fastnorm.BatchNorm1d(3), (4, 3))):
        reference, x = copy.deepcopy(layer), torch.randn(shape)
        module = export(layer, (x,)).module()
        assert_close(module(x), reference(x))
        assert_close(dict(module.named_buffers()), dict(reference.named_buffers()))
