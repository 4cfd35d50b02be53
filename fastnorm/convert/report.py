"""What a conversion did, as data and as a table."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Replaced:
    """A module whose class was exchanged: its qualified name, the class it had, the class it has."""

    name: str
    from_class: str
    to_class: str


@dataclasses.dataclass(frozen=True)
class Fused:
    """A norm that is computed together with what follows it.

    Attributes:
        name: the norm's.
        inside: the module in whose forward that happens.
        inside_class: its class.
        activation: GeneralRelu's numbers.
        residual: whether a sum before the activation is taken in as well.
    """

    name: str
    inside: str
    inside_class: str
    activation: str
    residual: bool


@dataclasses.dataclass(frozen=True)
class Left:
    """A module that stays as it is, its class, and why."""

    name: str
    from_class: str
    reason: str


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What `convert` or `revert` did to a model, module by module. `str` gives a table, `to_dict` plain data.

    Attributes:
        replaced: the norms (for `revert`, all modules) whose class was exchanged.
        fused: the norms that take in the activation, and perhaps the sum, behind them.
        left: norms that were not replaced, and activations behind norms that were not fused, each with the reason.
    """

    replaced: tuple[Replaced, ...] = ()
    fused: tuple[Fused, ...] = ()
    left: tuple[Left, ...] = ()

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Lists of plain dicts, as json takes them."""
        return {
            field.name: [dataclasses.asdict(record) for record in getattr(self, field.name)]
            for field in dataclasses.fields(self)
        }

    def __str__(self) -> str:
        sums = sum(record.residual for record in self.fused)
        fused = f"{len(self.fused)} fused" + (f" ({sums} with a residual)" if sums else "")
        lines = [f"{len(self.replaced)} replaced, {fused}, {len(self.left)} left"]
        lines += _grouped("replaced", [(r.name, f"{r.from_class} -> {r.to_class}") for r in self.replaced])
        lines += _grouped("fused", [(f.name, _fusion(f)) for f in self.fused])
        lines += _grouped("left", [(r.name, f"{r.from_class}: {r.reason}") for r in self.left])
        return "\n".join(lines)


def _fusion(record: Fused) -> str:
    norm = "norm + residual" if record.residual else "norm"
    return f"{norm} -> {record.activation} in {record.inside_class}"


def _grouped(title: str, rows: list[tuple[str, str]]) -> list[str]:
    """A line for each text, with how many modules it is said of and the first of their names."""
    names: dict[str, list[str]] = {}
    for name, text in rows:
        names.setdefault(text, []).append(name or "(the model)")
    return [
        f"{title:<8} {len(group):>4}  {text}  [{', '.join(group[:3])}{', ...' if len(group) > 3 else ''}]"
        for text, group in names.items()
    ]
