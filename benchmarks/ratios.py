"""Ratios of medians, from the rows of a results file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.measure import Row


class Ratios(NamedTuple):
    """A candidate's row, how many times faster than the peers it is, and its time over the floor's.

    extra: microseconds that it takes more than eager. own: microseconds that it takes.
    """

    row: Row
    eager: float | None
    compile: float | None
    floor: float | None
    fused: float | None = None  # torch.optim's fused step
    extra: float | None = None
    own: float | None = None


def median(row: Row | None) -> float | None:
    """Microseconds a call; None for a row without a time, or whose time was disturbed too much to compare."""
    if row is None or row["status"] != "ok":
        return None
    return float(row["quantiles_us"]["p50"])


def by_case(rows: Iterable[Row]) -> dict[tuple[str, int], dict[str, Row]]:
    """`{(case name, threads): {candidate: row}}`, in the order of the rows."""
    found: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row["case"], row["threads"]), {})[row["candidate"]] = row
    return found


def floor_of(candidates: dict[str, Row]) -> float | None:
    """The best of the measured floors, in microseconds."""
    times = [median(row) for name, row in candidates.items() if name.startswith("floor:")]
    return min((t for t in times if t is not None), default=None)


def over(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or not denominator else numerator / denominator


def ratios_of(candidates: dict[str, Row], name: str) -> Ratios | None:
    """The ratios of one candidate of a case; None when it was not measured."""
    if name not in candidates:
        return None
    own = median(candidates[name])
    eager, compiled = median(candidates.get("eager")), median(candidates.get("compile"))
    fused = over(median(candidates.get("fused")), own)
    extra = None if own is None or eager is None else own - eager
    floor = over(own, floor_of(candidates))
    return Ratios(candidates[name], over(eager, own), over(compiled, own), floor, fused, extra, own)


def all_ratios(rows: Iterable[Row], name: str = "fastnorm") -> list[Ratios]:
    """The ratios of one candidate in every case that has it."""
    found = (ratios_of(candidates, name) for candidates in by_case(rows).values())
    return [one for one in found if one is not None]
