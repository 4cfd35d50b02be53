"""torch.optim's wrapper around `step`, left out where it would have nothing to do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fastnorm.ops.optim_watch import profiled

P = ParamSpec("P")
R = TypeVar("R")


def has_work(self: Optimizer) -> bool:
    """Whether a profiler wants to see the step, or a hook of any kind waits for it."""
    return bool(
        profiled()
        or self._optimizer_step_pre_hooks
        or self._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )


def hooked(step: Callable[P, R]) -> Callable[P, R]:
    """As torch.optim.Optimizer.profile_hook_step, whose entry for the profiler costs 6 to 10 us of every step."""
    whole = Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        chosen = whole if torch.compiler.is_compiling() or has_work(cast(Optimizer, args[0])) else step
        return chosen(*args, **kwargs)

    return wrapper
