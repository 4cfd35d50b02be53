"""Candidates as replays of a CUDA graph: the device's time, without the host's between launches.

What is captured is each set of inputs once. A replay is trusted only if it was seen to write: every result is filled
with NaN first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fastnorm.timing import Run


@contextmanager
def side_stream(device: str) -> Iterator[None]:
    """Autograd runs a backward on its forward's stream, so both must run on the one that is captured."""
    if device != "cuda":
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def tensors_of(results: object) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results.detach()]
    return [t for one in results for t in tensors_of(one)] if isinstance(results, tuple | list) else []


def captured(runs: Sequence[Run], inputs: Sequence[Tensor]) -> Run | None:
    """One replay of all runs on the current stream; None where they cannot be captured, or the replay writes nothing.

    inputs: results that lie in one of these are left as they are.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        for run in runs:
            run()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            made = [run() for run in runs]
        return graph.replay if writes(graph.replay, tensors_of(made), inputs) else None
    except RuntimeError:
        torch.cuda.synchronize()
        return None


def writes(replay: Run, results: Sequence[Tensor], inputs: Sequence[Tensor]) -> bool:
    """Whether a replay fills every result with finite numbers."""
    given = {t.untyped_storage().data_ptr() for t in inputs}
    own = [t for t in results if t.untyped_storage().data_ptr() not in given and t.is_floating_point()]
    for t in own:
        t.fill_(float("nan"))
    replay()
    return bool(own) and all(bool(t.isfinite().all()) for t in own)
