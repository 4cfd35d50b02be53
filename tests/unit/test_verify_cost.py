"""fastnorm.verify: what it says of time and memory, and how."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnorm
from fastnorm.convert import ConversionReport
from fastnorm.timing import Timing, round_ratios
from fastnorm.verify import Comparison, Speed, Verification
from tests.unit.verify_models import convnet, images

FAST = Speed("inference", 2e-3, 1e-3, ratio=2.0, low=1.9, high=2.1, highest=2.2, rounds=5, noisy=False)
SLOW = replace(FAST, what="training step", converted=3e-3, ratio=0.66, low=0.6, high=0.7, highest=1.1)
RIGHT = Comparison("training", "outputs", "output", converted=1e-6, original=2e-6, allowed=1e-5, size=3.0)
WRONG = replace(RIGHT, name="output.b", converted=1.0)
WORST = replace(RIGHT, name="output.c", problem="is missing in the converted model")
ZERO = replace(RIGHT, kind="gradients", name="bias", size=1e-7)


def verification(*, comparisons: tuple[Comparison, ...] = (RIGHT,), speeds: tuple[Speed, ...] = ()) -> Verification:
    return Verification(ConversionReport(), comparisons, speeds, (4 << 20, 3 << 20), ("a note",), fastnorm.Allowed())


def test_slowness_is_a_failure_only_if_it_is_sure() -> None:
    assert not verification(speeds=(SLOW,)).ok
    assert "training step: 1.515 times the original's time, 1.02 is allowed" in verification(speeds=(SLOW,)).failures
    assert verification(speeds=(replace(SLOW, noisy=True), FAST)).ok
    assert not verification(speeds=(replace(SLOW, noisy=True, highest=0.9), FAST)).ok
    assert verification(speeds=(replace(SLOW, high=0.99),)).ok
    assert replace(verification(speeds=(SLOW,)), allowed=fastnorm.Allowed(slowdown=1.6)).ok
    assert replace(verification(speeds=(SLOW,)), allowed=fastnorm.Allowed(slowdown=None)).ok


def test_the_worst_comes_first() -> None:
    found = verification(comparisons=(RIGHT, WRONG, WORST, ZERO))
    assert not found.ok and [failure.split(" is ")[0] for failure in found.failures] == [
        "training: outputs, output.c", "training: outputs, output.b",
    ]  # fmt: skip
    assert [one.name for one in found.worst()] == ["output.c", "bias"]


def test_the_table() -> None:
    text = str(verification(comparisons=(RIGHT, ZERO), speeds=(FAST, SLOW)))
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert rows["training: outputs"][2:] == ["output", "3.3e-07", "6.7e-07", "3.3e-06"]
    assert rows["training: gradients"][2:] == ["bias", "1.0e-06*", "2.0e-06*", "1.0e-05*"]  # not over a size of zero
    assert rows["inference"][1:] == ["2.00", "ms", "1.00", "ms", "2.00", "1.90", "..", "2.10"]
    assert "4.00 MiB -> 3.00 MiB (-25.0%)" in text and "note: a note" in text and "\nok" not in text
    assert str(verification()).endswith("\nok")
    many = tuple(replace(WRONG, name=f"output[{i}]") for i in range(30))
    assert str(verification(comparisons=many)).count("FAIL") == 11


def test_everything_as_json() -> None:
    plain = json.loads(json.dumps(verification(comparisons=(RIGHT, WORST), speeds=(FAST,)).to_dict(), allow_nan=False))
    assert plain["ok"] is False and plain["saved_bytes"] == {"original": 4 << 20, "converted": 3 << 20}
    assert plain["comparisons"][0]["converted"] == 1e-6 and plain["speeds"][0]["ratio"] == 2.0
    infinite = verification(comparisons=(replace(WRONG, converted=float("inf")),)).to_dict()
    assert infinite["comparisons"][0]["converted"] is None


def test_ratios_are_taken_round_by_round() -> None:
    """A slow round is slow for both: the medians alone would say something else."""
    one, other = Timing(1, [2.0, 20.0, 4.0]), Timing(1, [1.0, 10.0, 32.0])
    assert round_ratios(one, other) == [0.125, 2.0, 2.0]
    disturbed = Timing(1, [8.0], [2.0, 4.0], noisy=True)
    assert round_ratios(disturbed, Timing(1, [1.0, 1.0, 1.0])) == [2.0, 4.0, 8.0]


def test_a_slowed_norm_is_found(monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    """On one thread, whose clock is CPU time: other tests run beside this one."""
    torch.set_num_threads(1)
    right = fastnorm.BatchNorm2d.forward

    def slow(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        end = time.thread_time() + 0.005
        while time.thread_time() < end:
            pass
        return right(self, x, *args, **kwargs)

    monkeypatch.setattr(fastnorm.BatchNorm2d, "forward", slow)
    found = fastnorm.verify(convnet(), images(), fuse=False, steps=5, time_budget=0.5)
    assert {one.what for one in found.speeds if one.slower_than(1.02)} == {"training step", "inference"}
    assert [failure.split(":")[0] for failure in found.failures] == ["training step", "inference"]
    assert all(one.rounds >= 3 and one.low <= one.ratio <= one.high < 1 for one in found.speeds)


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastnorm.BatchNorm2d, "forward", lambda self, x: 2 * x)
    found = fastnorm.verify(convnet(), images(), fuse=False)
    assert not found.ok and found.speeds == () and found.saved is None


def test_fusing_keeps_less_for_the_backward() -> None:
    """LeakyReLU alone keeps its input as well; fused, there is no tensor between norm and activation."""
    model = convnet(activation=nn.LeakyReLU(0.1))
    fused, plain = (fastnorm.verify(model, images(), steps=0, fuse=fuse).saved for fuse in (True, False))
    assert fused is not None and plain is not None and fused[0] == plain[0]
    normalised = 4 * 8 * 6 * (8 * 8 + 6 * 6)  # bytes: two norms, 6 images each
    assert plain[1] - fused[1] == normalised and fused[1] < fused[0]


def test_timing_leaves_the_batch_alone() -> None:
    x = images().requires_grad_()
    fastnorm.verify(convnet(), x, steps=1, time_budget=0.01)
    assert x.grad is None and torch.equal(x, images())
