"""What AMD's assembler text says of a kernel: registers, spills, and the widths of its accesses to memory."""

from __future__ import annotations

import re
from collections import Counter

BITS = {"dword": 32, "ushort": 16, "short": 16, "sshort": 16, "ubyte": 8, "sbyte": 8, "byte": 8}
ACCESS = re.compile(r"\b(?:global|buffer|flat)_(load|store)_(dword|ushort|short|sshort|ubyte|sbyte|byte)(?:x(\d))?")
OPERATIONS = {"ld": "load", "st": "store"}


def resource_usage(asm: str) -> tuple[int, int, int]:
    """Vector registers, bytes of local memory a thread (where registers were spilled to), bytes of shared memory."""
    numbers = {}
    for name in ("vgpr_count", "private_segment_fixed_size", "group_segment_fixed_size"):
        found = re.search(rf"\.{name}:\s*(\d+)", asm)
        if found is None:
            raise RuntimeError(f"no {name} in this assembler text")
        numbers[name] = int(found[1])
    return numbers["vgpr_count"], numbers["private_segment_fixed_size"], numbers["group_segment_fixed_size"]


def access_widths(text: str, operation: str) -> dict[int, int]:
    """How many accesses to memory ("ld" or "st") of each width in bits."""
    widths: Counter[int] = Counter()
    for kind, unit, times in ACCESS.findall(text):
        if kind == OPERATIONS[operation]:
            widths[BITS[unit] * int(times or 1)] += 1
    return dict(widths)
