"""What the tests of `convert` share: one training step of a model, and its comparison with the original's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastnorm.testing.compare import Expectation, check
from fastnorm.testing.rounding import WALK, unit_of


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
