"""The numbers of a run, in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from fastnorm.demo.train import History

FIRST_LOSS_LIMIT = 1e-5
# Two nets that differ by rounding drift apart as two seeds would; three standard errors of a difference.
NOISE_SIGMAS = 3.0


@dataclasses.dataclass(frozen=True)
class Summary:
    """What one run measured; every dict has one entry per net, ``torch.nn`` first."""

    data: str
    norm: str
    opt: str
    device: str
    threads: int
    backend: str
    seed: int
    batch_size: int
    valid_count: int
    target: float
    accuracy: dict[str, float]
    first_loss_difference: float
    step_seconds: dict[str, float]
    images_per_second: dict[str, float]
    train_seconds: dict[str, float]
    norm_act_seconds: dict[str, float]
    saved_bytes: dict[str, int]

    @property
    def noise(self) -> float:
        """Largest difference in accuracy that chance explains: two binomial shares of valid_count images."""
        share = sum(self.accuracy.values()) / len(self.accuracy)
        share = min(max(share, 1 / self.valid_count), 1 - 1 / self.valid_count)
        return NOISE_SIGMAS * math.sqrt(2 * share * (1 - share) / self.valid_count)


def first_loss_difference(histories: Mapping[str, History]) -> float:
    """Relative difference of both nets' losses on the first batch, before any update."""
    theirs, ours = (history.losses[0] for history in histories.values())
    return abs(ours - theirs) / max(abs(theirs), 1e-30)


def first_loss_line(histories: Mapping[str, History]) -> str:
    """Both nets' losses on the first batch, and whether they agree to rounding."""
    theirs, ours = (history.losses[0] for history in histories.values())
    difference = first_loss_difference(histories)
    verdict = "agree" if difference <= FIRST_LOSS_LIMIT else "DISAGREE"
    return f"first batch: losses {theirs:.7f} and {ours:.7f} {verdict} (relative difference {difference:.1e})"


def table_head() -> str:
    """The header of the per-epoch table."""
    return (
        "        training loss                       validation accuracy\n"
        "epoch   torch.nn  fastnorm  difference      torch.nn  fastnorm  difference"
    )


def table_row(histories: Mapping[str, History]) -> str:
    """The latest epoch's line of the table."""
    theirs, ours = histories.values()
    a, b, p, q = theirs.epoch_loss[-1], ours.epoch_loss[-1], theirs.accuracy[-1], ours.accuracy[-1]
    return f"{len(ours.epoch_loss):5d}   {a:8.5f}  {b:8.5f}  {b - a:+10.1e}      {p:8.4f}  {q:8.4f}  {q - p:+10.4f}"


def summary_lines(summary: Summary) -> list[str]:
    """The closing table: accuracy, speed and memory of both nets, with fastnorm's ratio."""
    mib = {name: count / 2**20 for name, count in summary.saved_bytes.items()}
    rows = [
        ("final validation accuracy", summary.accuracy, ".4f", None),
        ("training step, images/s", summary.images_per_second, ",.0f", _ratio(summary.images_per_second)),
        (
            "norm + activation, ms per batch",
            {name: 1e3 * value for name, value in summary.norm_act_seconds.items()},
            ".3f",
            1 / _ratio(summary.norm_act_seconds),
        ),
        ("activations saved for backward, MiB", mib, ".2f", 1 / _ratio(mib)),
        ("seconds of training in all", summary.train_seconds, ".1f", None),
    ]
    better = ("", "x as fast", "x as fast", "x less memory", "")
    lines = [f"{'':36}{'torch.nn':>12}{'fastnorm':>12}"]
    for (label, values, form, ratio), words in zip(rows, better, strict=True):
        cells = "".join(f"{value:>12{form}}" for value in values.values())
        lines.append(f"{label:36}{cells}" + (f"   {ratio:.2f}{words}" if ratio else ""))
    return lines


def _ratio(values: Mapping[str, float]) -> float:
    """fastnorm's value over torch.nn's."""
    theirs, ours = values.values()
    return ours / theirs


def failures(summary: Summary, *, enforce_target: bool) -> list[str]:
    """One plain sentence per check that failed."""
    found = []
    if not summary.first_loss_difference <= FIRST_LOSS_LIMIT:
        found.append(
            f"the first batch's losses differ by {summary.first_loss_difference:.1e} of their value,"
            f" more than the {FIRST_LOSS_LIMIT:.0e} that rounding explains"
        )
    theirs, ours = summary.accuracy.values()
    if abs(ours - theirs) > summary.noise:
        found.append(f"the accuracies {theirs:.4f} and {ours:.4f} differ by more than noise, {summary.noise:.4f}")
    if enforce_target and ours < summary.target:
        found.append(f"the final validation accuracy {ours:.4f} is below the target {summary.target:.2f}")
    return found
