"""The lessons' path from a net that does not train to one that does, step by step.

    python examples/lesson.py                      digits; Fashion-MNIST too where its four files lie in --root
    python examples/lesson.py --data digits --out pictures

Each row of the table trains the same small convnet anew, with one thing changed. The activation pictures of some rows
are written to the output folder. Needs scikit-learn and matplotlib: pip install scikit-learn matplotlib
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnorm
from fastnorm import ActivationStats, GeneralRelu, Normalize, init, lr_find, optim
from fastnorm.demo import idx
from fastnorm.demo.data import CLASSES, Data, batches, load_raw
from fastnorm.demo.model import FILTERS, LEAK, SUB
from fastnorm.demo.progress import Progress
from fastnorm.demo.settings import DemoError
from fastnorm.demo.train import accuracy

Optimizer = Callable[..., torch.optim.Optimizer]
MOST_IMAGES = 12_000  # of Fashion-MNIST, so that all rows together take minutes
SEED = 0


@dataclasses.dataclass(frozen=True)
class Row:
    """One training: what the net is made of, how it starts, how it is trained. stem: of its pictures, if it has any."""

    title: str
    lr: float
    act: Callable[[], nn.Module] = nn.ReLU
    norm: str | None = None
    start: str = "default"
    normalised: bool = False
    batch: int = 128
    opt: Optimizer = optim.SGD
    stem: str = ""


def general_relu() -> GeneralRelu:
    return GeneralRelu(LEAK, SUB)


BETTER = Row("", lr=0.2, act=general_relu, start="kaiming", normalised=True)
ROWS = (
    Row("PyTorch's own start, SGD", lr=0.2, stem="default"),
    Row("PyTorch's own start, rate 2", lr=2.0, stem="crash"),
    Row("Kaiming", lr=0.2, start="kaiming"),
    Row("+ normalised input", lr=0.2, start="kaiming", normalised=True, stem="kaiming"),
    dataclasses.replace(BETTER, title="+ GeneralRelu(0.1, 0.4)", stem="general_relu"),
    dataclasses.replace(BETTER, title="+ LSUV", start="lsuv", stem="lsuv"),
    dataclasses.replace(BETTER, title="GeneralRelu + layer norm", norm="layer"),
    dataclasses.replace(BETTER, title="GeneralRelu + batch norm", norm="batch", stem="batch_norm"),
    dataclasses.replace(BETTER, title="+ batches of 32", norm="batch", batch=32),
    dataclasses.replace(BETTER, title="batch norm, Momentum", norm="batch", opt=optim.SGD.lesson, lr=0.4),
    dataclasses.replace(BETTER, title="batch norm, RMSprop", norm="batch", opt=optim.RMSprop.lesson, lr=3e-3),
    dataclasses.replace(BETTER, title="batch norm, Adam", norm="batch", opt=optim.Adam.lesson, lr=6e-3),
)


@dataclasses.dataclass
class Outcome:
    """What a row came to: accuracy on the validation images, loss of the last batch, and its activations."""

    row: Row
    accuracy: float
    loss: float
    seconds: float
    stats: ActivationStats


def build(row: Row) -> nn.Sequential:
    """[N, 1, H, W] -> logits [N, 10]: four convolutions that halve the image, each with norm and activation."""
    torch.manual_seed(SEED)
    net = nn.Sequential()
    for i, (ni, nf) in enumerate(zip((1, *FILTERS[:-1]), FILTERS, strict=True)):
        block = nn.Sequential(nn.Conv2d(ni, nf, 3, stride=2, padding=1, bias=row.norm is None))
        if row.norm == "batch":
            block.append(fastnorm.BatchNorm2d(nf, act=row.act()))
        elif row.norm == "layer":
            block.append(fastnorm.LessonLayerNorm(nf, act=row.act()))
        else:
            block.append(row.act())
        net.add_module(f"block{i}", block)
    net.append(nn.Conv2d(FILTERS[-1], CLASSES, 3, stride=2, padding=1))
    net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    return net


def started(row: Row, data: Data) -> nn.Sequential:
    """The net of a row with the weights that it starts from."""
    net = build(row)
    if row.start != "default":
        net.apply(partial(init.init_weights, leak=LEAK if row.act is general_relu else 0.0))
    if row.start == "lsuv":
        # The last layer has no activation behind it: its own output is measured.
        blocks = [block[0] for block in net if isinstance(block, nn.Sequential)]
        report = init.lsuv_(net, data.train_x[: row.batch], modules=blocks, measure="activation")
        print(f"\n{report}\n", flush=True)
    return net


def activations(net: nn.Sequential) -> list[nn.Module]:
    """What stands at the end of each block: the activation, or the norm that it is fused into."""
    return [block[-1] for block in net if isinstance(block, nn.Sequential)]


def shuffled(data: Data, row: Row, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(SEED + epoch)
    for index in batches(len(data.train_x), row.batch, generator=generator):
        if len(index) == row.batch:  # a smaller one at the end would be a dark stripe in the pictures
            yield data.train_x[index], data.train_y[index]


def train(row: Row, data: Data, epochs: int, progress: Progress) -> Outcome:
    """Trains one row to its end, or to the first loss that is not finite."""
    net = started(row, data)
    optimizer = row.opt(net.parameters(), row.lr)
    begin, last = time.perf_counter(), math.nan
    with ActivationStats(net, activations(net)) as stats:
        for epoch in range(epochs):
            net.train()
            for x, y in shuffled(data, row, epoch):
                loss = F.cross_entropy(net(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            last = float(loss.detach())
            progress.advance(label=row.title)
            if not math.isfinite(last):
                progress.advance(epochs - epoch - 1)
                break
    return Outcome(row, accuracy(net, data.valid_x, data.valid_y), last, time.perf_counter() - begin, stats)


def draw(outcome: Outcome, folder: Path) -> None:
    """The three pictures of a row's activations."""
    for name in ("plot_stats", "color_dim", "dead_chart"):
        figure = getattr(outcome.stats, name)()
        figure.suptitle(f"{outcome.row.title}: {figure.get_suptitle()[0].lower()}{figure.get_suptitle()[1:]}")
        figure.savefig(folder / f"{outcome.row.stem}_{name}.png", dpi=110)


