"""torch's own database of optimizer arguments, replayed against torch.optim in float64."""

from __future__ import annotations

import pytest
import torch
from torch.testing._internal.common_optimizers import optim_db

from fastnorm import optim
from fastnorm.testing.optim import check_step, make_params, set_grads

pytestmark = pytest.mark.usefixtures("optim_route")

NAMES = ("SGD", "RMSprop", "Adam", "AdamW")


@pytest.mark.parametrize("name", NAMES)
def test_torchs_own_database(name: str) -> None:
    info = next(info for info in optim_db if info.optim_cls is getattr(torch.optim, name))
    inputs = [i for i in info.optim_inputs_func(device="cpu", dtype=torch.float32) if not i.kwargs.get("capturable")]
    assert len(inputs) >= 5
    for item in inputs:
        params = make_params([(3, 5), (1025,), ()], torch.float32)
        ours = getattr(optim, name)(params, **{"lr": 0.01, **item.kwargs})
        with torch.no_grad():
            for step in range(2):
                set_grads(params, seed=step)
                check_step(ours, params, getattr(torch.optim, name), f"{name}: {item.desc}, step {step}")
