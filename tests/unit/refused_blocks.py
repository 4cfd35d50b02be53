"""Blocks in which nothing is fused, each with the reason that the report gives."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.unit.convert_blocks import Block

CONTEXT = "its forward enters a context (no_grad, autocast, a checkpoint), which a graph does not hold"
SWITCH = True
REASONS: dict[type[Block], str] = {}


def left(reason: str) -> Callable[[type[Block]], type[Block]]:
    """The class below is left for this reason."""

    def add(kind: type[Block]) -> type[Block]:
        REASONS[kind] = reason
        return kind

    return add


@left("its result is used elsewhere as well, before the activation")
class UsedTwice(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.bn1(x)
        return F.relu(y) + y


@left("the sum is used elsewhere as well, before the activation")
class SumUsedTwice(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.bn1(x) + x
        return F.relu(y), y


@left("the sum is written into the other summand")
class IntoTheOther(Block):
    def forward(self, x: Tensor) -> Any:
        y = x * 2
        y += self.bn1(x)
        return F.relu(y)


@left("the other summand is changed in place after the sum")
class ChangedAfterwards(Block):
    def forward(self, x: Tensor) -> Any:
        y = x * 2
        z = self.bn1(x) + y
        y += 1  # a sum does not save y for its backward; a fused norm does
        return F.relu(z) + y


@left("the other summand is changed in place after the sum")
class ActivatedAfterwards(Block):
    def forward(self, x: Tensor) -> Any:
        y = x * 2
        z = F.relu(self.bn1(x) + y)
        return z + F.leaky_relu(y, inplace=True)


@left("it is added to itself")
class ToItself(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.bn1(x)
        return F.relu(y + y)


@left("what it reads could be changed before the other summand is computed")
class Moved(Block):
    def forward(self, x: Tensor) -> Any:
        y = x * 2
        z = self.bn1(y)
        return F.relu(z + self.relu(y))  # relu works in place: it changes what the norm reads


@left("its forward cannot be traced: symbolically traced variables cannot be used as inputs to control flow")
class Branching(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if x.sum() > 0 else x


@left("its forward cannot be traced: symbolically traced variables cannot be used as inputs to control flow")
class Shapes(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if x.shape[0] > 2 else x


@left("its forward changes self.calls")
class Counting(Block):
    calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return F.relu(self.bn1(x))


@left("its forward reads self.sizes, a list, which may change")
class Lists(Block):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = [1, 2]

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) * self.sizes[0]


@left("its forward draws random numbers outside its modules")
class Chance(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if torch.rand(()) < 2 else x


@left("its forward draws random numbers outside its modules")
class PythonChance(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if random.random() < 2 else x


@left("its forward asks is_grad_enabled()")
class GradMode(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if torch.is_grad_enabled() else x


@left("its forward reads the global SWITCH, which may change")
class GlobalSwitch(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if SWITCH else x


@left("its forward asks for the type of a result")
class Typed(Block):
    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.bn1(x))
        return y if isinstance(y, Tensor) else x


@left("its forward asks for the type of something")
class ExactType(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if type(x) is Tensor else x


@left("its forward asks whether a value has the attribute tensors")
class Attributes(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if hasattr(x, "tensors") else x


@left("its forward takes *args, **kwargs or keyword-only arguments")
class Variadic(Block):
    def forward(self, *args: Tensor) -> Any:
        return F.relu(self.bn1(args[0]))


@left("its forward uses a tensor that is neither an argument, a parameter nor a buffer")
class Constant(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) + torch.ones(1)


@left("its forward is decorated")
class Decorated(Block):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x))


def _close_over(factor: float) -> None:
    @left("its forward reads factor of the function around it, which may change")
    class Enclosed(Block):
        def forward(self, x: Tensor) -> Any:
            return F.relu(self.bn1(x)) * factor


_close_over(2.0)


@left(CONTEXT)
class WithoutGradients(Block):
    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            y = self.conv(x)
        return F.relu(self.bn1(y))


@left(CONTEXT)
class Helper(Block):
    @torch.no_grad()
    def helper(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(self.helper(x)))


@left(CONTEXT)
class Autocasting(Block):
    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return F.relu(self.bn1(self.conv(x)))


@left(CONTEXT)
class Checkpointing(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(checkpoint(self.conv, x, use_reentrant=False)))


@left("its forward asks is_grad_enabled()")
class SwitchingOff(Block):
    def forward(self, x: Tensor) -> Any:
        torch.set_grad_enabled(torch.is_grad_enabled())
        return F.relu(self.bn1(x))


@left("its forward reads the global benchmark, which may change")
class ModuleFlag(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if torch.backends.cudnn.benchmark else torch.relu(self.bn1(x))


@left("its forward reads the global flag, which may change")
class ClassFlag(Block):
    flag = True

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if ClassFlag.flag else x


@left("its forward imports something")
class Importing(Block):
    def forward(self, x: Tensor) -> Any:
        import math

        return F.relu(self.bn1(x)) * math.pi


@left("its forward asks print()")
class Printing(Block):
    def forward(self, x: Tensor) -> Any:
        print("here")
        return F.relu(self.bn1(x))


@left("its class has a __call__ of its own")
class OwnCall(Block):
    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x) + 1

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x))
