"""`python -m benchmarks.ledger [OUT_DIR]`: what docs/gpu.md claims to be proven on a GPU, held against git.

A row whose proof is a commit claims that this commit's kernels ran and passed. When one of the files behind the op
differs from that commit, the row must say "unproven since `COMMIT`", in the change that made it so. With OUT_DIR, of a
run of benchmarks.gpu on this very code, the rows that it proves are printed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.machine import ROOT, SOURCE_FOLDERS, sources

LEDGER = "docs/gpu.md"
RESULTS = "benchmarks/results/gpu"
HEADING = "## Ledger"
FIELDS = ("op", "over", "backend", "proof", "gpu", "numbers")
PROOF = re.compile(r"unproven|does not exist|(?P<since>unproven since )?`(?P<commit>[0-9a-f]{7,40})`")
NOT_KERNELS = {"demo": ("fastnorm/demo",)}
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


class NoHistory(Exception):
    """git cannot say what changed since a commit: no git, no history, or a history that is cut off."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row: the op (or another thing that runs), over which tensors, on which backend; what proves it."""

    op: str
    over: str
    backend: str
    proof: str
    gpu: str
    numbers: str

    @property
    def commit(self) -> str | None:
        """The last commit proven."""
        found = PROOF.fullmatch(self.proof)
        return found["commit"] if found else None

    @property
    def claims(self) -> bool:
        """Whether it says that what is here now is proven."""
        return self.commit is not None and not self.proof.startswith("unproven")

    def __str__(self) -> str:
        return " ".join(filter(None, (self.op, f"({self.over})" if self.over else "", "on", self.backend)))


def read(text: str) -> list[Entry]:
    """The rows of the ledger's table."""
    rows = [line for line in text.partition(HEADING)[2].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in rows[2:]]
    return [Entry(*row) for row in cells]


def closure(file: Path, named: Callable[[Path], Iterable[Path]]) -> list[Path]:
    """A file and all that it names, directly or not, of those that exist."""
    found: list[Path] = []
    waiting = [file]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.append(path)
            waiting += [other for other in named(path) if other.exists()]
    return sorted(found)


def import_closure(file: Path) -> list[Path]:
    """A module of a package and all of its neighbours that it imports, directly or not."""

    def imported(path: Path) -> Iterator[Path]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                yield from (path.with_name(f"{name}.py") for name in names)

    return closure(file, imported)


