"""torch.func's transforms over the row family's modules, against torch's layers and composed PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.testing import assert_close

import fastnorm
from fastnorm.functional import group_norm, instance_norm, layer_norm, layer_norm_2d, rms_norm

double = torch.float64
LAYERS: dict[str, Callable[[Any], nn.Module]] = {
    "layer": lambda module: module.LayerNorm((3, 5)),
    "rms": lambda module: module.RMSNorm(5),
    "group": lambda module: module.GroupNorm(2, 4),
    "instance": lambda module: module.InstanceNorm2d(4, affine=True),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


class Net(nn.Module):
    """conv - norm - activation - head; ours with the activation in the norm."""

    def __init__(self, name: str, module: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = LAYERS[name](module)
        self.act: Any = nn.LeakyReLU(0.1)
        if module is fastnorm:
            self.norm.activation = fastnorm.LayerNorm(1, act=self.act).activation
            self.act = nn.Identity()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.conv(x))).mean((2, 3)))


def nets(name: str) -> tuple[Net, Net]:
    ours, theirs = Net(name, fastnorm), Net(name, nn)
    nn.init.uniform_(theirs.norm.weight, 0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@every_layer
def test_per_sample_gradients(cpu_backend: str, name: str) -> None:
    x, target = torch.randn(4, 2, 3, 5), torch.tensor([0, 1, 1, 0])
    results = []
    for net in nets(name):
        parameters = {key: p.detach() for key, p in net.named_parameters()}

        def loss(parameters: dict[str, Tensor], x: Tensor, target: Tensor, net: Net = net) -> Tensor:
            return F.cross_entropy(functional_call(net, parameters, (x[None],)), target[None])

        results.append(vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, target))
    assert_close(*results)


@every_layer
def test_ensemble_of_models(cpu_backend: str, name: str) -> None:
    layers = [LAYERS[name](fastnorm) for _ in range(3)]
    for i, layer in enumerate(layers):
        nn.init.constant_(layer.weight, i + 1.0)
    x = torch.randn(3, 4, 4, 3, 5)
    parameters, buffers = stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")
    y = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)))(parameters, buffers, x)
    assert_close(y, torch.stack([layer(part) for layer, part in zip(layers, x, strict=True)]))


@every_layer
def test_forward_mode_and_hessian_of_modules(cpu_backend: str, name: str) -> None:
    ours, theirs = (layer.double() for layer in (LAYERS[name](fastnorm), LAYERS[name](nn)))
    x, t = torch.randn(2, 4, 3, 5, dtype=double), torch.randn(2, 4, 3, 5, dtype=double)
    assert_close(*(jvp(layer, (x,), (t,)) for layer in (ours, theirs)))
    small = torch.randn(1, 4, 3, 5, dtype=double)
    assert_close(*(hessian(lambda x, layer=layer: layer(x).pow(3).sum())(small) for layer in (ours, theirs)))


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "layer": (lambda x: layer_norm(x, x.shape[-1:]), lambda x: F.layer_norm(x, x.shape[-1:])),
    "rms": (lambda x: rms_norm(x, x.shape[-2:]), lambda x: F.rms_norm(x, x.shape[-2:])),
    "group": (lambda x: group_norm(x, 2), lambda x: F.group_norm(x, 2)),
    "instance": (instance_norm, F.instance_norm),
    "position": (layer_norm_2d, lambda x: F.layer_norm(x.movedim(1, -1), x.shape[1:2], eps=1e-6).movedim(-1, 1)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap_over_any_dim(cpu_backend: str, name: str) -> None:
    ours, theirs = FUNCTIONS[name]
    x = torch.randn(2, 4, 5, 3, dtype=double)  # [N, C, *], to be batched along another dim
    for dim, out in ((0, 0), (2, 1), (4, 3)):
        batch = torch.stack([x, 2 * x, x - 1], dim)
        assert_close(*(vmap(f, in_dims=dim, out_dims=out)(batch) for f in (ours, theirs)))
        assert_close(*(vmap(grad(lambda x, f=f: f(x).pow(3).sum()), in_dims=dim)(batch) for f in (ours, theirs)))


def test_functionalize_moves_the_statistics(cpu_backend: str) -> None:
    x = torch.randn(3, 2, 4, dtype=double)
    states = [(torch.zeros(2, dtype=double), torch.ones(2, dtype=double)) for _ in range(2)]
    call = torch.func.functionalize(lambda x, m, v: instance_norm(x, m, v))
    assert_close(call(x, *states[0]), instance_norm(x, *states[1]))
    assert_close(*states)
    assert not torch.equal(states[0][0], torch.zeros(2, dtype=double))


def test_tracked_statistics_under_transforms(cpu_backend: str) -> None:
    """Buffers that enter as arguments move once, as without a transform."""
    x = torch.randn(4, 3, 5)
    results = []
    for module in (fastnorm, nn):
        layer = module.InstanceNorm1d(3, affine=True, track_running_stats=True)
        parameters = {key: p.detach() for key, p in layer.named_parameters()}
        buffers = {key: b.clone() for key, b in layer.named_buffers()}

        def loss(p: dict[str, Tensor], b: dict[str, Tensor], layer: nn.Module = layer) -> Tensor:
            return functional_call(layer, (p, b), (x,)).pow(3).sum()

        results.append((grad(loss)(parameters, buffers), buffers))
    assert_close(*results)
