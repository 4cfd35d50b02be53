"""Less memory for some time: results of norms that other operations keep for backward are computed again there."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

_NAME = "_fastnorm_recipe"  # the attribute of a result that says how it was made
_open = 0  # blocks that are open now, in all threads


class _Recipe:
    """How a result was made: `compute()` makes it again, bit for bit, as long as `inputs` are what they were."""

    def __init__(self, y: Tensor, compute: Callable[[], Tensor], inputs: Sequence[Tensor | None]) -> None:
        self.version = y._version
        self._compute = compute
        self._inputs = [(t, t._version) for t in inputs if t is not None]
        self._made: weakref.ref[Tensor] | None = None
        self._made_version = 0

    def result(self) -> Tensor:
        """The result; the one computed last, if somebody still holds it."""
        y = self._made() if self._made is not None else None
        if y is None or y._version != self._made_version:
            for t, version in self._inputs:
                if t._version != version:
                    raise RuntimeError(
                        "one of the variables needed to recompute the result of a norm has been modified by an inplace "
                        f"operation: [{t.dtype}, {tuple(t.shape)}] is at version {t._version}; expected {version}"
                    )
            with torch.no_grad():
                y = self._compute()
            self._made, self._made_version = weakref.ref(y), y._version
        return y


class _View(NamedTuple):
    """A saved tensor, as a view of the result that a recipe makes."""

    recipe: _Recipe
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


def remember(y: Tensor, compute: Callable[[], Tensor], inputs: Sequence[Tensor | None]) -> None:
    """Within a `recompute` block: `y`, if an operation saves it, may be replaced by what `compute()` returns.

    compute: makes y again, bit for bit, from `inputs`, without a graph.
    """
    setattr(y, _NAME, _Recipe(y, compute, inputs))


def is_open() -> bool:
    """Whether a `recompute` block is open, in any thread."""
    return _open > 0


def wanted() -> bool:
    """Whether results are to be remembered: a block is open, and no compiler is tracing (it has its own ways)."""
    return is_open() and not torch.compiler.is_compiling()


class recompute:
    """A block in which results of fastnorm's layers are computed again in backward instead of being kept for it.

    A convolution or linear layer behind a norm keeps the norm's result for its own backward, beside the input that the
    norm keeps. Within `with fastnorm.recompute(): loss = loss_of(model(x))` it keeps the recipe: when its backward
    asks, the norm (with its activation) runs again on its own input. The bits of all gradients stay the same; each
    such layer pays one more forward of the norm. Call `backward()` inside the block or behind it.

    Remembered: results of batch norm in training, layer, group, instance and RMS norm, and GeneralRelu, that took no
    residual. Others (a residual's sum, evaluation mode of batch norm, SyncBatchNorm) are kept as ever, and so is a
    result that something changed in place before it was saved.

    Without effect in compiled code, whose compiler decides by itself what to recompute, and under torch.func.

    Args:
        rest: hooks for the tensors that are kept all the same, such as `torch.autograd.graph.save_on_cpu()`. Of several
            `saved_tensors_hooks` around an operation torch applies the innermost only; this is a way to have both.

    Raises:
        RuntimeError: in backward, where a norm's input or parameters were changed in place meanwhile, as autograd does
            for saved tensors.

    Source: checkpointing of cheap operations, Chen et al. 2016 (arXiv:1604.06174); memory-efficient DenseNets, Pleiss
    et al. 2017 (arXiv:1707.06990).
    """

    def __init__(self, rest: saved_tensors_hooks | None = None) -> None:
        self._rest = rest
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, t: Tensor) -> Any:
        owner = t if t._base is None else t._base
        recipe: _Recipe | None = getattr(owner, _NAME, None)
        if recipe is not None and recipe.version == owner._version and t.dtype == owner.dtype:
            return _View(recipe, t.size(), t.stride(), int(t.storage_offset()))
        return t if self._rest is None else self._rest.pack_hook(t)

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, _View):
            y = packed.recipe.result()
            return y.as_strided(packed.size, packed.stride, packed.offset)
        return packed if self._rest is None else self._rest.unpack_hook(packed)

    def __enter__(self) -> recompute:
        global _open
        self._hooks.__enter__()
        _open += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _open
        _open -= 1
        self._hooks.__exit__(kind, error, trace)
