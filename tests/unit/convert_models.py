"""What the tests of `convert` share: the comparison of a model with its original, and of its copies with itself."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastnorm import functional
from fastnorm.testing.compare import Expectation, check
from fastnorm.testing.rounding import WALK, unit_of

ROOT = Path(__file__).resolve().parents[2]


def step(model: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """The result, all gradients, and all buffers afterwards."""
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(dy)
    found = {"y": y.detach(), "dx": x.grad}
    found |= {f"grad of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {name: buffer.clone() for name, buffer in model.named_buffers()}


def check_same(original: nn.Module, converted: nn.Module, x: Tensor) -> None:
    """Results, gradients and buffers of one step, by the comparison rule. The models are not changed."""
    dy = torch.randn_like(original.eval()(x)) if not original.training else torch.randn_like(copy.deepcopy(original)(x))
    exact = step(copy.deepcopy(original).double(), x.double(), dy.double())
    peer = step(copy.deepcopy(original), x, dy)
    ours = step(copy.deepcopy(converted), x, dy)
    assert ours.keys() == peer.keys()
    for name, value in ours.items():
        if not value.is_floating_point():
            assert torch.equal(value, peer[name]), name
            continue
        size = exact[name].abs().amax()
        if name.startswith("grad of"):  # a sum of terms of dy's size: it walks by the root of their squares' sum
            size = torch.maximum(size, dy.double().norm())
        floor = unit_of(value.dtype) * WALK * size
        check(value, Expectation(exact[name].double(), peer[name].double(), floor, peer[name].dtype), name)


def tree(model: nn.Module) -> dict[str, tuple[type, dict[str, object]]]:
    """Class and attributes of every module; parameters, buffers and children by identity."""
    return {
        name: (type(module), {key: _frozen(value) for key, value in module.__dict__.items()})
        for name, module in model.named_modules(remove_duplicate=False)
    }


def _frozen(value: object) -> object:
    return {key: id(item) for key, item in value.items()} if isinstance(value, dict) else value


def spread(model: nn.Module) -> nn.Module:
    """The model with random parameters and buffers in its norms, so that nothing is 1 or 0 by chance."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1:
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(noise + 0.5 if name.endswith(("weight", "var")) else noise - 0.5)
    return model


def chain(act: nn.Module | None = None) -> nn.Sequential:
    """conv - norm - activation - conv."""
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), act or nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)]
    return spread(nn.Sequential(*layers))


def fusions(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many batch norms take an activation in while the model runs."""
    seen: list[bool] = []
    real = functional.batch._batch_norm.batch_norm

    def watched(*args: object) -> Tensor:
        seen.append(args[-1].active)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(functional.batch._batch_norm, "usual_batch_norm", lambda *_: None)  # which would see to all of it
        patch.setattr(functional.batch._batch_norm, "batch_norm", watched)
        model(x)
    return sum(seen)


def copies(model: nn.Module) -> Iterator[nn.Module]:
    """The model copied and pickled, each of the same classes as the model."""
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
        yield twin


def check_graphs(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Compiled, traced and exported, the model gives y."""
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), y)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), y)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), y)


def check_saved(model: nn.Module, x: Tensor, folder: Path, *, first: str = "", then: str = "") -> None:
    """Another process, which has run the line `first`, loads the model, finds the same bits, and runs `then`."""
    file = folder / "model.pt"
    torch.save((model, x, model(x)), file)
    load = "model, x, y = torch.load(sys.argv[1], weights_only=False)"
    code = "\n".join([first, "import sys, torch", load, "assert torch.equal(model(x), y)", then])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, timeout=300, env=environment)
