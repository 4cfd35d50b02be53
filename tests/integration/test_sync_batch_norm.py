"""SyncBatchNorm in two processes (gloo) against batch norm of the whole batch in one."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import fastnorm
from fastnorm import GeneralRelu, SyncBatchNorm

ACT = GeneralRelu(0.1, 0.4)


def _problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(7, 5, 3, 4, generator=generator, dtype=torch.float64) for _ in range(3))  # type: ignore


def _process(rank: int, port: int, sizes: list[int], folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(sizes))
    x, residual, dy = (t.split(sizes)[rank] for t in _problem())
    layer = SyncBatchNorm(5, dtype=torch.float64, act=ACT)
    x, residual = x.clone().requires_grad_(), residual.clone().requires_grad_()
    y = layer(x, residual)
    y.backward(dy)
    found = [y, x.grad, residual.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var]
    torch.save([t.detach() for t in found], f"{folder}/{rank}.pt")
    dist.barrier()  # a process that leaves while the other still talks to it may be aborted
    dist.destroy_process_group()


@pytest.mark.parametrize("sizes", [[4, 3], [6, 1], [7, 0]], ids=str)
def test_two_processes_are_one_batch(sizes, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_process, args=(port, sizes, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]

    x, residual, dy = _problem()
    layer = fastnorm.BatchNorm2d(5, dtype=torch.float64, act=ACT)
    x.requires_grad_(), residual.requires_grad_()
    y = layer(x, residual)
    y.backward(dy)

    for i, whole in enumerate((y, x.grad, residual.grad)):
        torch.testing.assert_close(torch.cat([parts[0][i], parts[1][i]]), whole.detach())
    torch.testing.assert_close(parts[0][3] + parts[1][3], layer.weight.grad)
    torch.testing.assert_close(parts[0][4] + parts[1][4], layer.bias.grad)
    for part in parts:
        torch.testing.assert_close(part[5], layer.running_mean)
        torch.testing.assert_close(part[6], layer.running_var)


def test_one_process_is_plain_batch_norm():
    x = torch.randn(4, 5, 3, 3)
    torch.manual_seed(0)
    ours, plain = SyncBatchNorm(5, act=ACT), fastnorm.BatchNorm2d(5, act=ACT)
    assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.running_var, plain.running_var)
    assert isinstance(ours, torch.nn.SyncBatchNorm)


def test_convert_keeps_activation_and_parameters():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1), fastnorm.BatchNorm2d(5, act=ACT), torch.nn.BatchNorm2d(5))
    norm = net[1]
    weight, converted = norm.weight, SyncBatchNorm.convert_sync_batchnorm(net)
    assert type(converted[1]) is SyncBatchNorm and type(converted[2]) is SyncBatchNorm
    assert converted[1].weight is weight and converted[1].activation == ACT.activation
    assert not converted[2].activation.active
    assert list(converted.state_dict()) == list(net.state_dict())


@pytest.mark.parametrize(
    "shape, eps, words",
    [((5,), 1e-5, r"at least 2D input \(got 1D"), ((2, 5), 0.0, "eps must be positive"), ((2, 5), float("nan"), "eps")],
)
def test_what_each_process_refuses_before_it_waits_for_the_others(shape, eps, words):
    with pytest.raises(ValueError, match=words):
        fastnorm.functional.synchronized_batch_norm(torch.randn(shape), None, None, eps=eps)
