"""The GeneralRelu module."""

from __future__ import annotations

from torch import Tensor, fx, nn

from fastnorm.activation import Activation, checked_activation
from fastnorm.functional import general_relu

fx.wrap("general_relu")  # a symbolic trace records the call; it must not look inside


class GeneralRelu(nn.Module):
    """y = min(leaky_relu(x, leak) - sub, maxv), each step only if its number is given: `functional.general_relu`.

    Args:
        leak: slope below 0; None for plain ReLU.
        sub: subtracted, so that the mean of the result can be near 0.
        maxv: upper bound.
        max_leak: slope above maxv instead of a flat line.
        inplace: write the result into the input.

    Shapes: any; the result is like the input.

    Dtypes: fp64, fp32, bf16, fp16.

    Raises:
        ValueError: for a leak, sub, maxv or max_leak that is no number, and for a max_leak without maxv.

    Source: fast.ai's "GeneralRelu"; docs/math.md, G1-G4.
    """

    def __init__(
        self,
        leak: float | None = None,
        sub: float | None = None,
        maxv: float | None = None,
        max_leak: float | None = None,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        checked_activation(leak, sub, maxv, max_leak)
        self.leak, self.sub, self.maxv, self.max_leak = leak, sub, maxv, max_leak
        self.inplace = inplace

    @property
    def activation(self) -> Activation:
        """The numbers, as norms take them for fusing."""
        return checked_activation(self.leak, self.sub, self.maxv, self.max_leak)

    def forward(self, x: Tensor) -> Tensor:
        """`functional.general_relu` with the module's numbers."""
        return general_relu(x, self.leak, self.sub, self.maxv, self.max_leak, inplace=self.inplace)

    def extra_repr(self) -> str:
        numbers = {"leak": self.leak, "sub": self.sub, "maxv": self.maxv, "max_leak": self.max_leak}
        given = [f"{name}={value}" for name, value in numbers.items() if value is not None]
        return ", ".join([*given, "inplace=True"] if self.inplace else given)