def print_table(outcomes: list[Outcome]) -> None:
    width = max(len(outcome.row.title) for outcome in outcomes)
    print(f"{'':{width}}  batch     rate  accuracy  last loss  last layer: mean    std   smallest bin  seconds")
    for one in outcomes:
        layer = one.stats.layers[-1]
        mean, std, smallest = (float(values[-1]) for values in (layer.means, layer.stds, layer.smallest))
        print(
            f"{one.row.title:{width}}  {one.row.batch:5d}  {one.row.lr:7g}  {one.accuracy:8.4f}  {one.loss:9.4f}"
            f"  {mean:16.3f}  {std:5.3f}  {smallest:13.1%}  {one.seconds:7.1f}"
        )


def walk(name: str, args: argparse.Namespace, folder: Path) -> None:
    """All rows on one data set: table, pictures, learning-rate finder."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = load_raw(name, root=args.root, seed=SEED)
    raw = dataclasses.replace(raw, train_x=raw.train_x[:MOST_IMAGES], train_y=raw.train_y[:MOST_IMAGES])
    top = float(raw.train_x.max())  # as the lessons' images: from 0 to 1
    raw = dataclasses.replace(raw, train_x=raw.train_x / top, valid_x=raw.valid_x / top)
    norm = Normalize.of(raw.train_x)
    centred = dataclasses.replace(raw, train_x=norm(raw.train_x), valid_x=norm(raw.valid_x))
    epochs = args.epochs or (8 if name == "digits" else 2)
    print(f"{name}: {len(raw.train_x)} training, {len(raw.valid_x)} validation images; inputs {norm}; {epochs} epochs")
    with Progress(epochs * len(ROWS), "starting") as progress:
        outcomes = [train(row, centred if row.normalised else raw, epochs, progress) for row in ROWS]
    print_table(outcomes)
    curve = lr_find(started(BETTER, centred), optim.SGD, list(shuffled(centred, BETTER, 0)), start=1e-3, end=50.0)
    print(f"\nlearning-rate finder, {BETTER.start} start, SGD: lowest loss at {curve.lowest:.2g}")
    if args.plot:
        for outcome in outcomes:
            if outcome.row.stem:
                draw(outcome, folder)
        curve.plot().savefig(folder / "lr_find.png", dpi=110)
        print(f"pictures in {folder}")
    print(f"\nactivations of the last row\n{outcomes[-1].stats.summary()}\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="The lessons' path, step by step.")
    parser.add_argument("--data", choices=("digits", "fashion-mnist", "shapes"), help="one data set only")
    parser.add_argument("--root", type=Path, default=Path("data"), help="where Fashion-MNIST's files lie")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for the pictures")
    parser.add_argument("--epochs", type=int, help="of every row")
    parser.add_argument(
        "--threads", type=int, default=1, help="1: these batches are too small to share on a busy machine"
    )
    parser.add_argument("--no-plot", dest="plot", action="store_false", help="no pictures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = [args.data] if args.data else ["digits", *(["fashion-mnist"] if idx.complete(args.root) else [])]
    try:
        for name in chosen:
            walk(name, args, args.out / f"lesson_{name}")
    except DemoError as error:
        print(f"lesson: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
