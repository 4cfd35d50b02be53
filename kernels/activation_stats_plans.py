"""Launch numbers of activation_stats as data: pure functions of the size, as in launch.py, and as unmeasured."""

from __future__ import annotations

from dataclasses import dataclass

from .launch import FINISH_TILE, FINISH_WARPS, FORWARD, LANES, WARPS, power_of_two_above, register_limit


@dataclass(frozen=True)
class ActivationStatsPlan:
    """One wave of programs over the storage. bins: a power of two with room for what lies outside."""

    programs: int
    blocks: int
    block: int
    bins: int

    @property
    def grid(self) -> tuple[int]:
        return (self.programs,)

    @property
    def arguments(self) -> dict[str, int | None]:
        blocks = {"BLOCK": self.block, "BINS": self.bins, "num_warps": WARPS, "enable_fp_fusion": False}
        return {**blocks, **register_limit(FORWARD.registers)}

    @property
    def finish_arguments(self) -> dict[str, int]:
        rows = max(1, FINISH_TILE // self.bins)
        blocks = {"BLOCK_PROGRAMS": power_of_two_above(self.programs), "BLOCK_ROWS": rows, "BINS": self.bins}
        return {**blocks, "num_warps": FINISH_WARPS, "enable_fp_fusion": False}


def activation_stats_plan(numel: int, bins: int, itemsize: int, n_sms: int) -> ActivationStatsPlan:
    """32 bytes a lane, which leave registers for two accumulators a value and the histogram."""
    block = WARPS * LANES * (32 // itemsize)
    blocks = -(-numel // block)
    return ActivationStatsPlan(
        programs=min(blocks, FORWARD.programs_per_sm * n_sms),
        blocks=blocks,
        block=block,
        bins=max(2 * LANES, power_of_two_above(bins + 1)),  # with 32 one register is spilled on sm_100
    )
