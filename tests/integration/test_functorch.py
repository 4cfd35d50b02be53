"""torch.func's transforms against composed PyTorch, whose every operation has their rules."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.testing import assert_close

import fastnorm
from fastnorm.functional import batch_norm, general_relu

double = torch.float64
MEAN, VAR = torch.linspace(-1, 1, 2, dtype=double), torch.linspace(0.5, 2, 2, dtype=double)
Norm = Callable[..., Tensor]


def act(z: Tensor) -> Tensor:
    return (F.leaky_relu(z, 0.1) - 0.4).clamp_max(1.0)


def composed(x: Tensor, w: Tensor, b: Tensor, r: Tensor, training: bool) -> Tensor:
    """Written out: torch's own batch norm has no vmap rule nor forward derivative of its training mode."""
    view = (1, -1, *([1] * (x.dim() - 2)))
    mean, var = MEAN, VAR
    if training:
        dims = [d for d in range(x.dim()) if d != 1]
        mean, var = x.mean(dims), x.var(dims, correction=0)
    z = (x - mean.view(view)) / (var.view(view) + 1e-5).sqrt() * w.view(view) + b.view(view)
    return act(z + r)


def fused(x: Tensor, w: Tensor, b: Tensor, r: Tensor, training: bool) -> Tensor:
    stats = (None, None) if training else (MEAN, VAR)
    return batch_norm(x, *stats, w, b, training, act=fastnorm.GeneralRelu(0.1, 0.4, 1.0), residual=r)


def arguments() -> list[Tensor]:
    return [torch.randn(s, dtype=double) for s in ((3, 2, 2), (2,), (2,), (3, 2, 2))]


both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def scalar(function: Norm, training: bool) -> Callable[..., Tensor]:
    weights = torch.randn(3, 2, 2, dtype=double)
    return lambda *inputs: (function(*inputs, training) * weights).square().sum()


def each(call: Callable[[Norm], object]) -> tuple[object, object]:
    """call(ours) and call(composed) from the same random state."""
    results = []
    for function in (fused, composed):
        torch.manual_seed(4)
        results.append(call(function))
    return results[0], results[1]


@both_modes
def test_grad_and_value(cpu_backend: str, training: bool) -> None:
    inputs = arguments()
    assert_close(*each(lambda f: grad(scalar(f, training), argnums=(0, 1, 2, 3))(*inputs)))
    assert_close(*each(lambda f: torch.func.grad_and_value(scalar(f, training))(*inputs)))


@both_modes
def test_grad_of_grad(cpu_backend: str, training: bool) -> None:
    inputs = arguments()

    def norm_of_gradient(f: Norm) -> Tensor:
        first = grad(scalar(f, training))
        return grad(lambda *args: first(*args).square().sum(), argnums=(0, 1, 3))(*inputs)

    assert_close(*each(norm_of_gradient))


@both_modes
def test_jvp_and_vjp(cpu_backend: str, training: bool) -> None:
    inputs, tangents = tuple(arguments()), tuple(arguments())
    assert_close(*each(lambda f: jvp(lambda *a: f(*a, training), inputs, tangents)))
    assert_close(*each(lambda f: vjp(lambda *a: f(*a, training), *inputs)[1](tangents[0])))


@both_modes
def test_jacobians_and_hessian(cpu_backend: str, training: bool) -> None:
    inputs = arguments()
    argnums = (0, 1, 2, 3)
    assert_close(*each(lambda f: jacrev(lambda *a: f(*a, training), argnums)(*inputs)))
    assert_close(*each(lambda f: jacfwd(lambda *a: f(*a, training), argnums)(*inputs)))
    assert_close(*each(lambda f: hessian(scalar(f, training), (0, 1))(*inputs)))


@both_modes
def test_vmap_over_models_and_inputs(cpu_backend: str, training: bool) -> None:
    batches = [torch.stack([a, 2 * a, a - 1]) for a in arguments()]
    assert_close(*each(lambda f: vmap(lambda *a: f(*a, training))(*batches)))
    shared = [batches[0], *arguments()[1:]]
    assert_close(*each(lambda f: vmap(lambda *a: f(*a, training), in_dims=(0, None, None, None))(*shared)))
    moved = batches[0].movedim(0, 2)
    assert_close(*each(lambda f: vmap(lambda x: f(x, *shared[1:], training), in_dims=2, out_dims=1)(moved)))


@both_modes
def test_vmap_of_grad_and_grad_of_vmap(cpu_backend: str, training: bool) -> None:
    batches = [torch.stack([a, 2 * a]) for a in arguments()]
    assert_close(*each(lambda f: vmap(grad(scalar(f, training), argnums=(0, 1)))(*batches)))

    def over_vmap(f: Norm) -> Tensor:
        return grad(lambda *a: vmap(lambda *b: f(*b, training))(*a).square().sum())(*batches)

    assert_close(*each(over_vmap))


