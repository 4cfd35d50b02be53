"""Timing of several candidates side by side on a machine that is shared with others.

The candidates take turns in random order, so that whatever disturbs the machine disturbs all of them. The
clock of one thread is that thread's own CPU time: waiting for a core does not count. With more threads it
is the wall clock, and a batch counts only if the kernel's run-queue statistics say that our threads were
hardly kept waiting.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

Run = Callable[[], Any]
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long to measure: `rounds` batches of about `batch_seconds`, at most `budget_seconds` in all."""

    rounds: int = 25
    least_rounds: int = 5
    batch_seconds: float = 0.004
    budget_seconds: float = 6.0
    warm_calls: int = 3


QUICK = Plan(rounds=7, least_rounds=3, batch_seconds=0.001, budget_seconds=1.0, warm_calls=2)


@dataclasses.dataclass
class Timing:
    """Seconds a call of one candidate, one figure a batch; `noisy` when too few batches were accepted."""

    calls: int
    accepted: list[float] = dataclasses.field(default_factory=list)
    rejected: list[float] = dataclasses.field(default_factory=list)
    noisy: bool = False

    def add(self, other: Timing) -> None:
        """Take in what another measurement of the same candidate found."""
        self.accepted += other.accepted
        self.rejected += other.rejected
        self.noisy = self.noisy or other.noisy

    def divide(self, parts: int) -> None:
        """Each timed call was so many calls in one."""
        for seconds in (self.accepted, self.rejected):
            seconds[:] = [one / parts for one in seconds]

    def quantiles_us(self) -> dict[str, float]:
        """Quantiles in microseconds. A noisy timing has those of every batch, the disturbed ones too."""
        seconds = sorted(self.accepted + self.rejected if self.noisy else self.accepted)
        return {f"p{round(100 * q)}": 1e6 * quantile(seconds, q) for q in QUANTILES}


class Clock(Protocol):
    """Times a batch of calls, if it is `warm` after one call that brings the candidate's data back into the caches.

    Whole models need no such call: their data do not fit into the caches.
    """

    def batch(self, run: Run, calls: int) -> tuple[float, bool]:
        """(seconds for all calls, whether the batch was undisturbed)."""


@dataclasses.dataclass
class ThreadClock:
    """CPU time of the calling thread. Autograd runs a CPU backward in the thread that asked for it."""

    warm: bool = True

    def batch(self, run: Run, calls: int) -> tuple[float, bool]:
        if self.warm:
            run()
        start = time.thread_time()
        for _ in range(calls):
            run()
        return time.thread_time() - start, True


@dataclasses.dataclass
class WallClock:
    """Wall time, accepted when our threads waited for a core during less than 1 % of it."""

    warm: bool = True
    last: float = 0.004

    def batch(self, run: Run, calls: int) -> tuple[float, bool]:
        # A process that has just slept is scheduled first: rest about as long as the last batch took.
        time.sleep(min(0.05, max(0.002, self.last)))
        if self.warm:
            run()
        waited = run_queue_seconds()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        seconds = time.perf_counter() - start
        self.last = seconds
        return seconds, run_queue_seconds() - waited < 0.01 * seconds


@dataclasses.dataclass
class CudaClock:
    """Time between two events on the current stream."""

    warm: bool = True

    def batch(self, run: Run, calls: int) -> tuple[float, bool]:
        if self.warm:
            run()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, True


class HostClock:
    """Wall time until the calls of a GPU's work return, which is before the work is done. Few calls fit its queue."""

    LONGEST_QUEUE = 100

    def batch(self, run: Run, calls: int) -> tuple[float, bool]:
        run()
        seconds = 0.0
        for first in range(0, calls, self.LONGEST_QUEUE):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(min(calls - first, self.LONGEST_QUEUE)):
                run()
            seconds += time.perf_counter() - start
        return seconds, True


def make_clock(device: str, threads: int, *, warm: bool = True) -> Clock:
    if device == "cuda":
        return CudaClock(warm)
    return ThreadClock(warm) if threads == 1 else WallClock(warm)


def run_queue_seconds() -> float:
    """Seconds that the threads of this process have waited for a core so far; 0 where Linux does not tell."""
    waited = 0
    try:
        tasks = os.listdir("/proc/self/task")
    except OSError:
        return 0.0
    for task in tasks:
        try:
            with open(f"/proc/self/task/{task}/schedstat", "rb") as stat:
                waited += int(stat.read().split()[1])
        except (OSError, IndexError):  # the thread ended meanwhile, or the kernel keeps no statistics
            continue
    return waited * 1e-9


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile of a sorted sequence, interpolated."""
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def round_ratios(one: Timing, other: Timing) -> list[float]:
    """Round by round, how many times other's time one took, sorted: what slows a round as a whole does not count.

    Where batches were rejected, neighbours stand in for rounds; a noisy timing has no other than disturbed ones.
    """
    times, others = (t.rejected + t.accepted if t.noisy else t.accepted for t in (one, other))
    return sorted(a / b for a, b in zip(times, others, strict=False))


def rotate(runs: Sequence[Run]) -> Run:
    """One callable that takes the given ones in turn: the same op over inputs that are not in the cache."""
    if len(runs) == 1:
        return runs[0]
    turn = itertools.cycle(runs)
    return lambda: next(turn)()


def calls_per_batch(run: Run, clock: Clock, plan: Plan) -> int:
    """So many calls that a batch takes about `plan.batch_seconds`; warms the candidate on the way."""
    for _ in range(plan.warm_calls):
        run()
    fastest = clock.batch(run, 1)[0]
    if fastest < plan.batch_seconds:
        fastest = min(fastest, *(clock.batch(run, 1)[0] for _ in range(3)))
    return max(1, min(5000, int(plan.batch_seconds / max(fastest, 1e-7))))


def interleave(runs: Mapping[str, Run], clock: Clock, plan: Plan, *, seed: int = 0) -> dict[str, Timing]:
    """Times every candidate in rounds of random order until each has `plan.rounds` accepted batches.

    Stops after the budget, but not before `plan.least_rounds` batches of each unless those take four times
    that.
    """
    timings = {name: Timing(calls_per_batch(run, clock, plan)) for name, run in runs.items()}
    order = random.Random(seed)
    start = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        while True:
            todo = [name for name in runs if len(timings[name].accepted) < plan.rounds]
            order.shuffle(todo)
            for name in todo:
                timing = timings[name]
                seconds, undisturbed = clock.batch(runs[name], timing.calls)
                (timing.accepted if undisturbed else timing.rejected).append(seconds / timing.calls)
            spent = time.perf_counter() - start
            enough = all(len(t.accepted) >= plan.least_rounds for t in timings.values())
            if not todo or spent > (1 if enough else 4) * plan.budget_seconds:
                break
    finally:
        if collecting:
            gc.enable()
    for timing in timings.values():
        timing.noisy = len(timing.accepted) < plan.least_rounds
    return timings
