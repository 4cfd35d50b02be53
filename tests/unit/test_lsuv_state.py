"""lsuv_ leaves all but the weights it adjusts as it was: buffers, gradients, modes, hooks, random numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastnorm.init import lsuv_

IMAGES = torch.randn(32, 1, 12, 12, generator=torch.Generator().manual_seed(0))


class Noisy(nn.Module):
    """Everything that a call may change: running statistics, a counter that is replaced, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Conv2d(8, 4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.head(self.drop(torch.relu(self.norm(self.conv(x)))))


@pytest.mark.parametrize("training", (True, False))
def test_everything_else_is_left_as_it_was(training: bool) -> None:
    torch.manual_seed(0)
    net, x = Noisy().train(training), IMAGES
    net.drop.eval()
    net.drop.train(training)
    net.norm.eval()  # a mode of its own, as when a norm is frozen
    net(x).square().mean().backward()
    buffers = {name: (t, t.clone()) for name, t in net.named_buffers()}
    grads = {name: (p.grad, p.grad.clone()) for name, p in net.named_parameters()}
    modes = [m.training for m in net.modules()]
    others = {name: p.clone() for name, p in net.named_parameters() if "norm" in name}
    rng = torch.get_rng_state()
    report = lsuv_(net, x)
    assert report.converged, report
    for name, t in net.named_buffers():
        assert t is buffers[name][0] and torch.equal(t, buffers[name][1]), name
    for name, p in net.named_parameters():
        assert p.grad is grads[name][0] and torch.equal(p.grad, grads[name][1]) and p.requires_grad, name
    assert all(torch.equal(others[name], p) for name, p in net.named_parameters() if name in others)
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(m._forward_hooks for m in net.modules())


def test_running_statistics_in_training_mode() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)), IMAGES
    before = {name: t.clone() for name, t in net.named_buffers()}
    assert lsuv_(net, x).converged
    assert all(torch.equal(before[name], t) for name, t in net.named_buffers())


def test_state_is_put_back_when_the_model_raises() -> None:
    class Fails(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise ZeroDivisionError

    net = Fails()
    before, rng = net.calls, torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        lsuv_(net, IMAGES)
    assert net.calls is before and torch.equal(torch.get_rng_state(), rng)
    assert not any(m._forward_hooks for m in net.modules())
