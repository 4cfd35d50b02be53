"""`python -m benchmarks.activation_overhead`: what recording activations adds to a training step of the lessons' net.

Three copies of the net take turns: without hooks, with fastnorm.ActivationStats, and with hooks that compose mean, std
and histogram from torch's functions, as the lessons do.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnorm
from benchmarks.machine import describe
from benchmarks.peers import composed_stats
from fastnorm.demo.model import build
from fastnorm.timing import Plan, Timing, interleave, make_clock, round_ratios

# (batch, side): the demo's digits, and the lessons' Fashion-MNIST at two of their batch sizes.
SIZES = ((64, 16), (256, 28), (1024, 28))
PLAN = Plan(rounds=60, least_rounds=15, batch_seconds=0.03, budget_seconds=25.0)


def lesson_net(side: int) -> nn.Sequential:
    return build(fused=True, ks=5 if side == 28 else 3, seed=0, norm="batch", side=side)


def observed(net: nn.Module) -> list[nn.Module]:
    """Where the lessons look: behind each activation, here fused into the norm."""
    return [module for module in net.modules() if isinstance(module, fastnorm.BatchNorm2d)]


def with_nothing(net: nn.Module) -> Callable[[], None]:
    return lambda: None


def with_stats(net: nn.Module) -> Callable[[], None]:
    return fastnorm.ActivationStats(net, observed(net)).reset


def with_composed(net: nn.Module) -> Callable[[], None]:
    kept: list[Any] = []
    for module in observed(net):
        module.register_forward_hook(lambda module, given, out: kept.append(composed_stats(out.detach())))
    return kept.clear


CANDIDATES = {"plain": with_nothing, "ActivationStats": with_stats, "composed": with_composed}


def training_step(batch: int, side: int, hook: Callable[[nn.Module], Callable[[], None]]) -> Callable[[], None]:
    """A whole step; what was recorded is forgotten at its end, so that nothing piles up."""
    net = lesson_net(side).train()
    forget = hook(net)
    optimizer = fastnorm.optim.SGD(net.parameters(), 1e-3, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 1, side, side, generator=generator)
    y: Tensor = torch.randint(10, (batch,), generator=generator)

    def step() -> None:
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        forget()

    return step


def overhead(timing: Timing, plain: Timing) -> float:
    """The median over rounds: what slows a round down as a whole, on a shared machine, does not count."""
    return statistics.median(round_ratios(timing, plain)) - 1


def measure(batch: int, side: int, threads: int, plan: Plan) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    runs = {name: training_step(batch, side, hook) for name, hook in CANDIDATES.items()}
    timings = interleave(runs, make_clock("cpu", threads), plan)
    rows = []
    for name, timing in timings.items():
        quantiles = timing.quantiles_us()
        share = overhead(timing, timings["plain"])
        rows.append(
            {
                "batch": batch, "side": side, "threads": threads, "candidate": name,
                "quantiles_us": quantiles, "overhead": share, "noisy": timing.noisy,
            }
        )  # fmt: skip
        spread = f"[{quantiles['p25'] / 1e3:.2f} .. {quantiles['p75'] / 1e3:.2f}]"
        noisy = " noisy" if timing.noisy else ""
        size = f"batch {batch:4d} of {side} x {side}, threads {threads}"
        print(
            f"{size}: {name:16} {quantiles['p50'] / 1e3:8.2f} ms {spread}"
            f"{'' if name == 'plain' else f'  {share:+.1%}'}{noisy}",
            flush=True,
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the rows here, as JSON")
    args = parser.parse_args(argv)
    rows = [row for batch, side in SIZES for row in measure(batch, side, args.threads, PLAN)]
    if args.out:
        args.out.write_text(json.dumps(describe() | {"threads": args.threads, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