def test_general_relu_under_every_transform(cpu_backend: str) -> None:
    x, t = torch.randn(2, 5, dtype=double), torch.randn(2, 5, dtype=double)

    def ours(x: Tensor) -> Tensor:
        return general_relu(x, 0.1, 0.4, 1.0)

    for transform in (
        lambda f: vmap(f)(x),
        lambda f: grad(lambda x: (f(x) * t).sum())(x),
        lambda f: jvp(f, (x,), (t,)),
        lambda f: jacrev(f)(x),
        lambda f: hessian(lambda x: f(x).pow(3).sum())(x),
        lambda f: vmap(grad(lambda x: f(x).square().sum()))(x),
    ):
        assert_close(transform(ours), transform(act))


def test_outer_autograd_through_a_transform(cpu_backend: str) -> None:
    """A gradient taken inside torch.func, then backward() outside of it."""
    inputs = [a.requires_grad_() for a in arguments()]

    def outside(f: Norm) -> tuple[Tensor, ...]:
        inner = grad(scalar(f, True))(*inputs)
        return torch.autograd.grad(inner.square().sum(), inputs)

    assert_close(*each(outside))


class Net(nn.Module):
    def __init__(self, *, ours: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        norm = fastnorm.BatchNorm2d(3, act=nn.LeakyReLU(0.1)) if ours else nn.BatchNorm2d(3)
        self.norm = norm
        self.act = nn.Identity() if ours else nn.LeakyReLU(0.1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.conv(x))).mean((2, 3)))


def nets() -> tuple[Net, Net]:
    ours, theirs = Net(ours=True), Net(ours=False)
    with torch.no_grad():
        theirs.norm.running_mean.uniform_(-1, 1)
        theirs.norm.running_var.uniform_(0.5, 1.5)
        theirs.norm.weight.uniform_(0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_per_sample_gradients_in_evaluation(cpu_backend: str) -> None:
    x, target = torch.randn(4, 2, 5, 5), torch.tensor([0, 1, 1, 0])
    results = []
    for net in nets():
        net.eval()
        parameters = {name: p.detach() for name, p in net.named_parameters()}

        def loss(parameters: dict[str, Tensor], x: Tensor, target: Tensor, net: Net = net) -> Tensor:
            return F.cross_entropy(functional_call(net, parameters, (x[None],)), target[None])

        results.append(vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, target))
    assert_close(*results)


def test_modules_in_training_under_transforms(cpu_backend: str) -> None:
    """Buffers that enter as arguments move once, as without a transform; captured ones raise, as torch's."""
    x, t = torch.randn(4, 2, 5, 5), torch.randn(4, 2, 5, 5)
    ours, theirs = nets()
    grads, moved = [], []
    for net in (ours, theirs):
        parameters = {name: p.detach() for name, p in net.named_parameters()}
        buffers = {name: b.clone() for name, b in net.named_buffers()}

        def loss(p: dict[str, Tensor], b: dict[str, Tensor], net: Net = net) -> Tensor:
            return functional_call(net, (p, b), (x,)).square().sum()

        grads.append(grad(loss)(parameters, buffers))
        moved.append(buffers)
        with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
            jvp(net, (x,), (t,))
    assert_close(*grads, rtol=1e-4, atol=1e-4)
    assert_close(*moved)
    assert moved[0]["norm.num_batches_tracked"] == 1


def test_ensemble_of_training_models(cpu_backend: str) -> None:
    """vmap over stacked models, each with running statistics of its own."""
    x = torch.randn(4, 3, 2)
    layers = [fastnorm.BatchNorm1d(3, act=nn.ReLU()) for _ in range(2)]
    for i, layer in enumerate(layers):
        nn.init.constant_(layer.weight, i + 1.0)
    parameters, buffers = torch.func.stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(base, (parameters, buffers), (x,))

    y = vmap(call, in_dims=(0, 0, None))(parameters, buffers, x)
    expected = [layer(x) for layer in layers]
    assert_close(y, torch.stack(expected))
    assert_close(buffers["running_var"], torch.stack([layer.running_var for layer in layers]))
    assert buffers["num_batches_tracked"].tolist() == [1, 1]


def test_functionalize(cpu_backend: str) -> None:
    x = torch.randn(3, 2, 2, 2, dtype=double)
    states = [(MEAN.clone(), VAR.clone()) for _ in range(2)]

    def call(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return batch_norm(x, mean, var, training=True)

    assert_close(torch.func.functionalize(call)(x, *states[0]), call(x, *states[1]))
    assert_close(*states)
