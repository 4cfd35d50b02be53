"""`python -m fastnorm verify module:factory`: verify from a shell, with an exit code."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastnorm.ops import BACKENDS
from fastnorm.ops.backend import use_backend
from fastnorm.verify.api import verify
from fastnorm.verify.reference import brief
from fastnorm.verify.result import Allowed
from fastnorm.verify.trees import Batch, call_arguments, map_tensors

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
FINE, WORSE, BAD_CALL = 0, 1, 2
DESCRIPTION = """Convert a copy of a model, compare it with the original and time both. The factory is a function
without arguments that gives (model, batch), (model, batch, loss), or a model alone, with --input. Exit code: 0 when
all is well, 1 when the converted model is wrong or slower than allowed, 2 when it could not be tried."""


class BadCall(Exception):
    """What the caller got wrong, in one sentence."""


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.description = DESCRIPTION
    p.add_argument("target", metavar="MODULE:FACTORY", help="looked for in the current folder too")
    p.add_argument("--input", type=shape, metavar="N,C,H,W", help="random numbers of this shape, for a model alone")
    p.add_argument("--threads", type=positive, help="CPU threads (default: PyTorch's choice)")
    p.add_argument("--steps", type=int, default=20, help="rounds to time, 0 for none (default: %(default)s)")
    p.add_argument(
        "--time-budget", type=float, default=20.0, metavar="S", help="seconds of timing (default: %(default)s)"
    )
    p.add_argument("--max-slowdown", type=float, default=Allowed.slowdown, metavar="X",
                   help="how many times the original's time is allowed (default: %(default)s)")  # fmt: skip
    p.add_argument("--no-fuse", dest="fuse", action="store_false", help="replace norms only")
    p.add_argument("--channels-last", action="store_true", help="the model and its images in channels_last")
    p.add_argument("--dtype", choices=list(DTYPES), help="convert model and floating inputs first")
    p.add_argument("--device", help="move model and batch there first")
    p.add_argument("--backend", choices=["auto", *BACKENDS], help="fastnorm's backend (default: its own choice)")
    p.add_argument("--seed", type=int, default=0, help="of the model's random numbers and of --input")
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything there")


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be numbers with commas between, such as 8,3,224,224; got {text!r}"
        ) from None
    if any(size < 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"sizes cannot be negative, got {text!r}")
    return sizes


def run(options: argparse.Namespace) -> int:
    """Prints the table and returns the exit code."""
    try:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        allowed = Allowed(slowdown=options.max_slowdown)
        model, batch, loss = placed(*subject(options), options)
        with use_backend(options.backend) if options.backend else nullcontext():
            found = verify(
                model, batch, loss=loss, steps=options.steps, fuse=options.fuse, seed=options.seed,
                time_budget=options.time_budget, allowed=allowed,
            )  # fmt: skip
        if options.json:
            options.json.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    except (BadCall, ValueError, OSError) as error:
        print(f"fastnorm verify: {error}", file=sys.stderr)
        return BAD_CALL
    except Exception as error:  # out of the caller's own code: show where
        traceback.print_exc()
        print(f"fastnorm verify: {options.target} cannot run: {brief(error)}", file=sys.stderr)
        return BAD_CALL
    print(found)
    return FINE if found.ok else WORSE


def subject(options: argparse.Namespace) -> tuple[nn.Module, Batch, Callable[[Any], Tensor] | None]:
    """What the factory gives: model, batch and loss."""
    given = factory(options.target)()
    if isinstance(given, nn.Module):
        if options.input is None:
            raise BadCall(f"{options.target} gives a model without a batch: pass --input with its shape")
        generator = torch.Generator().manual_seed(options.seed)
        return given, torch.randn(options.input, generator=generator), None
    if not isinstance(given, tuple) or len(given) not in (2, 3) or not isinstance(given[0], nn.Module):
        raise BadCall(
            f"{options.target} must give (model, batch), (model, batch, loss) or a model, not {describe(given)}"
        )
    if options.input is not None:
        raise BadCall(f"{options.target} gives a batch: leave --input out")
    return given[0], given[1], given[2] if len(given) == 3 else None


def describe(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return type(value).__name__


def factory(target: str) -> Callable[[], Any]:
    """The function that `package.module:function` names."""
    module_name, colon, name = target.partition(":")
    if not (colon and module_name and name):
        raise BadCall(f"{target!r} is not of the form module:factory")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # it is there, but imports something that is not
        raise BadCall(f"no module named {error.name!r} in {Path.cwd()} or among the installed packages") from None
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise BadCall(f"module {module_name!r} has no {name!r}")
        found = getattr(found, part)
    if not callable(found):
        raise BadCall(f"{target} is no function, but {describe(found)}")
    made: Callable[[], Any] = found
    return made


def placed(
    model: nn.Module, batch: Batch, loss: Callable[[Any], Tensor] | None, options: argparse.Namespace
) -> tuple[nn.Module, Batch, Callable[[Any], Tensor] | None]:
    """The model and its batch in the dtype, on the device and in the layout that were asked for."""
    dtype = DTYPES[options.dtype] if options.dtype else None
    model = model.to(device=options.device, dtype=dtype)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs forget it

    def place(t: Tensor) -> Tensor:
        t = t.to(device=options.device, dtype=dtype if t.is_floating_point() else None)
        return t.contiguous(memory_format=torch.channels_last) if options.channels_last and t.dim() == 4 else t

    args, kwargs = call_arguments(batch)
    return model, map_tensors(kwargs, place) if kwargs else map_tensors(args, place), loss
