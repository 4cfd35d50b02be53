"""Building models whose norms are fastnorm's from the start."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from fastnorm.convert.twins import TWINS

_lock = threading.Lock()
_depth = 0
_own_inits: dict[type[nn.Module], Callable[..., None] | None] = {}  # what stood in the class itself, if anything


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Inside the block, `torch.nn.BatchNorm2d(...)` and its like give fastnorm's layers. Also a decorator.

    The constructors of torch.nn's norms change the class of what they have built, so it does not matter under which
    name, or how early, a model's file imported them: `torchvision.models.resnet18()` and a `norm_layer=nn.LayerNorm`
    are reached. On leaving, also by an exception, the constructors are what they were; blocks may be nested. `convert`
    fuses such a model later on, and `revert` gives it torch's classes.

    Not reached: subclasses of torch.nn's norms, which go on working as they are (timm's `BatchNormAct2d`: `convert`
    knows it); lazy layers, which take their class at their first batch; layers that are copied or unpickled.

    The patch is seen by all threads: a norm that another thread builds meanwhile is fastnorm's as well.
    """
    global _depth
    with _lock:
        if _depth == 0:
            _patch()
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _restore()


def _patch() -> None:
    for cls, twin in TWINS.items():
        _own_inits[cls] = vars(cls).get("__init__")
        cls.__init__ = _becoming(cls, twin, cls.__init__)  # type: ignore[method-assign]


def _restore() -> None:
    for cls, init in _own_inits.items():
        if init is None:
            del cls.__init__
        else:
            cls.__init__ = init  # type: ignore[method-assign]
    _own_inits.clear()


def _becoming(cls: type[nn.Module], twin: type[nn.Module], init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if type(self) is cls:
            self.__class__ = twin

    return __init__
