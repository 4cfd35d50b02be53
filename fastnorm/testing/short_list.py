"""A few cases that together launch every Triton kernel, small enough for tools that slow a GPU down a hundredfold.

Sizes are odd, so that every tile sticks out somewhere; tests/unit/test_planned_launches.py holds that no kernel is
missing, with the plans of an H200.
"""

from __future__ import annotations

from fastnorm.testing.cases import Case, NormCase, ReluCase, RowCase
from fastnorm.testing.stats import StatsCase

SHORT_LIST: tuple[Case | StatsCase, ...] = (
    ReluCase((4099,), dtype="bf16"),
    NormCase((5, 7, 3, 11), act="full", residual="same"),  # channels that a program holds
    NormCase((5, 33, 67, 61), dtype="bf16", act="full", residual="same"),  # longer ones, in tiles
    NormCase((5, 33, 67, 61), "channels_last", act="full"),
    NormCase((5, 33, 67, 61), training=False, act="full"),
    RowCase((67, 129), "layer", dtype="bf16", act="full", residual="same"),  # sets that a program holds
    RowCase((3, 7, 5, 11), "group", 7, "channels_last", act="full", residual="same"),
    RowCase((3, 20_011), "layer", act="full", residual="same"),  # longer sets, weights along them
    RowCase((3, 20_011), "rms", bias=None),
    RowCase((2, 6, 67, 211), "group", 2, dtype="bf16", act="full", residual="same"),  # longer sets, a weight a line
    RowCase((3, 35, 13, 11), "position", act="full"),
    StatsCase((67, 611), dtype="bf16"),
)
