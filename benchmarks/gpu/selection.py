"""What --only may name: steps, groups of steps, op columns and groups of columns."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from benchmarks import compare
from fastnorm.ops.schemas import SCHEMAS

COLUMN_GROUPS = {"norms": ("batch_norm", "row_norm"), "activations": ("general_relu",)}
STEP_GROUPS = {
    "tests": ("conformance", "eager", "large", "graphs"),
    "sanitizer": ("memcheck", "racecheck", "synccheck"),
}


class UnknownName(ValueError):
    """--only was given a name that is neither a step nor a column nor a group of them."""


def columns() -> tuple[str, ...]:
    """The op columns: an op's name without its direction, and what the benchmark's cases for a GPU belong to."""
    of_ops = [re.sub("_(fwd|bwd|step)$", "", name) for name in SCHEMAS]
    measured = compare.chosen(compare.parser().parse_args(["--device", "cuda"]))
    return tuple(dict.fromkeys([*of_ops, *(case.spec.column for case in measured)]))


def column_groups(columns: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The groups, with all that is neither a norm nor an activation as "optimizers", where there is any."""
    named = {column for group in COLUMN_GROUPS.values() for column in group}
    rest = tuple(column for column in columns if column not in named)
    return COLUMN_GROUPS | ({"optimizers": rest} if rest else {})


def choose(
    names: Iterable[str], steps: Collection[str], columns: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(steps to take, in their order; columns to look at, none meaning all). No step named means every step."""
    groups = column_groups(columns)
    wanted_steps: set[str] = set()
    wanted_columns: set[str] = set()
    for name in names:
        if name in steps or name in STEP_GROUPS:
            wanted_steps |= set(STEP_GROUPS.get(name, (name,)))
        elif name in columns or name in groups:
            wanted_columns |= set(groups.get(name, (name,)))
        else:
            known = [*steps, *STEP_GROUPS, *columns, *groups]
            raise UnknownName(f"--only knows {', '.join(known)}; got {name}")
    chosen = tuple(step for step in steps if not wanted_steps or step in wanted_steps)
    return chosen, tuple(column for column in columns if column in wanted_columns)
