"""`python -m fastnorm.demo.learn_lr`: learns Adam's learning rate by differentiating through its steps, on the digits.

A linear classifier takes a few differentiable Adam steps from a fresh start; the loss on other images, as a function
of the learning rate that all those steps used, has an exact derivative, and a plain gradient step moves the rate.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnorm.demo.data import load
from fastnorm.optim.functional import adam_step

STEPS, ROUNDS, SPEED = 8, 30, 0.5


def loss_after(lr: Tensor, steps: int, x: Tensor, y: Tensor, other_x: Tensor, other_y: Tensor) -> Tensor:
    """The loss on (other_x, other_y) after so many Adam steps on (x, y) at this rate, from weights of zero.

    x [N, D]; y [N], classes; lr: one element. Differentiable in lr.
    """
    classes = int(torch.maximum(y.max(), other_y.max())) + 1
    weight = torch.zeros(x.shape[1], classes, requires_grad=True)
    m, v = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, steps + 1):
        (grad,) = torch.autograd.grad(F.cross_entropy(x @ weight, y), weight, create_graph=True)
        weight, m, v = adam_step(weight, grad, m, v, step=step, lr=lr)
    return F.cross_entropy(other_x @ weight, other_y)


def learn(
    start: float, rounds: int, x: Tensor, y: Tensor, other_x: Tensor, other_y: Tensor
) -> list[tuple[float, float]]:
    """(rate, loss) of each round; the logarithm of the rate follows the derivative."""
    log_lr = torch.tensor(start).log().requires_grad_()
    found = []
    for _ in range(rounds):
        loss = loss_after(log_lr.exp(), STEPS, x, y, other_x, other_y)
        (grad,) = torch.autograd.grad(loss, log_lr)
        found.append((float(log_lr.detach().exp()), float(loss.detach())))
        with torch.no_grad():
            log_lr -= SPEED * grad
    return found


def main() -> None:
    data = load("digits", root=Path(), seed=0)
    x, other_x = data.train_x.flatten(1), data.valid_x.flatten(1)
    for start in (1e-3, 1.0):
        found = learn(start, ROUNDS, x, data.train_y, other_x, data.valid_y)
        for rate, loss in (found[0], found[-1]):
            print(f"rate {rate:.4f}: validation loss {loss:.4f} after {STEPS} steps of Adam")


if __name__ == "__main__":
    main()
