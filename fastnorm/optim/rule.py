"""What one optimizer has to say about itself; everything else is shared (fused.py)."""

from __future__ import annotations

from itertools import chain
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

Group: TypeAlias = dict[str, Any]
State: TypeAlias = dict[str, Any]

HALF = (torch.bfloat16, torch.float16)


class Rule:
    """The seam between an optimizer class and the shared step."""

    kind: int  # of the kernel
    sparse_message: str
    # Where a group's numbers stand, as the kernel's Hyper struct lists them (csrc/math): a tuple is all of its members,
    # a word the number that it means.
    hyper_keys: tuple[str, ...]
    words: ClassVar[dict[str, float]] = {}
    form_keys: tuple[str, ...]  # what `form` looks at

    def states(self, group: Group) -> tuple[str, ...]:
        """The keys of a parameter's state tensors, in the kernel's order."""
        raise NotImplementedError

    def counts_steps(self, group: Group) -> bool:
        """Whether a parameter's state has a `step`."""
        return True

    def centered(self, group: Group) -> bool:
        return False

    def form(self, group: Group) -> Any:
        """What decides about states and the kernel to take; cheap, for it is asked at every step."""
        raise NotImplementedError

    def hyper(self, group: Group) -> list[Any]:
        """The numbers of a group, in the order of `hyper_keys`; some may be tensors."""
        values = [group[key] for key in self.hyper_keys]
        flat = chain.from_iterable(v if isinstance(v, (tuple, list)) else (v,) for v in values)
        return [self.words[v] if isinstance(v, str) else v for v in flat]

    def numbers(self, hyper: list[Any], step: Any, first: bool) -> list[Any]:
        """What the Triton kernel takes, as the kernel's Numbers struct lists it; for numbers or tensors."""
        raise NotImplementedError

    def initial(self, group: Group, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """A new state tensor, in like's shape and strides."""
        return torch.zeros_like(like, dtype=dtype, memory_format=torch.preserve_format)

    def reference(
        self, group: Group, param: Tensor, grad: Tensor, states: list[Tensor], step: Any, first: bool
    ) -> tuple[Tensor, ...]:
        """The new parameter and states in plain PyTorch, for what the kernels do not serve."""
        raise NotImplementedError


def number(value: float | Tensor) -> float:
    """A hyper-parameter as the kernel takes it; one on a GPU is waited for."""
    return value.item() if isinstance(value, Tensor) else float(value)
