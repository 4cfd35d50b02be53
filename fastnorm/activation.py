"""The activation that can be fused behind a norm, as plain numbers."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class Activation(NamedTuple):
    """GeneralRelu's numbers in the order of the ops' arguments; `active` is False for no activation at all."""

    active: bool = True
    leak: float | None = None
    sub: float | None = None
    maxv: float | None = None
    max_leak: float | None = None

    def __repr__(self) -> str:
        given = (f"{k}={v}" for k, v in self._asdict().items() if k != "active" and v is not None)
        return f"GeneralRelu({', '.join(given)})" if self.active else "None"


IDENTITY = Activation(active=False)


def chosen(own: Activation, given: nn.Module | Activation | None) -> nn.Module | Activation:
    """A call's activation: the one given to the call, else the layer's own. Symbolic traces record it."""
    return own if given is None else given


def act_repr(activation: Activation) -> str:
    """What a module's extra_repr says of the activation fused into it."""
    return f", act={activation}" if activation.active else ""


def checked_activation(leak: float | None, sub: float | None, maxv: float | None, max_leak: float | None) -> Activation:
    """The activation with these numbers. ValueError for one that is no number, and for a max_leak without maxv."""
    numbers: list[float | None] = []
    for name, value in (("leak", leak), ("sub", sub), ("maxv", maxv), ("max_leak", max_leak)):
        # value != value: a NaN, in words that a compiler can trace
        if value is not None and (not isinstance(value, (int, float)) or value != value):
            raise ValueError(f"{name} must be a number or None, got {value!r}")
        numbers.append(None if value is None else float(value))
    if max_leak is not None and maxv is None:
        raise ValueError(f"max_leak={max_leak} is the slope above maxv, but maxv is None")
    return Activation(True, *numbers)


def as_activation(act: nn.Module | Activation | None) -> Activation:
    """The numbers of an activation module: GeneralRelu, nn.ReLU, nn.LeakyReLU or nn.ReLU6 (None: the identity).

    ReLU6 becomes GeneralRelu(maxv=6), whose gradient passes at exactly 6 where torch's is 0. ValueError for others, and
    for a subclass with a forward of its own.
    """
    if act is None:
        return IDENTITY
    if isinstance(act, Activation):
        return act
    forward = getattr(type(act), "forward", None)
    if isinstance(act, nn.ReLU6) and forward is nn.ReLU6.forward:
        return Activation(True, None, None, 6.0)
    if isinstance(act, nn.ReLU) and forward is nn.ReLU.forward:
        return Activation(True)
    if isinstance(act, nn.LeakyReLU) and forward is nn.LeakyReLU.forward:
        return Activation(True, float(act.negative_slope))
    for base in type(act).__mro__:  # GeneralRelu is known by its property: a norm has an attribute of that name
        if isinstance(vars(base).get("activation"), property) and forward is vars(base).get("forward"):
            return act.activation  # type: ignore[return-value]
    raise ValueError(f"act must be a GeneralRelu, nn.ReLU, nn.LeakyReLU, nn.ReLU6 or None, got {act!r}")
