"""What Triton's first intermediate text says of a kernel's addresses."""

from __future__ import annotations

import re

ARGUMENT = re.compile(r"(%\w+): !tt\.ptr<")
ADD = re.compile(r"(%[\w#]+) = tt\.addptr (%[\w#]+), (%[\w#]+)(?: \{[^}]*\})? : .*, (?:tensor<[\dx]+x)?i(\d+)>? ")
SAME = re.compile(r"(%[\w#]+) = tt\.(?:splat|broadcast|expand_dims|bitcast|reshape) (%[\w#]+)[ ,{].*!tt\.ptr<")
LOADED = re.compile(r"(%[\w#]+) = tt\.int_to_ptr ")  # a pointer out of a table
ACCESS = re.compile(r"tt\.(?:load|store) (%[\w#]+)")


def narrow_arguments(ttir: str) -> list[str]:
    """The pointer arguments that some access reaches by 32-bit steps alone; "?" for an access of unknown origin.

    "table" stands for all pointers that are read from memory.
    An offset past 2^31 elements needs one step of 64 bits on its way; the others may be 32 bits wide, within a tile.
    """
    entry = ttir[ttir.index("tt.func public") :]
    head, _, body = entry.partition("{\n")
    origin = {name: name.removeprefix("%") for name in ARGUMENT.findall(head)}
    stepped: dict[str, set[int]] = {name: set() for name in origin}
    narrow: set[str] = set()
    for line in body.splitlines():
        if added := ADD.search(line):
            result, base, _, bits = added.groups()
            if base in origin:
                origin[result], stepped[result] = origin[base], stepped[base] | {int(bits)}
        elif loaded := LOADED.search(line):
            origin[loaded[1]], stepped[loaded[1]] = "table", set()
        elif same := SAME.search(line):
            result, base = same.groups()
            if base in origin:
                origin[result], stepped[result] = origin[base], stepped[base]
        elif access := ACCESS.search(line):
            pointer = access[1]
            if pointer not in origin:
                narrow.add("?")
            elif stepped[pointer] and 64 not in stepped[pointer]:
                narrow.add(origin[pointer])
    return sorted(narrow)