def launchers(root: Path) -> dict[str, Path]:
    """Every op with a Triton launcher, and its file, as kernels/__init__.py imports them."""
    package = root / "kernels" / "__init__.py"
    tree = ast.parse(package.read_text())
    origin = {
        alias.name: package.with_name(f"{node.module}.py")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    table = next(
        node.value for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "LAUNCHERS"
    )
    assert isinstance(table, ast.Dict)
    return {
        ast.literal_eval(key): origin[ast.unparse(value)]
        for key, value in zip(table.keys, table.values, strict=True)
        if key
    }


def include_closure(root: Path, file: Path) -> list[Path]:
    """A CUDA source and all headers of csrc that it includes, directly or not."""

    def included(path: Path) -> Iterator[Path]:
        for name in INCLUDE.findall(path.read_text()):
            yield from (path.parent / name, root / "csrc" / name)

    return closure(file, included)


def files_behind(root: Path, entry: Entry) -> list[Path]:
    """What must not change after a proof. ValueError where there is no such thing."""
    if entry.op in NOT_KERNELS:
        files = [path for folder in NOT_KERNELS[entry.op] for path in (root / folder).rglob("*.py")]
        return sorted({*files, *(path for file in launchers(root).values() for path in import_closure(file))})
    if entry.backend == "triton":
        own = launchers(root).get(entry.op, root / "kernels" / f"{entry.op}.py")
        if own.exists():
            return import_closure(own)
    if entry.backend == "eager" and entry.op == "all ops":
        return sorted((root / "fastnorm" / "eager").rglob("*.py"))
    if entry.backend == "native":
        column = re.sub("_(fwd|bwd|step)$", "", entry.op)
        pattern = "*.cu" if entry.op == "all ops" else f"{column}*.cu"
        found = {path for cuda in (root / "csrc/cuda").glob(pattern) for path in include_closure(root, cuda)}
        if found:
            return sorted(found)
    raise ValueError(f"{entry}: nothing here is called so")


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NoHistory(f"git cannot be run here ({error})") from error


def changed_since(root: Path, commit: str, files: Sequence[Path]) -> list[str]:
    """Which of the files differ, as they lie here, from those of a commit that this history holds."""
    if git(root, "cat-file", "-e", f"{commit}^{{commit}}").returncode:
        raise NoHistory(f"{commit} is not in this checkout's history")
    if git(root, "merge-base", "--is-ancestor", commit, "HEAD").returncode:
        if git(root, "rev-parse", "--is-shallow-repository").stdout.strip() == "true":
            raise NoHistory(f"this checkout's history is cut off before it reaches {commit}")
        raise ValueError(f"`{commit}` is not among HEAD's ancestors")
    names = [path.relative_to(root).as_posix() for path in files]
    differing = git(root, "diff", "--name-only", commit, "--", *names)
    if differing.returncode:
        raise NoHistory(differing.stderr.strip())
    return differing.stdout.splitlines()


def form_problems(entry: Entry, root: Path) -> Iterator[str]:
    """What is wrong with a row whatever git says."""
    if not PROOF.fullmatch(entry.proof):
        forms = "unproven, `COMMIT`, unproven since `COMMIT`, does not exist"
        yield f"{entry}: the proof {entry.proof!r} is none of: {forms}"
    empty = [name for name in ("gpu", "numbers") if getattr(entry, name) in ("", "-")]
    if entry.commit is None and len(empty) < 2:
        yield f"{entry}: was never proven, but has a GPU or numbers"
    if entry.commit is not None:
        if empty:
            yield f"{entry}: was proven, but says nothing of its {' and '.join(empty)}"
        record = root / RESULTS / entry.commit / "gpu.json"
        recorded = json.loads(record.read_text())["commit"]["hash"] if record.exists() else ""
        if not recorded.startswith(entry.commit):
            yield f"{entry}: {RESULTS}/{entry.commit}/gpu.json is missing or of another commit"


def problems(root: Path, entries: Sequence[Entry]) -> tuple[list[str], list[str]]:
    """(what is wrong, what could not be checked for want of history)."""
    wrong: list[str] = []
    unknown: list[str] = []
    for entry in entries:
        wrong += form_problems(entry, root)
        try:
            files = files_behind(root, entry)
        except ValueError as error:
            wrong += [] if entry.proof == "does not exist" else [str(error)]
            continue
        if entry.proof == "does not exist":
            wrong.append(f"{entry}: it does exist, in {files[0].relative_to(root)}")
        if not entry.claims or entry.commit is None:
            continue
        try:
            changed = changed_since(root, entry.commit, files)
        except NoHistory as reason:
            unknown.append(f"{entry}: {reason}")
        except ValueError as error:
            wrong.append(f"{entry}: {error}")
        else:
            if changed:
                told = f"changed after its proof; say `unproven since {entry.commit}` in {LEDGER}"
                wrong.append(f"{entry}: {', '.join(changed)} {told}")
    return wrong + uncovered(root, entries), unknown


def uncovered(root: Path, entries: Sequence[Entry]) -> list[str]:
    """Ops with a launcher, and files with kernels, that no row of the Triton backend is about."""
    rows = [entry for entry in entries if entry.backend == "triton" and entry.op not in NOT_KERNELS]
    have = {entry.op for entry in rows}
    missing = [f"{op}: has Triton kernels and no row" for op in launchers(root) if op not in have]
    covered: set[Path] = set()
    for entry in rows:
        with contextlib.suppress(ValueError):
            covered |= set(files_behind(root, entry))
    kernels = [
        path for path in (root / "kernels").glob("*.py") if re.search(r"^def \w+_kernel\(", path.read_text(), re.M)
    ]
    names = [path.relative_to(root).as_posix() for path in sorted(kernels) if path not in covered]
    return missing + [f"{name}: holds kernels and is behind no row" for name in names]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 when the ledger is wrong, or OUT_DIR proves nothing about this code."""
    from benchmarks.ledger_rows import NotProven, proven_rows

    p = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    p.add_argument("out", nargs="?", type=Path, metavar="OUT_DIR")
    args = p.parse_args(argv)
    entries = read((ROOT / LEDGER).read_text())
    if args.out is not None:
        try:
            rows = proven_rows(args.out, entries, sources())
            commit = json.loads((args.out / "gpu.json").read_text())["commit"]["hash"]
            if changed := changed_since(ROOT, commit, [ROOT / name for name in SOURCE_FOLDERS]):
                raise NotProven(f"these are not as in {commit}: {', '.join(changed)}")
            print("\n".join(rows))
        except (NotProven, NoHistory, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    wrong, unknown = problems(ROOT, entries)
    claimed = sum(entry.claims for entry in entries)
    print("\n".join([*wrong, *unknown, f"{len(entries)} rows, {claimed} proven, {len(wrong)} wrong"]))
    return 1 if wrong or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
