"""How many kernels a call launches on a GPU, whoever launches them: counted in a trace, not by hooks of one library."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from fastnorm.timing import Run


def launched_kernels(run: Run) -> list[str]:
    """The names of the kernels of one call on the current device, which must be a CUDA device."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        return kernels_in(json.loads(trace.read_text()))


def kernels_in(trace: dict[str, Any]) -> list[str]:
    """Copies and fills by the driver are no kernels, and neither are the ranges that torch.optim marks."""
    return [event["name"] for event in trace["traceEvents"] if event.get("cat") == "kernel"]
