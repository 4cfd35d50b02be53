"""torch.optim's wrapper around `step`, left out where it would have nothing to do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer, optimizer

from fastnorm.ops.optim_watch import profiled


def has_work(self: Optimizer) -> bool:
    """Whether a profiler wants to see the step, or a hook of any kind waits for it."""
    return bool(
        profiled()
        or self._optimizer_step_pre_hooks
        or self._optimizer_step_post_hooks
        or optimizer._global_optimizer_pre_hooks
        or optimizer._global_optimizer_post_hooks
    )


def hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """As torch.optim.Optimizer.profile_hook_step, whose entry for the profiler costs 6 to 10 us of every step."""
    whole = Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def wrapper(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or has_work(self):
            return whole(self, *args, **kwargs)
        return step(self, *args, **kwargs)

    return wrapper
