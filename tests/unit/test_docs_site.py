"""The documentation site: it has every public name, builds without a warning, and loads nothing from elsewhere."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fastnorm

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs/reference").glob("*.md"))}
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)
ON_ONE_LINE = re.compile(r"\b(?:Args|Returns|Raises):[ \t]*\S")
ELSEWHERE = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"""(?:@import\s+|url\(\s*)["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}


def public_names() -> Iterator[tuple[str, Any]]:
    """Every name that a user may type, with what it is; of a module its own public names."""
    for module in (fastnorm, fastnorm.functional, fastnorm.nn, fastnorm.init, fastnorm.optim):
        for name in module.__all__:
            prefix = "fastnorm" if module is fastnorm.nn else module.__name__  # its layers are fastnorm's own
            yield f"{prefix}.{name}", getattr(module, name)
    for name, value in vars(fastnorm.optim.functional).items():
        if inspect.isfunction(value) and value.__module__ == "fastnorm.optim.functional" and name[0] != "_":
            yield f"fastnorm.optim.functional.{name}", value


def resolve(path: str) -> Any:
    """What a dotted name of the reference stands for. A module may be hidden behind a function of the same name."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def loaded_from_elsewhere(page: str) -> list[str]:
    """Addresses on other machines that a browser would ask for to show a page; links to follow are none."""

    class Finder(HTMLParser):
        found: list[str]

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            address = dict(attrs).get(LOADED.get(tag, "")) or ""
            if ELSEWHERE.search(address) and dict(attrs).get("rel") not in ("canonical", "author", "license"):
                self.found.append(address)

    finder = Finder()
    finder.found = []
    finder.feed(page)
    return finder.found + IN_STYLE.findall(page)


def test_every_public_name_is_in_the_reference_once() -> None:
    entries = [resolve(name) for text in REFERENCE.values() for name in ENTRY.findall(text)]
    text = "\n".join(REFERENCE.values())
    for name, value in public_names():
        if isinstance(value, (ModuleType, str)):
            assert f"`{name}`" in text, f"{name} is not mentioned in docs/reference"
        else:
            assert entries.count(value) == 1, f"{name} must have one entry `::: {name}` in docs/reference"


def test_every_entry_of_the_reference_says_what_it_is() -> None:
    for text in REFERENCE.values():
        for name in ENTRY.findall(text):
            doc = resolve(name).__doc__
            assert doc, f"{name} has no docstring of its own"
            assert not ON_ONE_LINE.search(doc), f"{name}: Args, Returns and Raises head indented lines"


def test_what_a_page_loads_is_found() -> None:
    page = """<a href="https://a"></a><link rel="canonical" href="https://b"><script src="assets/c.js"></script>
        <script src="https://d"></script><link rel="stylesheet" href="//e/f.css"><img src='http://g'>
        <style>@import "https://h"; p { background: url(https://i/j.png) }</style>"""
    assert loaded_from_elsewhere(page) == ["https://d", "//e/f.css", "http://g", "https://h", "https://i/j.png"]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    built = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*.html")}
    assert built.keys() >= {"index.html", "math.html", *(f"reference/{Path(name).stem}.html" for name in REFERENCE)}
    for path in [*built.values(), *tmp_path.rglob("*.css")]:
        assert not loaded_from_elsewhere(path.read_text(encoding="utf-8")), path
    for name, text in REFERENCE.items():
        page = built[f"reference/{Path(name).stem}.html"].read_text(encoding="utf-8")
        for entry in ENTRY.findall(text):
            assert f'id="{entry}"' in page
