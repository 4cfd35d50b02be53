"""A pytest plugin, `-p tests.emulation.optimizers`: the optimizers' step on a device runs csrc/cuda/optim.cu, emulated.

It takes the place of Triton under its interpreter: table, chunks and numbers are those of a GPU, in the CPU's memory.
"""

from __future__ import annotations

import os

import pytest
import torch

from fastnorm.ops.optim_table import NativeLauncher
from fastnorm.optim import plan

from .build import NAMESPACE


def pytest_configure(config: pytest.Config) -> None:
    torch.ops.load_library(os.environ["FASTNORM_EMULATED"])
    plan.launcher_of = lambda backend: NativeLauncher(NAMESPACE)


def pytest_unconfigure(config: pytest.Config) -> None:
    print("run by", torch.ops.fastnorm_emulated.optim_update)
