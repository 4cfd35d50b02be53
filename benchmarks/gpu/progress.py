"""A pytest plugin for tests that run in slices of time: what has passed is written down, and not run again.

    pytest -p benchmarks.gpu.progress --passed FILE --skip-file FILE --deadline UNIX_TIME --columns a,b --summary FILE

--skip-file names tests that passed before (a file of its own: --passed grows while workers of pytest-xdist still
collect). After the deadline the remaining tests are skipped. A test whose parameters hold cases belongs to their
columns, as `column` of the case says; a test without cases belongs to every column.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

OUT_OF_TIME = "out of time"
NO_CASES = re.compile(r"got empty parameter set.*")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("progress")
    group.addoption("--passed", type=Path, help="append the names of tests that pass")
    group.addoption("--skip-file", type=Path, help="leave out the tests named here")
    group.addoption("--deadline", type=float, default=float("inf"), help="start no test after this time")
    group.addoption("--columns", default="", help="leave out the cases of other columns")
    group.addoption("--summary", type=Path, help="write counts here, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--summary") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Progress(config))


def names(path: Path | None) -> set[str]:
    return set(path.read_text().splitlines()) if path is not None and path.exists() else set()


def in_columns(item: pytest.Item, columns: set[str]) -> bool:
    params = getattr(getattr(item, "callspec", None), "params", {})
    own = {column for value in params.values() if (column := getattr(value, "column", None)) is not None}
    return not own or bool(own & columns)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    before = names(config.getoption("--skip-file"))
    columns = set(filter(None, config.getoption("--columns").split(",")))
    keep = [i for i in items if i.nodeid not in before and (not columns or in_columns(i, columns))]
    kept = set(map(id, keep))
    config.hook.pytest_deselected(items=[i for i in items if id(i) not in kept])
    items[:] = keep


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() > item.config.getoption("--deadline"):
        pytest.skip(OUT_OF_TIME)


class Progress:
    """Of the process that hears of every test, which under pytest-xdist runs none itself."""

    def __init__(self, config: pytest.Config) -> None:
        self.passed_file: Path = config.getoption("--passed")
        self.summary_file: Path = config.getoption("--summary")
        self.good: set[str] = set()
        self.passed = 0
        self.failed: list[str] = []
        self.skipped: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped[NO_CASES.sub("no case for this backend", reason.removeprefix("Skipped: "))] += 1
        elif report.when == "call":
            self.good.add(report.nodeid)
        elif report.when == "teardown" and report.nodeid in self.good:
            self.passed += 1
            with self.passed_file.open("a") as file:
                file.write(report.nodeid + "\n")

    def pytest_sessionfinish(self) -> None:
        counts: dict[str, Any] = {"passed": self.passed, "failed": self.failed, "skipped": self.skipped}
        self.summary_file.write_text(json.dumps(counts))
