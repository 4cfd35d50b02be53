"""The code of the pages: every python block of README.md and docs runs, in order, one namespace a page."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastnorm

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^[ \t]*```(.*)$", re.MULTILINE)
NOT_RUN = {"", "text"}  # what programs print; a block of any other kind than python would be code that no test runs
MUST_HAVE_CODE = {
    "README.md",
    "docs/drop_in.md",
    "docs/fusing.md",
    "docs/optimizers.md",
    "docs/init_and_stats.md",
    "docs/verify.md",
}


def blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """First line (from 1), language and content of every fenced block. ValueError for one that is not closed."""
    fences = list(FENCE.finditer(text))
    if len(fences) % 2:
        raise ValueError("a block of code is not closed")
    for opening, closing in zip(fences[::2], fences[1::2], strict=True):
        yield text.count("\n", 0, opening.end()) + 2, opening[1].strip(), text[opening.end() + 1 : closing.start()]


def run_page(path: Path, module: types.ModuleType) -> int:
    """Executes the python blocks of a page; how many there are. Line numbers of errors are the page's own."""
    count = 0
    for line, language, source in blocks(path.read_text(encoding="utf-8")):
        if language == "python":
            code = compile("\n" * (line - 1) + source, str(path), "exec", dont_inherit=True)
            exec(code, module.__dict__)
            count += 1
    return count


@pytest.fixture
def page_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    """Where a page's names live, as classes and dataclasses need one; a page's files go to a folder of their own."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.chdir(tmp_path)
    return module


def pages() -> list[str]:
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


@pytest.mark.parametrize("page", pages())
def test_the_code_of_a_page_runs(page: str, page_module: types.ModuleType) -> None:
    with fastnorm.use_backend("auto"):  # what a page chooses ends with the page
        assert run_page(ROOT / page, page_module) > 0 or page not in MUST_HAVE_CODE


@pytest.mark.parametrize("page", pages())
def test_every_block_is_python_or_output(page: str) -> None:
    languages = {language for _, language, _ in blocks((ROOT / page).read_text(encoding="utf-8"))}
    assert languages <= NOT_RUN | {"python"}


def test_pages_that_explain_by_code_are_there() -> None:
    assert set(pages()) >= MUST_HAVE_CODE


def test_blocks_share_names_and_errors_point_into_the_page(tmp_path: Path, page_module: types.ModuleType) -> None:
    page = tmp_path / "page.md"
    shown = "# Title\n\n```python\na = 1\n```\n\n```\nprinted\n```\n\n"
    page.write_text(shown + "```python\nassert a == 1\nassert a == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        run_page(page, page_module)
    assert caught.traceback[-1].path == page
    assert caught.traceback[-1].lineno + 1 == 13  # pytest counts from 0


def test_an_open_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="not closed"):
        list(blocks("```python\na = 1\n"))
