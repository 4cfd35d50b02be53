"""Bytes that a forward keeps for its backward."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def saved_bytes(
    model: nn.Module,
    forward: Callable[[], object],
    *,
    within: Callable[[saved_tensors_hooks], AbstractContextManager[object]] = nullcontext,
) -> int:
    """Bytes that one call of forward keeps for a backward, the model's parameters and buffers not counted.

    Every storage counts once, whole, however many saved tensors look into it. forward is called once; what it changes
    of the model stays changed.

    within: a block that has hooks of its own, made from those that count what it does not take, as
        `fastnorm.recompute`. Torch applies the innermost hooks only.
    """
    own = {t.untyped_storage().data_ptr() for t in itertools.chain(model.parameters(), model.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}  # kept until counted, so that no freed address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    counting = saved_tensors_hooks(pack, lambda tensor: tensor)
    with counting, within(counting):
        forward()
    return sum(storage.nbytes() for storage in storages.values())
