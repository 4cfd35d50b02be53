"""What `verify` found: the verdict, its reasons, a table to read and a dict for JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from fastnorm.convert import ConversionReport
from fastnorm.verify.question import KINDS
from fastnorm.verify.rule import Comparison
from fastnorm.verify.speed import Speed

MOST_FAILURES = 10  # told by str(); the tuple has all of them


@dataclass(frozen=True)
class Allowed:
    """What a conversion may cost.

    Attributes:
        error: how many times the original's own distance from float64, before the floor that rounding explains.
        slowdown: how many times the original's time a training step or inference may take; None: speed is not judged.
    """

    error: float = 2.0
    slowdown: float | None = 1.02

    def __post_init__(self) -> None:
        for name in ("error", "slowdown"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"allowed.{name} must be a positive number, got {value!r}")


@dataclass(frozen=True)
class Verification:
    """The original and its conversion side by side.

    Attributes:
        conversion: what `fastnorm.convert` did to the copy.
        comparisons: every output, gradient and statistic, in each mode.
        speeds: training step and inference; empty where nothing was timed.
        saved: bytes kept for the backward by the original and by the converted model.
        notes: what could not be done as usual, in sentences.
        allowed: what was allowed.
    """

    conversion: ConversionReport
    comparisons: tuple[Comparison, ...]
    speeds: tuple[Speed, ...]
    saved: tuple[int, int] | None
    notes: tuple[str, ...]
    allowed: Allowed

    @property
    def failures(self) -> tuple[str, ...]:
        """A sentence for everything that is worse than allowed: first the worst of each mode and kind."""
        foremost = self.worst()
        wrong = [one for one in self.comparisons if not one.ok]
        wrong.sort(key=lambda one: (one not in foremost, -one.excess))
        limit = self.allowed.slowdown
        slow = [speed for speed in self.speeds if limit is not None and speed.slower_than(limit)]
        return (
            *(one.sentence() for one in wrong),
            *(f"{one.what}: {1 / one.ratio:.3f} times the original's time, {limit:g} is allowed" for one in slow),
        )

    @property
    def ok(self) -> bool:
        """Whether nothing is worse than allowed."""
        return not self.failures

    def worst(self) -> list[Comparison]:
        """Of each mode and kind the result that comes closest to its limit, or exceeds it the most."""
        modes = dict.fromkeys(one.mode for one in self.comparisons)
        groups = [[one for one in self.comparisons if (one.mode, one.kind) == at] for at in product(modes, KINDS)]
        return [max(group, key=lambda one: one.excess) for group in groups if group]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON: numbers that are not finite become None."""
        saved = None if self.saved is None else dict(zip(("original", "converted"), self.saved, strict=True))
        return {
            "ok": self.ok,
            "failures": list(self.failures),
            "notes": list(self.notes),
            "allowed": dataclasses.asdict(self.allowed),
            "conversion": self.conversion.to_dict(),
            "comparisons": [_finite(dataclasses.asdict(one)) for one in self.comparisons],
            "speeds": [_finite(dataclasses.asdict(one)) for one in self.speeds],
            "saved_bytes": saved,
        }

    def __str__(self) -> str:
        parts = [[str(self.conversion)], self._accuracy_lines(), self._cost_lines(), self._verdict_lines()]
        return "\n\n".join("\n".join(lines) for lines in parts if lines)

    def _accuracy_lines(self) -> list[str]:
        if not self.comparisons:
            return []
        rows = [("relative error", "closest to its limit", "converted", "original", "allowed")]
        worst = self.worst()
        for one in worst:
            unit, star = (1.0, "*") if one.vanishes else (one.size, "")
            ours, theirs, most = (f"{value / unit:.1e}{star}" for value in (one.converted, one.original, one.allowed))
            numbers = ("-", "-", "-") if one.problem else (ours, theirs, most)
            rows.append((f"{one.mode}: {one.kind}", one.name, *numbers))
        starred = any(one.vanishes and not one.problem for one in worst)
        return aligned(rows) + (["* absolute: the exact result is zero but for rounding"] if starred else [])

    def _cost_lines(self) -> list[str]:
        lines = []
        if self.speeds:
            rows = [("time", "original", "converted", "times as fast", "quartiles")]
            for one in self.speeds:
                noisy = " (noisy)" if one.noisy else ""
                times = (f"{1e3 * one.original:.2f} ms", f"{1e3 * one.converted:.2f} ms")
                rows.append((one.what, *times, f"{one.ratio:.2f}", f"{one.low:.2f} .. {one.high:.2f}{noisy}"))
            lines += aligned(rows)
        if self.saved is not None:
            ours, theirs = self.saved[1], self.saved[0]
            change = f" ({ours / theirs - 1:+.1%})" if theirs else ""
            lines.append(f"kept for backward: {theirs / 2**20:.2f} MiB -> {ours / 2**20:.2f} MiB{change}")
        return lines

    def _verdict_lines(self) -> list[str]:
        failures = self.failures
        lines = [f"note: {note}" for note in self.notes]
        lines += [f"FAIL {failure}" for failure in failures[:MOST_FAILURES]]
        if len(failures) > MOST_FAILURES:
            lines.append(f"FAIL and {len(failures) - MOST_FAILURES} more")
        return lines + ([] if failures else ["ok"])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of text, each as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _finite(numbers: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in numbers.items()}
