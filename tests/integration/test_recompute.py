"""fastnorm.recompute: fewer bytes kept for backward, the same bits of every gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import fastnorm
from fastnorm import GeneralRelu

pytestmark = pytest.mark.usefixtures("recorder")

ACT = GeneralRelu(0.1, 0.4, 1.5)


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), fastnorm.BatchNorm2d(8, act=ACT), nn.Conv2d(8, 4, 3), GeneralRelu(0.1), nn.Conv2d(4, 2, 1)
    )


def group_net() -> nn.Module:
    first, second = fastnorm.GroupNorm(2, 8, act=nn.ReLU()), fastnorm.InstanceNorm2d(4)
    return nn.Sequential(nn.Conv2d(3, 8, 3), first, nn.Conv2d(8, 4, 3, padding=1), second, nn.Conv2d(4, 2, 1))


def linear_net() -> nn.Module:
    """Linear layers save a view of a 3-d input."""
    return nn.Sequential(
        nn.Linear(12, 16), fastnorm.LayerNorm(16), nn.Linear(16, 16), fastnorm.RMSNorm(16), nn.Linear(16, 2)
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (conv_net, (4, 3, 10, 10)),
    "group": (group_net, (4, 3, 10, 10)),
    "linear": (linear_net, (3, 5, 12)),
}


def kept(run: Callable[[], Tensor], recompute: bool) -> int:
    """Bytes that run() keeps for backward, each storage once."""
    storages: dict[int, tuple[Tensor, int]] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t, t.untyped_storage().nbytes()
        return t

    counter = saved_tensors_hooks(pack, lambda t: t)
    with fastnorm.recompute(rest=counter) if recompute else counter:
        y = run()
    del y
    return sum(size for _, size in storages.values())


def gradients(
    net: nn.Module, x: Tensor, around: Callable[[], contextlib.AbstractContextManager[object]]
) -> list[Tensor]:
    torch.manual_seed(1)
    with around():
        y = net(x)
    return list(torch.autograd.grad(y, [x, *net.parameters()], torch.randn_like(y)))


def leaf(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(shape, requires_grad=True)


@pytest.mark.parametrize("name", NETS)
def test_less_is_kept_and_no_bit_changes(name: str) -> None:
    build, shape = NETS[name]
    net, x = build(), leaf(*shape)
    results = [net[:2](x), net[:4](x)]  # what the two layers behind a norm keep ordinarily
    before, after = kept(partial(net, x), False), kept(partial(net, x), True)
    assert before - after == sum(y.untyped_storage().nbytes() for y in results)
    plain, again = (gradients(net, x, around) for around in (contextlib.nullcontext, fastnorm.recompute))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_running_statistics_move_once() -> None:
    layer, conv, x = fastnorm.BatchNorm2d(3), nn.Conv2d(3, 2, 1), leaf(4, 3, 5, 5)
    with fastnorm.recompute():
        conv(layer(x)).square().sum().backward()
    other = nn.BatchNorm2d(3)
    other(x)
    assert layer.num_batches_tracked == 1
    torch.testing.assert_close(layer.running_mean, other.running_mean)
    torch.testing.assert_close(layer.running_var, other.running_var)


def test_second_derivatives() -> None:
    net, x = conv_net().double(), leaf(2, 3, 6, 6).double().detach().requires_grad_()

    def second(around: Callable[[], contextlib.AbstractContextManager[object]]) -> Tensor:
        with around():
            y = net(x)
            (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            return torch.autograd.grad(dx.square().sum(), x)[0]

    torch.testing.assert_close(second(fastnorm.recompute), second(contextlib.nullcontext), rtol=1e-12, atol=1e-12)


def test_two_users_of_one_result_and_a_retained_graph() -> None:
    layer, one, two, x = fastnorm.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 3, padding=1), leaf(4, 3, 5, 5)

    def run() -> Tensor:
        y = layer(x)
        return one(y) * two(y)

    dy = torch.randn(4, 2, 5, 5)
    expected = torch.autograd.grad(run(), [x, one.weight, two.weight], dy)
    with fastnorm.recompute():
        z = run()
    for _ in range(2):
        found = torch.autograd.grad(z, [x, one.weight, two.weight], dy, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_result_changed_in_place_is_kept_as_it_is() -> None:
    layer, conv, x = fastnorm.BatchNorm2d(3), nn.Conv2d(3, 2, 1), leaf(4, 3, 5, 5)

    def net(x: Tensor) -> Tensor:
        return conv(layer(x).mul_(2))

    dy = torch.randn(4, 2, 5, 5)
    expected = torch.autograd.grad(net(x), [x, conv.weight], dy)
    with fastnorm.recompute():
        y = net(x)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(y, [x, conv.weight], dy), expected, strict=True))


@pytest.mark.parametrize("changed", ["input", "weight"])
def test_a_changed_input_raises(changed: str) -> None:
    layer, conv, x = fastnorm.LayerNorm(6), nn.Linear(6, 2), leaf(4, 6) * 1
    with fastnorm.recompute():
        y = conv(layer(x))
    with torch.no_grad():
        (x if changed == "input" else layer.weight).add_(1)
    with pytest.raises(RuntimeError, match="recompute the result of a norm has been modified by an inplace operation"):
        torch.autograd.grad(y.sum(), conv.weight)


def test_what_is_kept_as_ever() -> None:
    """A residual's sum, evaluation mode, and what was made outside the block."""
    x, conv = leaf(4, 3, 5, 5), nn.Conv2d(3, 2, 1)
    layer = fastnorm.BatchNorm2d(3, act=nn.ReLU())
    with_residual = partial(lambda: conv(layer(x, x.sin())))
    assert kept(with_residual, True) == kept(with_residual, False)
    y = layer(x)
    behind = partial(conv, y)
    assert kept(behind, True) == kept(behind, False)
    layer.eval()
    evaluated = partial(lambda: conv(layer(x)))
    assert kept(evaluated, True) == kept(evaluated, False)


def test_blocks_nest_and_close_after_an_error() -> None:
    layer, conv, x = fastnorm.BatchNorm2d(3), nn.Conv2d(3, 2, 1), leaf(4, 3, 5, 5)
    with pytest.raises(ZeroDivisionError), fastnorm.recompute():
        raise ZeroDivisionError
    with fastnorm.recompute():
        with fastnorm.recompute():
            pass
        assert hasattr(layer(x), "_fastnorm_recipe")
    assert not hasattr(layer(x), "_fastnorm_recipe")
    outside = partial(lambda: conv(layer(x)))
    assert kept(outside, True) < kept(outside, False)


def test_beside_a_checkpoint() -> None:
    net, x = conv_net(), leaf(4, 3, 10, 10)
    inner = net[2:]

    def run(x: Tensor) -> Tensor:
        return checkpoint(inner, net[:2](x), use_reentrant=False)

    dy = torch.randn(4, 2, 6, 6)
    expected = torch.autograd.grad(run(x), [x, *net.parameters()], dy)
    with fastnorm.recompute():
        y = run(x)
    found = torch.autograd.grad(y, [x, *net.parameters()], dy)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_save_on_cpu_takes_the_rest() -> None:
    net, x = conv_net(), leaf(4, 3, 10, 10)
    plain = gradients(net, x, contextlib.nullcontext)
    again = gradients(net, x, lambda: fastnorm.recompute(rest=torch.autograd.graph.save_on_cpu()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
