"""What the benchmarks measure: problems that are repeated until they are large, and copies of as many bytes."""

from __future__ import annotations

import pytest
import torch

from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.floors import kernels, make_floors
from benchmarks.oracle import Oracle
from benchmarks.peers import PEERS
from benchmarks.prepare import prepare

SMALL = (2, 3, 5, 7)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_problem_is_repeated_along_channels(layout: str) -> None:
    case = Case("batch_norm_residual_act", "bwd", (2, 15, 3, 5), layout, "bf16")
    assert case.distinct == 5 and case.repeated_dim == 1
    oracle = Oracle(case)
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    for t in (oracle.problem.x, oracle.problem.dy, oracle.problem.residual):
        assert t is not None and t.shape == case.shape and t.is_contiguous(memory_format=form)
        assert torch.equal(t[:, :5], t[:, 10:]) and t.dtype == torch.bfloat16
    right = prepare(case, PEERS["eager"])(oracle.problem).results()
    assert oracle.complaint("eager", right) == ""
    right["dbias"][12] += 10
    assert "dbias, channels from 10" in oracle.complaint("eager", right)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_row_problem_is_repeated_along_samples(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    """Sums over samples are so many times those of the few that were solved."""
    monkeypatch.setattr(cases, "SOLVED", 5000)
    case = Case("group_norm_act", "fwd+bwd", (4, 32, 9, 7), layout, "bf16")
    assert case.distinct == 2 and case.repeated_dim == 0
    oracle = Oracle(case)
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    for t in (oracle.problem.x, oracle.problem.dy):
        assert t.shape == case.shape and t.is_contiguous(memory_format=form) and torch.equal(t[:2], t[2:])
    for name in ("eager", "fastnorm"):
        right = prepare(case, PEERS[name])(oracle.problem).results()
        assert list(right) == ["y", "dx", "dweight", "dbias"]
        assert oracle.complaint(name, right) == ""
    assert "dbias" in oracle.complaint("fastnorm", right | {"dbias": right["dbias"] / 2})
    right["dx"][3] += 1
    assert "dx, samples from 2" in oracle.complaint("fastnorm", right)


def test_candidates_do_not_share_running_statistics() -> None:
    case = Case("batch_norm", "fwd", SMALL, "contiguous", "fp32")
    problem = Oracle(case).problem
    assert problem.running_mean is not None
    before = problem.running_mean.clone()
    prepare(case, PEERS["eager"])(problem).run()
    assert torch.equal(problem.running_mean, before)


def test_floor_moves_the_bytes_of_the_case() -> None:
    residual = Case("batch_norm_residual_act", "bwd", SMALL, "contiguous", "fp32")
    assert residual.traffic == ((2, 1), (1, 1))  # dy, x, residual in; dx, dresidual out
    assert Case("batch_norm", "fwd", SMALL, "contiguous", "fp32").traffic == ((1, 1),)
    assert Case("batch_norm", "bwd", SMALL, "contiguous", "fp32").traffic == ((2, 1),)
    for run in make_floors(residual, sets=2).values():
        run()


def test_floors_move_the_data() -> None:
    a, b = torch.randn(5000), torch.randn(5000)
    for copy, triad in kernels("cpu").values():
        copied, added = torch.zeros(5000), torch.zeros(5000)
        copy(a, copied)
        triad(a, b, added)
        assert torch.equal(copied, a) and torch.equal(added, a + b)
