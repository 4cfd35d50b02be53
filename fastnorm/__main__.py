"""Command line: ``python -m fastnorm info`` says what is here, ``demo`` trains, ``verify`` compares a model's twin."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import fastnorm
from fastnorm.demo.model import NORMS
from fastnorm.demo.run import run_demo
from fastnorm.demo.settings import OPTS, RECIPES, DemoError, Settings, make_recipe
from fastnorm.ops import BACKENDS
from fastnorm.verify import command


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="python -m fastnorm", description=fastnorm.__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print versions, what was built, and which backend serves what")
    demo = commands.add_parser(
        "demo",
        help="train one small convnet twice, with torch.nn and with fastnorm, and compare",
    )
    demo.add_argument("--data", choices=list(RECIPES), default="digits", help="images to train on (default: digits)")
    demo.add_argument("--norm", choices=list(NORMS), default="batch", help="the net's norm layers (default: batch)")
    demo.add_argument(
        "--opt", choices=list(OPTS), default="sgd", help="the optimizer, as in the lessons (default: sgd)"
    )
    demo.add_argument(
        "--root",
        type=Path,
        default=Path("~/.cache/fastnorm/fashion-mnist"),
        help="folder of the four Fashion-MNIST files, filled by download if it can be (default: %(default)s)",
    )
    demo.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to train")
    demo.add_argument("--backend", choices=["auto", *BACKENDS], help="fastnorm's backend (default: its own choice)")
    demo.add_argument("--seed", type=int, default=0, help="of the weights, the batches and the digits' split")
    recipe = "; ".join(
        f"{name}: {'+'.join(map(str, r.epochs))} epochs, lr {'+'.join(map(str, r.lrs))}, batch {r.batch_size}"
        for name, r in RECIPES.items()
    )
    demo.add_argument("--epochs", help=f"epochs of each phase, such as 3+2 (defaults: {recipe})")
    demo.add_argument("--lr", help="learning rate of each phase, such as 1+0.2; the last one is repeated")
    demo.add_argument("--batch-size", type=int, help="images per batch")
    demo.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for the picture and the numbers")
    demo.add_argument("--no-plot", dest="plot", action="store_false", help="no picture, and no need of matplotlib")
    command.add_arguments(
        commands.add_parser("verify", help="convert a copy of a model, compare it with the original, time both")
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    options = parser().parse_args(argv)
    if options.command == "info":
        print(fastnorm.explain())
        return 0
    if options.command == "verify":
        return command.run(options)
    try:
        settings = _settings(options)
    except DemoError as error:
        print(f"fastnorm demo: {error}", file=sys.stderr)
        return 2
    return run_demo(settings)


def _settings(options: argparse.Namespace) -> Settings:
    """Raises DemoError when a value makes no sense."""
    recipe = make_recipe(
        options.data, epochs=options.epochs, lr=options.lr, batch_size=options.batch_size, opt=options.opt
    )
    if options.threads is not None and options.threads < 1:
        raise DemoError(f"--threads must be at least 1, got {options.threads}")
    if not 0 <= options.seed < 2**63:
        raise DemoError(f"--seed must lie in 0..2^63-1, got {options.seed}")
    return Settings(
        data=options.data,
        norm=options.norm,
        opt=options.opt,
        recipe=recipe,
        is_default=recipe == RECIPES[options.data] and options.norm == "batch" and options.opt == "sgd",
        root=options.root.expanduser(),
        device=options.device,
        backend=options.backend,
        seed=options.seed,
        threads=options.threads,
        out=options.out.expanduser(),
        plot=options.plot,
    )


if __name__ == "__main__":
    sys.exit(main())
