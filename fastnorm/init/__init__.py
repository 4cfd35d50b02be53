"""Initial weights: Xavier and Kaiming with the gain that fits an activation, and layer-wise unit variance (LSUV)."""

from fastnorm.init.lsuv import LsuvReport, LsuvRow, lsuv_
from fastnorm.init.weights import (
    gain_of,
    init_weights,
    kaiming_normal_,
    kaiming_uniform_,
    xavier_normal_,
    xavier_uniform_,
)

__all__ = [
    "LsuvReport",
    "LsuvRow",
    "gain_of",
    "init_weights",
    "kaiming_normal_",
    "kaiming_uniform_",
    "lsuv_",
    "xavier_normal_",
    "xavier_uniform_",
]
