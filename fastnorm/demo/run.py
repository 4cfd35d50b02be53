"""The demo from start to end: load, train both nets, measure, report, draw, judge."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

import fastnorm
from fastnorm.demo import report
from fastnorm.demo.data import Data, load
from fastnorm.demo.measure import norm_act_seconds, saved_by_training
from fastnorm.demo.model import GROUPS, build_pair, norm_name
from fastnorm.demo.plot import save_figure
from fastnorm.demo.settings import DemoError, Settings, require
from fastnorm.demo.train import History, train
from fastnorm.ops.backend import resolve


def run_demo(settings: Settings) -> int:
    """Run the demo and return its exit code: 0 if every check passed, 1 if one failed or it could not run."""
    try:
        with fastnorm.use_backend(settings.backend) if settings.backend else contextlib.nullcontext():
            return _run(settings)
    except DemoError as error:
        print(f"fastnorm demo: {error}", file=sys.stderr)
        return 1


def _run(settings: Settings) -> int:
    if settings.plot:
        require("matplotlib")  # a missing package is better known before training than after it
    device = _device(settings.device)
    backend = _backend(device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    _make_folder(settings.out)
    data = load(settings.data, root=settings.root, seed=settings.seed).to(device)
    nets = build_pair(
        ks=settings.recipe.first_kernel,
        seed=settings.seed,
        norm=settings.norm,
        side=data.train_x.shape[-1],
        device=device,
    )
    _print_head(settings, data, backend)
    histories = _train(nets, data, settings)
    summary = _summarise(settings, backend, nets, data, histories)
    print("", *report.summary_lines(summary), sep="\n")
    named = [settings.data, *([settings.norm] if settings.norm != "batch" else [])]
    stem = settings.out / "_".join(["demo", *named, *([settings.opt] if settings.opt != "sgd" else [])])
    if settings.plot:
        save_figure(stem.with_suffix(".png"), histories, summary)
    stem.with_suffix(".json").write_text(json.dumps(dataclasses.asdict(summary), indent=2) + "\n")
    picture = f"{stem.with_suffix('.png')} and " if settings.plot else ""
    print(f"\nwrote {picture}{stem.with_suffix('.json')}")
    return _judge(settings, summary)


def _device(name: str) -> torch.device:
    """Raises DemoError if this machine or this build of PyTorch has no such device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise DemoError("--device cuda was asked for, but PyTorch finds no CUDA device here")
    return torch.device(name)


def _make_folder(path: Path) -> None:
    """Before training, so that results are not lost for want of a place to put them."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"--out {path} cannot be made a folder ({error.strerror})") from error


def _backend(device: torch.device) -> str:
    """The backend that will serve the fastnorm net. Raises DemoError if the one asked for cannot."""
    try:
        return resolve(torch.empty(0, device=device), None, "batch_norm")
    except RuntimeError as error:
        raise DemoError(str(error)) from error


def _print_head(settings: Settings, data: Data, backend: str) -> None:
    recipe = settings.recipe
    size = " x ".join(str(n) for n in data.train_x.shape[1:])
    epochs, lrs = ("+".join(f"{value:g}" for value in values) for values in (recipe.epochs, recipe.lrs))
    counts = f"{len(data.train_x)} training and {len(data.valid_x)} validation"
    print(f"data     {settings.data}: {counts} images, {size}")
    print(f"         training images: mean {data.train_x.mean():.4f}, std {data.train_x.std():.4f}")
    named = f"SGD (momentum {recipe.momentum:g})" if settings.opt == "sgd" else f"the lessons' {settings.opt}"
    print(f"recipe   {epochs} epochs at lr {lrs}, {named}, batch {recipe.batch_size}")
    print(f"on       {_device_words(settings.device)}, seed {settings.seed}, torch {torch.__version__}")
    name = norm_name(settings.norm)
    sizes = {"layer": "(nf, h, w)", "rms": "(nf, h, w)", "group": f"{GROUPS}, nf"}.get(settings.norm, "nf")
    print(f"nets     torch.nn: {name}, then GeneralRelu(0.1, 0.4) written with leaky_relu and sub")
    print(f"         fastnorm: {name}({sizes}, act=GeneralRelu(0.1, 0.4)), backend {backend}\n", flush=True)


def _device_words(name: str) -> str:
    if name == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, threads: {torch.get_num_threads()}"


def _train(nets: Mapping[str, nn.Module], data: Data, settings: Settings) -> dict[str, History]:
    histories: dict[str, History] = {}
    for histories in train(nets, data, settings.recipe, seed=settings.seed, opt=settings.opt):
        if len(histories["fastnorm"].epoch_loss) == 1:
            print(report.first_loss_line(histories), "", report.table_head(), sep="\n")
        print(report.table_row(histories), flush=True)
    return histories


def _summarise(
    settings: Settings,
    backend: str,
    nets: Mapping[str, nn.Sequential],
    data: Data,
    histories: Mapping[str, History],
) -> report.Summary:
    batch = data.train_x[: settings.recipe.batch_size].clone()  # a view would keep all images' storage
    steps = {name: statistics.median(history.seconds) for name, history in histories.items()}
    return report.Summary(
        data=settings.data,
        norm=settings.norm,
        opt=settings.opt,
        device=_device_words(settings.device),
        threads=torch.get_num_threads(),
        backend=backend,
        seed=settings.seed,
        batch_size=len(batch),
        valid_count=len(data.valid_x),
        target=settings.recipe.target,
        accuracy={name: history.accuracy[-1] for name, history in histories.items()},
        first_loss_difference=report.first_loss_difference(histories),
        step_seconds=steps,
        images_per_second={name: len(batch) / seconds for name, seconds in steps.items()},
        train_seconds={name: sum(history.seconds) for name, history in histories.items()},
        norm_act_seconds=norm_act_seconds(nets, batch),
        saved_bytes={name: saved_by_training(net, batch) for name, net in nets.items()},
    )


def _judge(settings: Settings, summary: report.Summary) -> int:
    """Print one sentence per failed check, or that all passed; returns the exit code."""
    found = report.failures(summary, enforce_target=settings.is_default)
    for sentence in found:
        print(f"fastnorm demo: FAILED: {sentence}", file=sys.stderr)
    if not found:
        theirs, ours = summary.accuracy.values()
        goal = f", target {summary.target:.2f} reached" if ours >= summary.target else ""
        print(f"passed: both nets agree at first and end within noise ({abs(ours - theirs):.4f} apart){goal}")
    return 1 if found else 0
