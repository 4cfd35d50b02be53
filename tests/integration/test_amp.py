"""Autocast on the CPU: result dtypes as torch.nn's, and a training that stays beside the composed one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import fastnorm

LOW = [torch.bfloat16, torch.float16]


def group_norm(module: Any) -> Any:
    return lambda channels, **more: module.GroupNorm(2, channels, **more)


NORMS: dict[str, Any] = {"batch": lambda module: module.BatchNorm2d, "group": group_norm}


class Net(nn.Module):
    def __init__(self, kind: Any, act: nn.Module | None) -> None:
        super().__init__()
        fused = {"act": act} if act is not None else {}
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = kind(8, **fused)
        self.act = nn.Identity() if fused else nn.LeakyReLU(0.1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.conv(x))).mean((2, 3)))


def pair(norm: str = "batch") -> tuple[Net, Net]:
    theirs = Net(NORMS[norm](nn), None)
    ours = Net(NORMS[norm](fastnorm), nn.LeakyReLU(0.1))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_dtypes_are_those_of_torch(cpu_backend: str, dtype: torch.dtype, training: bool) -> None:
    for given in (torch.float32, torch.bfloat16, torch.float16):
        for own, reference in (
            (fastnorm.BatchNorm2d(3), nn.BatchNorm2d(3)),
            (fastnorm.GeneralRelu(0.1), nn.LeakyReLU(0.1)),
            (fastnorm.LayerNorm(4), nn.LayerNorm(4)),
            (fastnorm.RMSNorm(4), nn.RMSNorm(4)),
            (fastnorm.GroupNorm(3, 3), nn.GroupNorm(3, 3)),
            (fastnorm.InstanceNorm2d(3, affine=True), nn.InstanceNorm2d(3, affine=True)),
        ):
            own.train(training), reference.train(training)
            x = torch.randn(2, 3, 4, 4, dtype=given, requires_grad=True)
            with torch.autocast("cpu", dtype=dtype):
                y, expected = own(x), reference(x)
            assert y.dtype == expected.dtype
            grads = [
                torch.autograd.grad(t.float().sum(), [x, *m.parameters()]) for t, m in ((y, own), (expected, reference))
            ]
            assert [g.dtype for g in grads[0]] == [g.dtype for g in grads[1]]
            assert {n: b.dtype for n, b in own.named_buffers()} == {n: b.dtype for n, b in reference.named_buffers()}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("norm", NORMS)
def test_norm_after_a_low_precision_convolution(cpu_backend: str, dtype: torch.dtype, norm: str) -> None:
    ours, theirs = pair(norm)
    exact = copy.deepcopy(theirs).double()
    x = torch.randn(8, 3, 6, 6)
    with torch.autocast("cpu", dtype=dtype):
        h = ours.conv(x)
        assert h.dtype == dtype
        y, reference = ours.norm(h), theirs.act(theirs.norm(h))
    assert y.dtype == reference.dtype == dtype
    oracle = exact.act(exact.norm(h.double()))
    assert (y - oracle).abs().max() <= (reference - oracle).abs().max() * 1.01
    assert_close(dict(ours.norm.named_buffers()), dict(theirs.norm.named_buffers()))


@pytest.mark.parametrize("norm", NORMS)
def test_five_training_steps(cpu_backend: str, norm: str) -> None:
    """Parameters in fp32, activations in bf16: the two trainings stay together, and both learn."""
    histories, finals = [], []
    for net in pair(norm):
        torch.manual_seed(7)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        x, target = torch.randn(32, 3, 6, 6), torch.randint(0, 4, (32,))
        losses = []
        for _ in range(5):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(net(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        histories.append(torch.stack(losses))
        finals.append(net.state_dict())
        assert losses[-1] < losses[0]
        assert net.norm.weight.grad.dtype == torch.float32
    bf16 = torch.finfo(torch.bfloat16).eps
    assert_close(*histories, rtol=bf16, atol=bf16)
    assert_close(finals[0]["norm.weight"], finals[1]["norm.weight"], rtol=bf16, atol=bf16)
    if norm == "batch":
        assert_close(finals[0]["norm.running_mean"], finals[1]["norm.running_mean"], rtol=bf16, atol=bf16)


def test_residual_of_the_other_dtype(cpu_backend: str) -> None:
    """Under autocast a skip connection is often still fp32 where the convolution's result is bf16."""
    norm = fastnorm.BatchNorm2d(3, act=nn.ReLU())
    x, skip = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16), torch.randn(2, 3, 4, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(x, skip)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and skip.grad.dtype == torch.float32


def test_autocast_with_compile(cpu_backend: str) -> None:
    ours, _ = pair()
    twin = copy.deepcopy(ours)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(compiled(x), twin(x))
