"""How much memory a test may take: what the system has left, and no more than its control group allows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Of a group's folder: its limit and what is taken of it, in control groups of version 2 and 1.
FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def free_memory(root: Path = Path("/")) -> int:
    """Bytes. A container sees the whole machine in /proc/meminfo and is ended at its group's limit."""
    return max(0, min([_of_the_system(root), *_of_the_groups(root)]))


def _of_the_system(root: Path) -> int:
    try:
        known = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
        return int(known["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _of_the_groups(root: Path) -> Iterator[int]:
    """A container may see its group at its full path or at the top: every folder that is there counts."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    paths = {line.split(":", 2)[2].strip("/") for line in lines if line.split(":", 2)[1] in ("", "memory")}
    for base in (root / "sys/fs/cgroup", root / "sys/fs/cgroup/memory"):
        for folder in {base, *(base / path for path in paths)}:
            for limit, taken in FILES:
                try:
                    yield int((folder / limit).read_text()) - int((folder / taken).read_text())
                except (OSError, ValueError):  # not there, or "max"
                    continue
