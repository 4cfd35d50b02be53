"""Train both nets on the same batches in turn, timing every step."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnorm import optim
from fastnorm.demo.data import Data, batches
from fastnorm.demo.progress import Progress
from fastnorm.demo.settings import DemoError, Recipe

EVAL_BATCH = 2048


@dataclasses.dataclass
class History:
    """What one net went through: loss and seconds of each step, mean loss and accuracy of each epoch."""

    losses: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    epoch_loss: list[float] = dataclasses.field(default_factory=list)
    accuracy: list[float] = dataclasses.field(default_factory=list)


def torch_optimizer(opt: str, net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The nearest that torch.optim has to the lessons' optimizer of that name."""
    params, lr = net.parameters(), recipe.lrs[0]
    if opt == "momentum":  # an average of gradients is a sum of them times 1 - momentum
        return torch.optim.SGD(params, lr, momentum=0.9, dampening=0.1)
    if opt == "rmsprop":
        return torch.optim.RMSprop(params, lr, alpha=0.99, eps=1e-5)
    if opt == "adam":
        return torch.optim.Adam(params, lr, betas=(0.9, 0.99), eps=1e-5)
    return torch.optim.SGD(params, lr, momentum=recipe.momentum)


def fastnorm_optimizer(opt: str, net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The lessons' optimizer of that name; "sgd" is the data set's."""
    params, lr = net.parameters(), recipe.lrs[0]
    if opt == "momentum":
        return optim.SGD.lesson(params, lr)
    if opt == "rmsprop":
        return optim.RMSprop.lesson(params, lr)
    if opt == "adam":
        return optim.Adam.lesson(params, lr)
    return optim.SGD(params, lr, momentum=recipe.momentum)


def train(
    nets: Mapping[str, nn.Module], data: Data, recipe: Recipe, *, seed: int, opt: str = "sgd"
) -> Iterator[dict[str, History]]:
    """Train every net on the same batches, the one called fastnorm with fastnorm.optim.

    Yields all histories so far after each epoch.

    The nets take turns batch by batch, and who goes first changes with every batch: what else the machine
    does meets all of them alike. Raises DemoError when a loss is no longer finite.
    """
    generator = torch.Generator().manual_seed(seed)
    histories = {name: History() for name in nets}
    optims = {
        name: (fastnorm_optimizer if name == "fastnorm" else torch_optimizer)(opt, net, recipe)
        for name, net in nets.items()
    }
    steps = len(list(batches(len(data.train_x), recipe.batch_size, generator=torch.Generator())))
    schedule = [recipe.lrs[min(i, len(recipe.lrs) - 1)] for i, n in enumerate(recipe.epochs) for _ in range(n)]
    with Progress(steps * len(schedule), "starting") as progress:
        for epoch, lr in enumerate(schedule, 1):
            for name, net in nets.items():
                net.train()
                optims[name].param_groups[0]["lr"] = lr
            for i, index in enumerate(batches(len(data.train_x), recipe.batch_size, generator=generator)):
                index = index.to(data.train_x.device)
                x, y = data.train_x[index], data.train_y[index]
                for name in list(nets)[:: 1 if i % 2 else -1]:
                    _step(nets[name], optims[name], x, y, histories[name])
                progress.advance(label=f"epoch {epoch} of {len(schedule)}")
            for name, net in nets.items():
                _close_epoch(name, net, data, histories[name], steps)
            progress.clear()
            yield histories


def _step(net: nn.Module, optim: torch.optim.Optimizer, x: Tensor, y: Tensor, history: History) -> None:
    """One timed training step: forward, backward, update."""
    synchronise(x.device)
    start = time.perf_counter()
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    optim.step()
    optim.zero_grad()
    synchronise(x.device)
    history.seconds.append(time.perf_counter() - start)
    history.losses.append(loss.item())


def _close_epoch(name: str, net: nn.Module, data: Data, history: History, steps: int) -> None:
    losses = history.losses[-steps:]
    if not all(math.isfinite(loss) for loss in losses):
        epoch = len(history.epoch_loss) + 1
        raise DemoError(f"the {name} net's loss became infinite or NaN in epoch {epoch}; try a lower --lr")
    history.epoch_loss.append(sum(losses) / len(losses))
    history.accuracy.append(accuracy(net, data.valid_x, data.valid_y))


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers in eval mode, which is where the running statistics are used."""
    net.eval()
    right = sum(
        int((net(part).argmax(1) == labels).sum())
        for part, labels in zip(x.split(EVAL_BATCH), y.split(EVAL_BATCH), strict=True)
    )
    return right / len(y)


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock read now counts the work and not its launch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
