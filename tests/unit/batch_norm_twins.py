"""Batch norm modules beside torch.nn's: the same arguments and the same state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fastnorm


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def twin(theirs: nn.Module, **extra: Any) -> nn.Module:
    """Ours with the arguments and the state of a torch.nn layer."""
    kind = getattr(fastnorm, type(theirs).__name__)
    tracked = theirs.running_mean is not None
    ours = kind(theirs.num_features, theirs.eps, theirs.momentum, theirs.affine, tracked, **extra)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.train(theirs.training)


def random_norm(**kwargs: Any) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(3, **kwargs)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 1.5)
    return layer
