"""What NVIDIA's assembler says of a kernel: registers, spills, and the widths of its accesses to memory."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter


def resource_usage(cubin: bytes) -> tuple[int, int, int]:
    """Registers, stack and shared memory in bytes, as cuobjdump reads them from a compiled kernel."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", report)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage printed no resources: {report!r}")
    registers, stack, shared = map(int, found.groups())
    return registers, stack, shared


def access_widths(text: str, operation: str) -> dict[int, int]:
    """How many global accesses ("ld" or "st") of each width in bits a PTX text holds."""
    widths: Counter[int] = Counter()
    for modifiers in re.findall(rf"\b{operation}\.global([.\w:]*)", text):
        lanes = re.search(r"\.v(\d)", modifiers)
        bits = re.search(r"\.[bfus](\d+)$", modifiers)
        if bits is None:
            raise RuntimeError(f"no width in {operation}.global{modifiers}")
        widths[int(bits[1]) * (int(lanes[1]) if lanes else 1)] += 1
    return dict(widths)
