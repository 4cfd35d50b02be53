"""Gradients whose square is past the largest number of their dtype."""

from __future__ import annotations

import pytest
import torch

from fastnorm import optim


@pytest.mark.parametrize("alpha", (0.99, 1.0))
@pytest.mark.parametrize("init", ("zeros", "first_grad"))
def test_a_gradient_whose_square_is_infinite_moves_an_average_that_is_not(alpha: float, init: str) -> None:
    grad = torch.full((20,), 2e19)
    p = torch.nn.Parameter(torch.zeros(20))
    p.grad = grad
    opt = optim.RMSprop([p], lr=0.1, alpha=alpha, init=init)
    opt.step()
    average = opt.state[p]["square_avg"]
    wanted = grad.double().square() * (1 if init == "first_grad" else 1 - alpha)
    finite = wanted <= torch.finfo(torch.float32).max
    assert not average.isnan().any() and torch.allclose(average[finite].double(), wanted[finite], rtol=1e-5)
