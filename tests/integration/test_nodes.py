"""The compiled autograd nodes beside the Functions of Python that serve where they are not built."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from composed import ACT, SHAPE, leaf
from torch import Tensor, nn
from torch.testing import assert_close

import fastnorm
from fastnorm.functional import general_relu, layer_norm
from fastnorm.ops import OPS, native

LAYERS = {
    "batch": lambda: fastnorm.BatchNorm2d(3, act=ACT),
    "group": lambda: fastnorm.GroupNorm(3, 3, act=ACT),
    "layer": lambda: fastnorm.LayerNorm(SHAPE[2:], act=ACT),
}


def gradients(layer: nn.Module, x: Tensor, residual: Tensor) -> list[Tensor]:
    """y's and all gradients, of one call that trains."""
    y = general_relu(layer(x, residual), 0.1, 0.2)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, residual, *layer.parameters()])]


def all_gradients() -> dict[str, list[Tensor]]:
    torch.manual_seed(0)
    return {name: gradients(make(), leaf(*SHAPE), leaf(*SHAPE)) for name, make in LAYERS.items()}


def test_nodes_are_loaded() -> None:
    assert native.nodes_missing() is None, native.nodes_missing()
    assert native.nodes() is not None
    assert type(fastnorm.BatchNorm2d(3)(leaf(*SHAPE)).grad_fn).__name__ == "CppFunction"


def test_without_them_every_bit_is_the_same(tmp_path: Path) -> None:
    """In a process of its own, where the ops have their gradients from Python."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from test_nodes import all_gradients, gradient_of_the_op
from fastnorm.ops import native
assert "FASTNORM_DISABLE_NODES=1" in native.nodes_missing(), native.nodes_missing()
torch.save([all_gradients(), gradient_of_the_op()], {str(tmp_path / "found.pt")!r})
"""
    environment = {"FASTNORM_DISABLE_NODES": "1", "PYTHONPATH": str(Path(fastnorm.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=300)
    found = torch.load(tmp_path / "found.pt")
    assert_close(found, [all_gradients(), gradient_of_the_op()], rtol=0, atol=0)


def gradient_of_the_op() -> list[Tensor]:
    """What a graph of torch.export calls is the op itself, whose other results have no gradient."""
    torch.manual_seed(1)
    x, weight = leaf(*SHAPE), leaf(3)
    y, mean, rstd = OPS["native"].batch_norm_fwd(
        x, weight, None, None, None, None, None, True, 0.0, 1e-5, False, False, True, 0.1, None, None, None
    )
    assert y.requires_grad and not mean.requires_grad and not rstd.requires_grad
    return list(torch.autograd.grad(y.square().sum(), [x, weight]))


def test_compiled_autograd_without_parameters() -> None:
    """Tensors that were absent are absent in the compiler's graph too."""
    x = leaf(*SHAPE)
    expected = torch.autograd.grad(layer_norm(x, SHAPE[2:]).square().sum(), x)[0]
    with torch._dynamo.compiled_autograd._enable(lambda graph: torch.compile(graph, backend="eager")):
        layer_norm(x, SHAPE[2:]).square().sum().backward()
    assert_close(x.grad, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_the_graph_is_gone_after_backward(name: str) -> None:
    y = LAYERS[name]()(leaf(*SHAPE))
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_autograd(name: str) -> None:
    """A compiler that traces the backward pass itself, of a forward pass that ran as it is."""
    layer, x, residual = LAYERS[name](), leaf(*SHAPE), leaf(*SHAPE)
    inputs = [x, residual, *layer.parameters()]
    expected = gradients(layer, x, residual)[1:]

    def compiler(graph: torch.fx.GraphModule) -> object:
        return torch.compile(graph, backend="eager")

    with torch._dynamo.compiled_autograd._enable(compiler):
        general_relu(layer(x, residual), 0.1, 0.2).square().sum().backward()
    assert_close([t.grad for t in inputs], expected)


def test_backward_in_several_threads() -> None:
    """No node waits for another's Python."""
    layer, x = fastnorm.BatchNorm2d(3, act=ACT), leaf(*SHAPE)
    expected = torch.autograd.grad(layer(x).square().sum(), x)[0]
    found: list[Tensor] = []

    def work() -> None:
        for _ in range(20):
            found.append(torch.autograd.grad(layer(x).square().sum(), x)[0])

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 80
    assert_close(found, [expected] * 80, rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_no_gradient_of_y_is_none_for_its_inputs(name: str) -> None:
    """An edge through which no gradient comes is no gradient of zeros."""
    layer, x = LAYERS[name](), leaf(*SHAPE)

    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, y: Tensor) -> Tensor:
            return y.clone()

        @staticmethod
        def backward(ctx: object, dy: Tensor) -> None:
            return None

    (Cut.apply(layer(x)).sum() + x.sum()).backward()
    assert_close(x.grad, torch.ones_like(x))
    assert layer.weight.grad is None


def test_another_torch_does_not_find_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.99.1+cpu")
    assert "not built for torch 2.99.1" in str(native._load_nodes())
