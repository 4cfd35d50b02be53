"""Two processes (gloo): a converted model and fastnorm's optimizers under DDP, FSDP2 and ZeRO, beside torch's own."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import fastnorm

OPTIMIZERS = {"SGD": {"lr": 0.05, "momentum": 0.9}, "AdamW": {"lr": 0.05, "eps": 1e-3}}


def images() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(4 * 16, 5)).double()


def rows() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 17), nn.LayerNorm(17), nn.ReLU(), nn.Linear(17, 5), nn.LayerNorm(5)).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, shape: tuple[int, ...], rank: int) -> None:
    torch.manual_seed(rank + 1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, *shape, dtype=torch.float64)).square().mean().backward()
        optimizer.step()


def ddp(ours: bool, rank: int, name: str) -> list[Tensor]:
    model = images()
    if ours:
        assert len(fastnorm.convert(model).fused) == 2
    optimizer = getattr(fastnorm.optim if ours else torch.optim, name)
    train(DistributedDataParallel(model), optimizer(model.parameters(), **OPTIMIZERS[name]), (3, 8, 8), rank)
    return [*model.parameters(), *model.buffers()]


def fsdp(ours: bool, rank: int, name: str) -> list[Tensor]:
    model = rows()
    if ours:
        assert len(fastnorm.convert(model).fused) == 1
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[3], model):
        fully_shard(layer, mesh=mesh)
    optimizer = getattr(fastnorm.optim if ours else torch.optim, name)
    train(model, optimizer(model.parameters(), **OPTIMIZERS[name]), (8,), rank)
    return [p.full_tensor() for p in model.parameters()]


def zero(ours: bool, rank: int, name: str) -> list[Tensor]:
    model = rows()
    kind = getattr(fastnorm.optim if ours else torch.optim, name)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=kind, **OPTIMIZERS[name])
    train(DistributedDataParallel(model), optimizer, (8,), rank)
    return list(model.parameters())


WAYS: dict[str, Any] = {"ddp": ddp, "fsdp": fsdp, "zero": zero}


def process(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {
        (way, name, ours): [t.detach().clone() for t in run(ours, rank, name)]
        for way, run in WAYS.items()
        for name in OPTIMIZERS
        for ours in (False, True)
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()  # a process that leaves while the other still talks to it may be aborted
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, list[Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(process, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("way", WAYS)
def test_training_in_two_processes(results: list[dict[Any, list[Tensor]]], way: str, name: str) -> None:
    for found in results:
        theirs, ours = found[way, name, False], found[way, name, True]
        start = list((images() if way == "ddp" else rows()).parameters())
        assert not torch.allclose(theirs[0], start[0])
        for a, b in zip(theirs, ours, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
    parameters = len(start)
    for a, b in zip(results[0][way, name, True][:parameters], results[1][way, name, True][:parameters], strict=True):
        assert torch.equal(a, b)
