"""For which GPUs the kernels are compiled: what is asked for, what the compiler knows, what is refused."""

from __future__ import annotations

import pytest

from build_tools.errors import CannotBuild
from build_tools.nvcc import Nvcc, read_targets

KNOWN = {75, 80, 86, 90, 100, 120}


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        (None, ("sm_80", "sm_90", "sm_100", "compute_100")),
        ("8.0", ("sm_80",)),
        ("8.0;9.0+PTX", ("sm_80", "sm_90", "compute_90")),
        ("8.6 9.0a,12.0", ("sm_86", "sm_90a", "sm_120")),
    ],
)
def test_targets(text: str | None, targets: tuple[str, ...]) -> None:
    assert read_targets(text, KNOWN) == targets


def test_a_compiler_that_does_not_know_all_of_the_default() -> None:
    assert read_targets(None, {80, 90}) == ("sm_80", "sm_90", "compute_90")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Hopper", "'Hopper' is not a compute capability"),
        ("7.5", "need 8.0 or later"),
        ("8.9", "this nvcc does not know 8.9"),
    ],
)
def test_refused(text: str, says: str) -> None:
    with pytest.raises(CannotBuild, match=says):
        read_targets(text, KNOWN)


def test_gencode() -> None:
    assert Nvcc("nvcc", "13.0", ("sm_90a", "compute_100")).gencode == (
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100,code=compute_100",
    )
