"""Measured times: which of them count, their ratios, and what the targets say of those."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import TINY
from benchmarks.ratios import all_ratios
from benchmarks.targets import Target, judge
from fastnorm import timing


def made_up_row(candidate: str, median: float, *, status: str = "ok", case: str = "a") -> dict[str, Any]:
    row = {"case": case, "op": "batch_norm", "direction": "fwd", "shape": list(TINY), "layout": "contiguous"}
    row |= {"dtype": "fp32", "threads": 1, "candidate": candidate, "status": status, "message": ""}
    return row | ({"quantiles_us": {"p50": median}} if status in ("ok", "noisy") else {})


def test_ratios_and_verdicts() -> None:
    target = Target("made up", ("batch_norm",), eager=3.0, compile=2.0, floor=1.5)
    good = [made_up_row(n, t) for n, t in (("eager", 8), ("compile", 5), ("fastnorm", 2), ("floor:torch", 1.6))]
    (one,) = all_ratios(good)
    assert (one.eager, one.compile, one.floor) == (4.0, 2.5, 1.25)
    assert [v.passed for v in judge([one], [target])] == [True]
    slower = [made_up_row(n, t, case="b") for n, t in (("eager", 8), ("fastnorm", 4))]
    assert [v.passed for v in judge(all_ratios(good + slower), [target])] == [False]
    wrong = [made_up_row("eager", 8, case="c"), made_up_row("fastnorm", 0, status="FAIL", case="c")]
    (verdict,) = judge(all_ratios(good + wrong), [target])
    assert verdict.passed is False and verdict.failed == 1


def test_host_time_is_judged_by_what_it_adds() -> None:
    target = Target("made up", direction="fwd", extra=5.0)
    for ours, passed in ((12.0, True), (14.0, False)):
        rows = [made_up_row("eager", 8), made_up_row("fastnorm", ours)]
        (verdict,) = judge(all_ratios(rows), [target])
        assert verdict.extra == (ours - 8,) and verdict.passed is passed


def test_disturbed_times_are_not_compared() -> None:
    rows = [
        made_up_row("eager", 800, status="noisy"),
        made_up_row("fastnorm", 2),
        made_up_row("floor:torch", 1),
    ]
    (one,) = all_ratios(rows)
    assert one.eager is None and one.floor == 2.0
    (verdict,) = judge([one], [Target("made up", eager=1.0)])
    assert verdict.passed is None and verdict.uncompared == 1


class FakeClock:
    """A candidate says how long its call takes; every batch of one of them was disturbed."""

    def batch(self, run: timing.Run, calls: int) -> tuple[float, bool]:
        seconds, undisturbed = run()
        return seconds * calls, undisturbed


def test_interleave_keeps_disturbed_batches_apart() -> None:
    plan = timing.Plan(rounds=9, least_rounds=5, batch_seconds=0.01, budget_seconds=0.05)
    done = timing.interleave({"calm": lambda: (1e-3, True), "stormy": lambda: (1e-3, False)}, FakeClock(), plan)
    assert len(done["calm"].accepted) == 9 and not done["calm"].noisy
    assert done["calm"].quantiles_us()["p50"] == pytest.approx(1000)
    assert done["stormy"].noisy and not done["stormy"].accepted and done["stormy"].rejected


def test_quantile_interpolates() -> None:
    assert timing.quantile([1.0, 2.0, 4.0], 0.5) == 2.0
    assert timing.quantile([1.0, 2.0, 4.0], 0.75) == 3.0
    assert timing.quantile([5.0], 0.9) == 5.0


def test_thread_clock_does_not_count_sleep() -> None:
    seconds, undisturbed = timing.ThreadClock().batch(lambda: timing.time.sleep(0.02), 2)
    assert undisturbed and seconds < 0.02


def test_a_replay_of_several_sets_is_divided() -> None:
    timing_of = timing.Timing(1, [8.0, 4.0], [2.0])
    timing_of.divide(4)
    assert (timing_of.accepted, timing_of.rejected) == ([2.0, 1.0], [0.5])


def test_measurements_of_one_candidate_add_up() -> None:
    first, second = timing.Timing(1, [8.0], [2.0]), timing.Timing(1, [4.0, 6.0], [], noisy=True)
    first.add(second)
    assert (first.accepted, first.rejected, first.noisy) == ([8.0, 4.0, 6.0], [2.0], True)
