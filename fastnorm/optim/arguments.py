"""Argument checks of the functional steps: each names the argument, what came and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnorm.ops.backend import DTYPES


def check_tensor(name: str, t: object, param: Tensor) -> None:
    """A tensor that can be stepped together with param: TypeError or ValueError where it cannot."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(t).__name__}")
    if t.layout != torch.strided or not (t.dtype in DTYPES or t.is_complex()):
        raise ValueError(f"{name} must be dense, of fp64, fp32, bf16, fp16 or complex, got {t.dtype}, {t.layout}")
    if t.shape != param.shape:
        raise ValueError(f"{name} must have param's shape {tuple(param.shape)}, got {tuple(t.shape)}")
    if t.device != param.device:
        raise ValueError(f"{name} must be on param's device {param.device}, got {t.device}")
    if t.is_complex() != param.is_complex():
        raise ValueError(f"{name} must be real or complex as param ({param.dtype}) is, got {t.dtype}")


def check_number(name: str, value: object) -> None:
    """A hyper-parameter; ValueError for a tensor of more than one element."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} given as a tensor must have one element, got shape {tuple(value.shape)}")
