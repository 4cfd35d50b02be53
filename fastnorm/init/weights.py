"""Xavier and Kaiming initialisation, with the gain of the activation that follows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastnorm.activation import Activation, as_activation

Act = nn.Module | Activation | None
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# What torch.nn.init.calculate_gain recommends for activations that are no GeneralRelu.
_GAINS: tuple[tuple[type[nn.Module], float], ...] = (
    (nn.Tanh, 5 / 3),
    (nn.SELU, 3 / 4),
    (nn.Sigmoid, 1.0),
    (nn.Identity, 1.0),
)


def gain_of(act: Act) -> float:
    """What the weights in front of an activation are multiplied by, so that the size of the signal stays.

    gain = sqrt(2 / (1 + leak^2)) for a slope of 1 above 0 and of `leak` below: with z symmetric around 0, act(z) before
    `sub` has the mean square (1 + leak^2) / 2 of z's. `sub` and `maxv` are left out. 1 for None.

    Args:
        act: GeneralRelu, nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Tanh, nn.SELU, nn.Sigmoid, nn.Identity or None.

    Raises:
        ValueError: for another activation.

    Source: He et al. 2015, arXiv:1502.01852, equation 15.
    """
    for kind, gain in _GAINS:
        if isinstance(act, kind):
            return gain
    activation = as_activation(act)
    return math.sqrt(2.0 / (1.0 + (activation.leak or 0.0) ** 2)) if activation.active else 1.0


def _fans(weight: Tensor) -> tuple[int, int]:
    """How many values each output is made of, and how many outputs each value goes into. weight: [out, in, *]."""
    if weight.dim() < 2:
        raise ValueError(f"weight must be [out, in, *], of at least 2 dims, got shape {tuple(weight.shape)}")
    window = math.prod(weight.shape[2:])
    return weight.shape[1] * window, weight.shape[0] * window


def _kaiming_std(weight: Tensor, act: Act, mode: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode must be 'fan_in' or 'fan_out', got {mode!r}")
    return gain_of(act) / math.sqrt(max(1, _fans(weight)[mode == "fan_out"]))


def _xavier_std(weight: Tensor, act: Act) -> float:
    return gain_of(act) * math.sqrt(2.0 / max(1, sum(_fans(weight))))


@torch.no_grad()
def _normal_(weight: Tensor, std: float, generator: torch.Generator | None) -> Tensor:
    return weight.normal_(0.0, std, generator=generator)


@torch.no_grad()
def _uniform_(weight: Tensor, std: float, generator: torch.Generator | None) -> Tensor:
    bound = math.sqrt(3.0) * std  # a uniform distribution over [-b, b] has the std b / sqrt(3)
    return weight.uniform_(-bound, bound, generator=generator)


def kaiming_normal_(
    weight: Tensor, act: Act = None, *, mode: str = "fan_in", generator: torch.Generator | None = None
) -> Tensor:
    """Fills a weight in place from N(0, gain^2 / fan), gain = gain_of(act), and returns it.

    Args:
        weight: `[out, in, *]`, of a linear or convolutional layer; any floating dtype.
        act: the activation behind the layer, as in `gain_of`.
        mode: "fan_in" (the forward keeps its size) or "fan_out" (the backward does).
        generator: of the random numbers; None for torch's own.

    Raises:
        ValueError: for fewer than 2 dims, another mode or another activation.

    Source: He et al. 2015, arXiv:1502.01852.
    """
    return _normal_(weight, _kaiming_std(weight, act, mode), generator)


def kaiming_uniform_(
    weight: Tensor, act: Act = None, *, mode: str = "fan_in", generator: torch.Generator | None = None
) -> Tensor:
    """As `kaiming_normal_`, from the uniform distribution of the same std: U(-b, b) with b = sqrt(3) * std."""
    return _uniform_(weight, _kaiming_std(weight, act, mode), generator)


def xavier_normal_(weight: Tensor, act: Act = None, *, generator: torch.Generator | None = None) -> Tensor:
    """Fills a weight in place from N(0, 2 gain^2 / (fan_in + fan_out)), gain = gain_of(act), and returns it.

    Args:
        weight: `[out, in, *]`, of a linear or convolutional layer; any floating dtype.
        act: the activation behind the layer, as in `gain_of`.
        generator: of the random numbers; None for torch's own.

    Raises:
        ValueError: for fewer than 2 dims or another activation.

    Source: Glorot and Bengio 2010, http://proceedings.mlr.press/v9/glorot10a.html.
    """
    return _normal_(weight, _xavier_std(weight, act), generator)


def xavier_uniform_(weight: Tensor, act: Act = None, *, generator: torch.Generator | None = None) -> Tensor:
    """As `xavier_normal_`, from the uniform distribution of the same std: U(-b, b) with b = sqrt(3) * std."""
    return _uniform_(weight, _xavier_std(weight, act), generator)


def init_weights(module: nn.Module, leak: float = 0.0) -> None:
    """Kaiming normal weights, N(0, 2 / ((1 + leak^2) * fan_in)), and biases of 0 for a linear or convolutional layer.

    Other modules are left alone. For `model.apply(init_weights)`, or `model.apply(partial(init_weights, leak=0.1))` in
    front of GeneralRelu(0.1).

    Source: fast.ai's init_weights.
    """
    if not isinstance(module, LAYERS):
        return
    kaiming_normal_(module.weight, Activation(True, leak))
    if module.bias is not None:
        nn.init.zeros_(module.bias)
