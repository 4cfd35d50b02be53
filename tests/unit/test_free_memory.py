"""What tests that need gigabytes ask first."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastnorm.testing.free_memory import free_memory

GIB = 2**30


def put(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("group", "files", "gib"),
    (
        ("0::/", {}, 20),
        ("0::/a/b", {"a/b/memory.max": 8 * GIB, "a/b/memory.current": 3 * GIB}, 5),
        ("0::/a/b", {"memory.max": 8 * GIB, "memory.current": 1 * GIB}, 7),
        ("0::/a", {"a/memory.max": "max", "a/memory.current": GIB}, 20),
        ("4:memory:/x", {"memory/x/memory.limit_in_bytes": 6 * GIB, "memory/x/memory.usage_in_bytes": 2 * GIB}, 4),
        ("4:memory:/x", {"memory/memory.limit_in_bytes": 2**63 - 4096, "memory/memory.usage_in_bytes": GIB}, 20),
        ("4:memory:/x", {"memory/memory.limit_in_bytes": GIB, "memory/memory.usage_in_bytes": 2 * GIB}, 0),
    ),
)
def test_the_narrowest_limit_counts(tmp_path: Path, group: str, files: dict[str, object], gib: int) -> None:
    put(tmp_path, {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {20 * GIB // 1024} kB", "proc/self/cgroup": group})
    put(tmp_path / "sys/fs/cgroup", files)
    assert free_memory(tmp_path) == gib * GIB


def test_here() -> None:
    assert free_memory() > 0


def test_where_nothing_is_told(tmp_path: Path) -> None:
    assert free_memory(tmp_path) > 0
