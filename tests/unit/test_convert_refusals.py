"""What cannot be proven is left, and the report says why, in words."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastnorm
from tests.unit.test_convert_blocks import Block

SWITCH = True
CONTEXT = "its forward enters a context (no_grad, autocast, a checkpoint), which a graph does not hold"


class UsedTwice(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.bn1(x)
        return F.relu(y) + y


class SumUsedTwice(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.bn1(x) + x
        return F.relu(y), y


class IntoTheOther(Block):
    def forward(self, x: Tensor) -> Any:
        y = x * 2
        y += self.bn1(x)
        return F.relu(y)


class ChangedAfterwards(Block):
    def forward(self, x: Tensor) -> Any:
        y = x * 2
        z = self.bn1(x) + y
        y += 1  # a sum does not save y for its backward; a fused norm does
        return F.relu(z) + y


class ActivatedAfterwards(Block):
    def forward(self, x: Tensor) -> Any:
        y = x * 2
        z = F.relu(self.bn1(x) + y)
        return z + F.leaky_relu(y, inplace=True)


class ChangedBefore(Block):
    def forward(self, x: Tensor) -> Any:
        y = (x * 2).add_(1)
        return F.relu(self.bn1(x) + y) + y * 2


class ToItself(Block):
    def forward(self, x: Tensor) -> Any:
        y = self.bn1(x)
        return F.relu(y + y)


class Moved(Block):
    def forward(self, x: Tensor) -> Any:
        y = x * 2
        z = self.bn1(y)
        return F.relu(z + self.relu(y))  # relu works in place: it changes what the norm reads


class Alpha(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(torch.add(self.bn1(x), x, alpha=2))


class Branching(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if x.sum() > 0 else x


class Shapes(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if x.shape[0] > 2 else x


class Counting(Block):
    calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return F.relu(self.bn1(x))


class Lists(Block):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = [1, 2]

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) * self.sizes[0]


class Chance(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if torch.rand(()) < 2 else x


class PythonChance(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if random.random() < 2 else x


class GradMode(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if torch.is_grad_enabled() else x


class GlobalSwitch(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if SWITCH else x


class Typed(Block):
    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.bn1(x))
        return y if isinstance(y, Tensor) else x


class ExactType(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if type(x) is Tensor else x


class Attributes(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if hasattr(x, "tensors") else x


class Variadic(Block):
    def forward(self, *args: Tensor) -> Any:
        return F.relu(self.bn1(args[0]))


class Constant(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) + torch.ones(1)


class Decorated(Block):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x))


def _closure() -> type[Block]:
    factor = 2.0

    class Enclosed(Block):
        def forward(self, x: Tensor) -> Any:
            return F.relu(self.bn1(x)) * factor

    return Enclosed


class OwnCall(Block):
    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x) + 1

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x))


class WithoutGradients(Block):
    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            y = self.conv(x)
        return F.relu(self.bn1(y))


class Helper(Block):
    @torch.no_grad()
    def helper(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(self.helper(x)))


class Autocasting(Block):
    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return F.relu(self.bn1(self.conv(x)))


class SwitchingOff(Block):
    def forward(self, x: Tensor) -> Any:
        torch.set_grad_enabled(torch.is_grad_enabled())
        return F.relu(self.bn1(x))


class Checkpointing(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(checkpoint(self.conv, x, use_reentrant=False)))


class ModuleFlag(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if torch.backends.cudnn.benchmark else torch.relu(self.bn1(x))


class ClassFlag(Block):
    flag = True

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x)) if ClassFlag.flag else x


class Importing(Block):
    def forward(self, x: Tensor) -> Any:
        import math

        return F.relu(self.bn1(x)) * math.pi


class Printing(Block):
    def forward(self, x: Tensor) -> Any:
        print("here")
        return F.relu(self.bn1(x))


class Abstract(Block):
    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn1(x))


REASONS: list[tuple[Callable[[], nn.Module], str]] = [
    (UsedTwice, "its result is used elsewhere as well, before the activation"),
    (SumUsedTwice, "the sum is used elsewhere as well, before the activation"),
    (IntoTheOther, "the sum is written into the other summand"),
    (ChangedAfterwards, "the other summand is changed in place after the sum"),
    (ActivatedAfterwards, "the other summand is changed in place after the sum"),
    (ToItself, "it is added to itself"),
    (Moved, "what it reads could be changed before the other summand is computed"),
    (Branching, "its forward cannot be traced: symbolically traced variables cannot be used as inputs to control flow"),
    (Shapes, "its forward cannot be traced: symbolically traced variables cannot be used as inputs to control flow"),
    (Counting, "its forward changes self.calls"),
    (Lists, "its forward reads self.sizes, a list, which may change"),
    (Chance, "its forward draws random numbers outside its modules"),
    (PythonChance, "its forward draws random numbers outside its modules"),
    (GradMode, "its forward asks is_grad_enabled()"),
    (GlobalSwitch, "its forward reads the global SWITCH, which may change"),
    (Typed, "its forward asks for the type of a result"),
    (ExactType, "its forward asks for the type of something"),
    (Attributes, "its forward asks whether a value has the attribute tensors"),
    (Variadic, "its forward takes *args, **kwargs or keyword-only arguments"),
    (Constant, "its forward uses a tensor that is neither an argument, a parameter nor a buffer"),
    (Decorated, "its forward is decorated"),
    (_closure(), "its forward reads factor of the function around it, which may change"),
    (WithoutGradients, CONTEXT),
    (Helper, CONTEXT),
    (Autocasting, CONTEXT),
    (Checkpointing, CONTEXT),
    (SwitchingOff, "its forward asks is_grad_enabled()"),
    (ModuleFlag, "its forward reads the global benchmark, which may change"),
    (ClassFlag, "its forward reads the global flag, which may change"),
    (Importing, "its forward imports something"),
    (Printing, "its forward asks print()"),
    (OwnCall, "its class has a __call__ of its own"),
]


@pytest.mark.parametrize(("make", "reason"), REASONS, ids=[make.__name__ for make, _ in REASONS])  # type: ignore[attr-defined]
def test_the_reason(make: Callable[[], nn.Module], reason: str) -> None:
    model = make()
    kind, contents = type(model), dict(model.__dict__)
    state = torch.get_rng_state(), random.getstate()
    report = fastnorm.convert(model)
    assert report.fused == ()
    assert [record.reason for record in report.left] == [reason]
    assert type(model) is kind
    assert all(type(child) in (fastnorm.BatchNorm2d, nn.Conv2d, nn.ReLU, nn.Identity) for child in model.children())
    assert model.__dict__ == contents
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert "isinstance" not in globals()


def test_a_summand_changed_before_the_sum_is_no_hindrance() -> None:
    assert len(fastnorm.convert(ChangedBefore()).fused) == 1


def test_a_scaled_sum_is_no_pattern() -> None:
    report = fastnorm.convert(Alpha())
    assert (report.fused, report.left) == ((), ())


def test_what_follows_no_norm_is_not_looked_at() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act = nn.LayerNorm(4), nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("nobody should trace this")

    report = fastnorm.convert(Plain())
    assert (len(report.replaced), report.left) == (1, ())


def test_torchs_functions_are_whole_after_a_trace() -> None:
    cat, call, look = torch.cat, nn.Module.__call__, nn.Module.__getattr__
    fastnorm.convert(Branching())
    fastnorm.convert(Abstract())
    assert torch.cat is cat
    assert nn.Module.__call__ is call
    assert nn.Module.__getattr__ is look
