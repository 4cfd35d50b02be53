"""The programs of the row family: how a tensor is cut among them, their grids, and the arguments that say so."""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import launch
from .launch import View, power_of_two_above

FINISH_SETS = 64  # of a finishing program at most


@dataclass(frozen=True)
class RowView(View):
    """A View whose sets are d neighbouring lines (c) of one sample; a line runs over the positions (s).

    along: weight and bias have an element for every position (layer norm); else one for every line.
    """

    d: int
    along: bool

    @property
    def lines(self) -> int:
        return self.n * self.c

    @property
    def rows(self) -> bool:
        """Whether sets are rows of memory with a weight for every element: then n = 1 and c counts samples."""
        return self.along and not self.channels_last

    @property
    def sample(self) -> RowView:
        """What a plan may look at without looking at the batch."""
        return replace(self, n=1, c=1 if self.rows else self.c)


@dataclass(frozen=True)
class RowNormPlan:
    """How a RowView is cut into tiles of [block_c, block_s] and programs.

    held: one program owns whole sets, each padded to block_d lines, and block_s covers their lines.
    Otherwise lines are cut into s_blocks tiles, dealt in turn to `splits` programs. sweeps: how many programs
    share the line tiles of one s_block in the pass for dx; if weights run along the lines, it sums across
    them. even_s: no tile sticks out along s. c_vec, s_vec, registers: as in BatchNormPlan.
    """

    view: RowView
    held: bool
    block_c: int
    block_s: int
    block_d: int
    c_blocks: int
    s_blocks: int
    splits: int
    sweeps: int
    num_warps: int
    c_vec: int
    s_vec: int
    registers: int | None

    @property
    def line_tiles(self) -> int:
        return self.view.n * self.c_blocks

    @property
    def even_s(self) -> bool:
        return self.view.s % self.block_s == 0

    @property
    def sizes(self) -> tuple[int, int]:
        """The arguments `channels` and `size` of the kernels."""
        return self.view.c // self.c_vec, self.view.s // self.s_vec

    @property
    def tile_arguments(self) -> dict[str, int]:
        """The constexprs of every kernel that reads tiles, and its warps."""
        blocks = {"BLOCK_C": self.block_c, "BLOCK_S": self.block_s, "C_VEC": self.c_vec, "S_VEC": self.s_vec}
        layout = {"CHANNELS_LAST": self.view.channels_last}
        return {**blocks, **layout, "num_warps": self.num_warps, "enable_fp_fusion": False}

    @property
    def set_arguments(self) -> dict[str, int]:
        """And of those that also need to know which lines are a set, and where its weights are."""
        return {**self.tile_arguments, "D": self.view.d, "ALONG": self.view.along}

    @property
    def held_arguments(self) -> dict[str, int]:
        return {**self.set_arguments, "BLOCK_D": self.block_d}

    @property
    def forward_grid(self) -> tuple[int]:
        """Of the programs that hold sets from statistics to output."""
        return (self.line_tiles,)

    @property
    def backward_grid(self) -> tuple[int, int]:
        """Of those that hold sets from sums to dx: weights along the lines are shared by all blocks of lines."""
        return (1, self.sweeps) if self.view.along else (self.c_blocks, self.splits)

    @property
    def backward_tiles(self) -> int:
        """What a column of that grid has to walk through."""
        return self.line_tiles if self.view.along else self.view.n

    @property
    def reduce_grid(self) -> tuple[int, int]:
        return (self.line_tiles, self.splits)

    @property
    def apply_grid(self) -> tuple[int]:
        return (self.line_tiles * self.s_blocks,)

    @property
    def sweep_grid(self) -> tuple[int]:
        return (self.sweeps * self.s_blocks,)

    @property
    def finish_grid(self) -> tuple[int]:
        """Of the programs that merge the partial results of sets."""
        return (-(-(self.view.lines // self.view.d) // self.finish_arguments["BLOCK_SETS"]),)

    @property
    def finish_arguments(self) -> dict[str, int]:
        entries = min(power_of_two_above(self.splits * self.view.d), launch.FINISH_TILE)
        blocks = {"BLOCK_SETS": min(FINISH_SETS, launch.FINISH_TILE // entries), "BLOCK_ENTRIES": entries}
        return {**blocks, "D": self.view.d, "num_warps": launch.FINISH_WARPS, "enable_fp_fusion": False}
