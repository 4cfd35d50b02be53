"""The judge is judged: the composed oracle against torch's own batch norm, and the rule's own arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastnorm.testing import ACTS, NormCase, ReluCase, check, passes, solved, ulp
from fastnorm.testing.compare import Expectation
from fastnorm.testing.composed import compose_norm, composed_relu
from fastnorm.testing.oracle import composed_norm, torch_norm
from fastnorm.testing.problems import build
from fastnorm.testing.sets import sets_of


@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
@pytest.mark.parametrize("data", ("normal", "offset_1e4", "outlier"))
@pytest.mark.parametrize("act", (None, "full"))
def test_oracle_is_torchs_batch_norm(training: bool, data: str, act: str | None) -> None:
    """In float64 the two agree to nearly its last digits: forward and backward."""
    case = NormCase((5, 7, 3, 11), data=data, training=training, act=act, residual="same")
    p = build(case)
    ours, theirs = (compose_norm(case, p, torch.float64, norm) for norm in (composed_norm, torch_norm))
    torch.testing.assert_close(ours.y, theirs.y, rtol=1e-9, atol=1e-10)
    for a, b in zip(ours.gradients(p.dy).values(), theirs.gradients(p.dy).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_expected_statistics_are_torchs() -> None:
    case = NormCase((5, 7, 3, 11), momentum=0.3)
    kept, wanted = solved(case)
    mean, var = kept.running_mean.double(), kept.running_var.double()
    F.batch_norm(kept.x.double(), mean, var, training=True, momentum=0.3)
    torch.testing.assert_close(wanted["running_mean"].exact, mean)
    torch.testing.assert_close(wanted["running_var"].exact, var)


def test_unbiased_and_detached_as_autograd_of_the_definition() -> None:
    case = NormCase((5, 7), unbiased=True, detach_stats=True, weight=None, bias=None)
    kept, wanted = solved(case)
    x = kept.x.double()
    rstd = 1 / (x.var(0) + case.eps).sqrt()
    torch.testing.assert_close(wanted["y"].exact, (x - x.mean(0)) * rstd)
    torch.testing.assert_close(wanted["dx"].exact, kept.dy.double() * rstd)


@pytest.mark.parametrize("act", ACTS)
def test_composed_relu_in_words(act: str) -> None:
    """Against Python, one number at a time."""
    leak, sub, maxv, max_leak = ACTS[act].numbers
    for value in (-7.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 9.0):
        y = value if value > 0 else value * (leak or 0.0)
        y = y - (sub or 0.0)
        if maxv is not None and y > maxv:
            y = maxv + (max_leak or 0.0) * (y - maxv)
        got = float(composed_relu(torch.tensor(value, dtype=torch.float64), *ACTS[act].numbers))
        assert got == pytest.approx(y, rel=1e-15)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_ulp(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    values = torch.tensor([1.0, 1.5, 2.0, -3.0, info.max, info.tiny, 0.0, info.tiny / 4], dtype=torch.float64)
    spacing = ulp(values, dtype)
    assert spacing[:4].tolist() == [info.eps, info.eps, 2 * info.eps, 2 * info.eps]
    assert spacing[5:].tolist() == [info.tiny * info.eps] * 3
    at = values.to(dtype)
    neighbour = torch.nextafter(at.float(), torch.tensor(math.inf)) if dtype == torch.float32 else None
    if neighbour is not None:
        assert torch.equal((neighbour - at)[:3].double(), spacing[:3])


def _want(exact: list[float], peer: list[float] | None = None) -> Expectation:
    e = torch.tensor(exact, dtype=torch.float64)
    p = e if peer is None else torch.tensor(peer, dtype=torch.float64)
    return Expectation(e, p, torch.zeros(()), torch.float32)


@pytest.mark.parametrize(
    "got, exact, peer, good",
    [
        (1.0, 1.0, 1.0, True),
        (1.0 + 2**-23, 1.0, 1.0, True),  # one ulp
        (1.0 + 2**-22, 1.0, 1.0, False),  # two
        (1.0 + 2**-22, 1.0, 1.0 + 2**-23, True),  # one, and torch's own error
        (math.nan, 1.0, 1.0, False),
        (math.nan, 1.0, math.nan, True),  # as torch
        (1.0, 1.0, math.nan, True),  # better than torch
        (2.0, 1.0, math.nan, False),
        (math.nan, math.nan, math.nan, True),
        (0.0, math.nan, math.nan, False),
        (math.inf, math.inf, math.inf, True),
        (-math.inf, math.inf, math.inf, False),
        (math.nan, math.inf, math.inf, False),
        (math.nan, math.inf, math.nan, True),
        (math.inf, 1e39, math.inf, True),  # beyond fp32
        (3e38, math.inf, math.inf, False),
        (0.0, 1.0, 0.0, True),  # no worse than torch
    ],
)
def test_rule(got: float, exact: float, peer: float, good: bool) -> None:
    assert bool(passes(torch.tensor([got]), _want([exact], [peer]))) is good


def test_rule_judges_slices_apart() -> None:
    """torch's error in one channel excuses nothing in another."""
    exact = torch.zeros(2, 2, 2, dtype=torch.float64)
    peer = exact.clone()
    peer[:, 1] = 1e-3
    want = Expectation(exact, peer, torch.zeros(()), torch.float32, sets_of(NormCase((2, 2, 2))))
    assert passes(torch.full((2, 2, 2), 5e-4), want).tolist() == [[[False] * 2, [True] * 2]] * 2


@pytest.mark.parametrize("wrong", ("shape", "dtype", "missing"))
def test_check_wants_the_right_kind(wrong: str) -> None:
    got = {"shape": torch.zeros(1, 1), "dtype": torch.zeros(1, dtype=torch.float64), "missing": None}[wrong]
    with pytest.raises(AssertionError, match=wrong):
        check(got, _want([0.0]), "result")


def test_dy_is_zero_only_near_a_kink() -> None:
    """Steering around kinks takes next to nothing out of a test, and nothing where rounding cannot reach."""
    for case in (NormCase((17, 33, 13, 11), act="full"), ReluCase((17, 33, 13, 11))):
        kept, _ = solved(case)
        assert float((kept.dy == 0).double().mean()) < 1e-4
    kept, _ = solved(NormCase((17, 33, 13, 11), data="offset_1e4", act="full"))
    assert float((kept.dy == 0).double().mean()) < 0.02
