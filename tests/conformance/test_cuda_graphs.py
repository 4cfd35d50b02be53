"""Forward and backward captured in a CUDA graph once and replayed with new data: the bits of the same calls outside.

On a CPU there is no capture; there the same steps show that they read their buffers anew at every call, and the check
is shown to see a replay that does not.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastnorm

from .backends import FAST, Backend
from .captured import STEPS, Step

Results = tuple[Tensor, ...]
WARM_CALLS = 3


def capture(step: Step, device: torch.device) -> Callable[[], Results]:
    """A call that replays step.run(); its results lie where the capture put them."""
    if device.type != "cuda":
        return step.run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_CALLS):  # kernels are compiled and loaded before anything is captured
            step.run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step.run()

    def replay() -> Results:
        graph.replay()
        return results

    return replay


def copies(tensors: Results) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


def assert_replays(make: Callable[[], Step], captured: Callable[[Step], Callable[[], Results]]) -> None:
    """Two steps alike, one captured: new data, and the state set back, give the same bits three times over."""
    plain, held = make(), make()
    first = copies(held.state)
    plain.load(0)
    held.load(0)
    replay = captured(held)
    with torch.no_grad():
        for state in (plain.state, held.state):
            for t, value in zip(state, first, strict=True):
                t.copy_(value)
    for seed in (1, 2, 3):
        plain.load(seed)
        held.load(seed)
        wanted = copies(plain.run())
        got = copies(replay())
        for index, (a, b) in enumerate(zip(wanted, got, strict=True)):
            assert torch.equal(a, b), f"result {index} differs in replay {seed}"
        for index, (a, b) in enumerate(zip(plain.state, held.state, strict=True)):
            assert torch.equal(a, b), f"state {index} differs after replay {seed}"


@pytest.mark.parametrize("backend", FAST, ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_replay(name: str, backend: Backend) -> None:
    device = torch.device(backend.device)
    with fastnorm.use_backend(backend.namespace):
        assert_replays(lambda: STEPS[name](device), lambda step: capture(step, device))


def frozen_results(step: Step) -> Callable[[], Results]:
    results = step.run()
    return lambda: results


def frozen_state(step: Step) -> Callable[[], Results]:
    def replay() -> Results:
        before = copies(step.state)
        results = step.run()
        for t, value in zip(step.state, before, strict=True):
            t.copy_(value)
        return results

    return replay


@pytest.mark.parametrize(("stale", "told"), ((frozen_results, "result 0"), (frozen_state, "state 0")))
def test_a_replay_with_old_data_is_seen(stale: Callable[[Step], Callable[[], Results]], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        assert_replays(lambda: STEPS["batch_norm-small-contiguous"](torch.device("cpu")), stale)
