"""Runs the steps of a build: through ninja where there is one, else one after the other."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path

from build_tools.errors import CannotBuild
from build_tools.steps import Build, Step


def run_build(build: Build, *, root: Path, ninja: str | None, jobs: int | None, only: tuple[str, ...] = ()) -> None:
    """Brings every product, or with ninja `only` those named, up to date. Raises CannotBuild when a command fails."""
    start = time.monotonic()
    for path, text in build.generated.items():
        _write_if_changed(root / path, text)
    for step in build.steps:
        (root / step.output).parent.mkdir(parents=True, exist_ok=True)
    if ninja is None:
        print("fastnorm: no ninja here, so every file is compiled anew, one at a time.", flush=True)
        _run_in_turn(build.steps, root)
    else:
        _run_ninja(build, root, ninja, jobs, [build.products[name] for name in only])
    print(f"fastnorm: {', '.join(only or build.products)} built in {time.monotonic() - start:.1f} s", flush=True)


def ninja_text(build: Build) -> str:
    """The build.ninja of a build. Commands are written out whole, so that a changed flag rebuilds."""
    lines = [
        *("ninja_required_version = 1.5", f"builddir = {_escape(build.folder.as_posix())}"),
        *("rule compile", "  command = $cmd", "  description = $title", "  deps = gcc", "  depfile = $out.d"),
        *("rule link", "  command = $cmd", "  description = $title"),
    ]
    for step in build.steps:
        inputs = " ".join(_escape(path) for path in step.inputs)
        lines += [
            f"build {_escape(step.output)}: {'compile' if step.is_compile else 'link'} {inputs}",
            f"  cmd = {shlex.join(step.command).replace('$', '$$')}",
            f"  title = {step.title.replace('$', '$$')}",
        ]
    return "\n".join(lines) + "\n"


def _run_ninja(build: Build, root: Path, ninja: str, jobs: int | None, targets: list[str]) -> None:
    file = build.folder / "build.ninja"
    _write_if_changed(root / file, ninja_text(build))
    command = [ninja, "-f", file.as_posix(), *([f"-j{jobs}"] if jobs else []), *targets]
    _check(subprocess.run(command, cwd=root).returncode)


def _run_in_turn(steps: list[Step], root: Path) -> None:
    for number, step in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {step.title}", flush=True)
        _check(subprocess.run(step.command, cwd=root).returncode)


def _check(returncode: int) -> None:
    if returncode != 0:
        raise CannotBuild(
            "compiling the C++ kernels failed, as the compiler says above; FASTNORM_BUILD=none installs "
            "fastnorm without them."
        )


def _write_if_changed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _escape(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
