"""torch.export of the row family: fused ops in the graph, any batch size, saved and loaded again, trainable."""

from __future__ import annotations

import copy

import pytest
import torch
from test_export import batch_sized, check_trains, fused_calls, travelled
from test_row_compile import NORMS, Block
from torch.export import export
from torch.testing import assert_close


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_any_batch_size(cpu_backend: str, training: bool) -> None:
    net = Block().train(training)
    reference = copy.deepcopy(net)
    program = export(net, **batch_sized(torch.randn(4, 3, 6, 6)))
    assert_close(dict(net.named_buffers()), dict(reference.named_buffers()), rtol=0, atol=0)
    calls = fused_calls(program, cpu_backend)
    # In evaluation instance norm uses its running statistics: that is batch norm.
    assert sum("row_norm_fwd" in call for call in calls) == NORMS - (not training)
    assert sum("batch_norm_fwd" in call for call in calls) == int(not training)
    module = travelled(program).module()
    for batch in (2, 7):
        x = torch.randn(batch, 3, 6, 6)
        assert_close(module(x), reference(x))
    assert_close(dict(module.named_buffers()), dict(reference.named_buffers()))


def test_the_graph_can_be_trained(cpu_backend: str) -> None:
    check_trains(Block(), rtol=1e-4, atol=1e-4)


def test_decompositions_leave_the_fused_ops(cpu_backend: str) -> None:
    program = export(Block(), (torch.randn(4, 3, 6, 6),)).run_decompositions()
    assert sum("row_norm_fwd" in call for call in fused_calls(program, cpu_backend)) == NORMS
