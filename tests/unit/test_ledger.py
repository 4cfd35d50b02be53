"""The ledger of docs/gpu.md against git: a kernel that changed after its proof must be said to be unproven."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import ledger, ledger_rows
from benchmarks.ledger import Entry, files_behind, problems, read
from benchmarks.ratios import all_ratios

ROOT = Path(__file__).resolve().parents[2]


def test_the_ledger_holds_for_this_checkout() -> None:
    """A kernel file changed after its proof? Say "unproven since `COMMIT`" in its rows of docs/gpu.md."""
    entries = read((ROOT / ledger.LEDGER).read_text())
    assert entries
    wrong, unknown = problems(ROOT, entries)
    assert not wrong, "\n".join(wrong)
    if unknown:  # not a pass: this checkout lacks the history that tells
        pytest.skip("the ledger cannot be held against git here: " + "; ".join(unknown))


INIT = """
from .relu import relu_fwd
from .norm import norm_fwd
LAUNCHERS: dict = {"relu_fwd": relu_fwd, "norm_fwd": norm_fwd}
"""
SOURCES = {
    "kernels/__init__.py": INIT,
    "kernels/relu.py": "relu_fwd = 1\n",
    "kernels/norm.py": "from . import launch\nfrom .relu import relu_fwd\nnorm_fwd = 2\n",
    "kernels/launch.py": "numbers = 3\n",
    "README.md": "a\n",
}
OPS = ("relu_fwd", "norm_fwd")


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(root: Path, **changes: str) -> str:
    for name, text in changes.items():
        (root / name).write_text(text)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "a change")
    return git(root, "rev-parse", "HEAD")


def proven(root: Path, op: str, hash: str) -> Entry:
    """A row that claims a proof, with the record that a proof leaves."""
    entry = Entry(op, "", "triton", f"`{hash[:12]}`", "NVIDIA H200", "0.93 of a copy's bandwidth")
    record = root / ledger.RESULTS / hash[:12] / "gpu.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"commit": {"hash": hash}}))
    return entry


@pytest.fixture
def root(tmp_path: Path) -> Path:
    repository = tmp_path / "repository"
    (repository / "kernels").mkdir(parents=True)
    git(repository, "init", "-q")
    commit(repository, **SOURCES)
    return repository


def claims(root: Path) -> list[Entry]:
    return [proven(root, op, git(root, "rev-parse", "HEAD")) for op in OPS]


def test_nothing_is_wrong_while_no_kernel_changes(root: Path) -> None:
    entries = claims(root)
    commit(root, **{"README.md": "b\n"})
    assert problems(root, entries) == ([], [])


@pytest.mark.parametrize("committed", (True, False))
@pytest.mark.parametrize(
    ("changed", "ops"),
    (("norm", {"norm_fwd"}), ("relu", {"relu_fwd", "norm_fwd"}), ("launch", {"norm_fwd"})),
)
def test_a_change_after_the_proof_is_seen(root: Path, changed: str, ops: set[str], committed: bool) -> None:
    """In the op's own file or in one that it imports, committed or not."""
    entries = claims(root)
    name = f"kernels/{changed}.py"
    text = SOURCES[name] + "more = 4\n"
    if committed:
        commit(root, **{name: text})
    else:
        (root / name).write_text(text)
    wrong, unknown = problems(root, entries)
    assert not unknown and {line.split()[0] for line in wrong} == ops
    assert all(f"{name} changed after its proof; say `unproven since" in line for line in wrong)
    honest = [dataclasses.replace(e, proof=f"unproven since {e.proof}") if e.op in ops else e for e in entries]
    assert problems(root, honest) == ([], [])


def test_without_history_it_says_so(root: Path, tmp_path: Path) -> None:
    entries = claims(root)
    commit(root, **{"kernels/norm.py": SOURCES["kernels/norm.py"] + "more = 4\n"})
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "1", root.as_uri(), str(shallow))
    bare = tmp_path / "bare"
    git(root, "worktree", "add", "-q", str(bare))
    (bare / ".git").unlink()
    for copy, told in ((shallow, "is not in this checkout's history"), (bare, "is not in this checkout's history")):
        wrong, unknown = problems(copy, [proven(copy, e.op, e.commit or "") for e in entries])
        assert not wrong and len(unknown) == 2 and all(told in line for line in unknown)


def test_a_proof_from_elsewhere_is_wrong(root: Path) -> None:
    """A commit of a branch that was never merged."""
    git(root, "checkout", "-qb", "side")
    elsewhere = commit(root, **{"README.md": "b\n"})
    git(root, "checkout", "-q", "-")
    entries = [proven(root, op, elsewhere) for op in OPS]
    wrong, unknown = problems(root, entries)
    assert not unknown and len(wrong) == 2 and all("not among HEAD's ancestors" in line for line in wrong)


@pytest.mark.parametrize(
    ("changes", "told"),
    (
        ({"proof": "believed"}, "is none of"),
        ({"proof": "unproven"}, "was never proven, but has"),
        ({"numbers": "-"}, "says nothing of its numbers"),
        ({"proof": "`0123456789ab`"}, "is missing or of another commit"),
        ({"op": "softmax_fwd"}, "nothing here is called so"),
        ({"proof": "does not exist", "gpu": "-", "numbers": "-"}, "it does exist"),
    ),
)
def test_what_else_is_wrong(root: Path, changes: dict[str, str], told: str) -> None:
    relu, norm = claims(root)
    wrong, _ = problems(root, [dataclasses.replace(relu, **changes), norm])
    assert any(told in line for line in wrong), wrong


def test_every_op_needs_a_row(root: Path) -> None:
    wrong, _ = problems(root, claims(root)[:1])
    assert wrong == ["norm_fwd: has Triton kernels and no row"]


def test_every_file_of_kernels_needs_a_row(root: Path) -> None:
    """Also those that are launched by no op of the table; their row is called after the file."""
    entries = claims(root)
    (root / "kernels" / "step.py").write_text("from .relu import relu_fwd\ndef step_kernel(x):\n    pass\n")
    assert problems(root, entries)[0] == ["kernels/step.py: holds kernels and is behind no row"]
    step = Entry("step", "", "triton", "unproven", "-", "-")
    assert problems(root, [*entries, step]) == ([], [])
    assert {path.name for path in files_behind(root, step)} == {"step.py", "relu.py"}


def test_files_behind_an_op() -> None:
    names = {path.name for path in files_behind(ROOT, Entry("row_norm_fwd", "", "triton", "unproven", "-", "-"))}
    assert names >= {"row_norm_fwd.py", "row_norm_plans.py", "row_norm_stats.py", "launch.py", "general_relu.py"}
    assert "batch_norm_fwd.py" not in names and "__init__.py" not in names


def run_of(out: Path, backends: str = "triton", **changes: object) -> Path:
    steps = [
        {"step": step, "status": "PASS", "columns": [], "detail": f"{backends}: 7 tests passed"}
        for step in (*ledger_rows.NEEDED, "demo", "eager")
    ]
    run = {
        "commit": {"hash": "a" * 40, "dirty": False},
        "source": {"sources": "code", "dry_run": False, "gpu": "NVIDIA H200"},
    }
    (out / "gpu.json").write_text(json.dumps(run | {"steps": steps} | changes))
    return out


def test_rows_are_printed_for_a_run_on_this_code(tmp_path: Path) -> None:
    entries = [Entry("norm_fwd", "", "triton", "unproven", "-", "-")]
    (row,) = ledger_rows.proven_rows(run_of(tmp_path), entries, "code")
    (entry,) = read(f"{ledger.HEADING}\n| {' | '.join(ledger.FIELDS)} |\n|---|\n{row}\n")
    assert entry.claims and entry.commit == "a" * 12 and entry.gpu == "NVIDIA H200"


def test_the_reference_is_proven_by_its_own_step(tmp_path: Path) -> None:
    entries = [
        Entry("all ops", "", "eager", "unproven", "-", "-"),
        Entry("x", "", "native", "does not exist", "-", "-"),
    ]
    assert [row.split("|")[1].strip() for row in ledger_rows.proven_rows(run_of(tmp_path), entries, "code")] == [
        "all ops"
    ]
    steps = [{"step": step, "status": "PASS", "columns": [], "detail": "triton: 7"} for step in ledger_rows.NEEDED]
    assert ledger_rows.proven_rows(run_of(tmp_path, steps=steps), entries, "code") == []


def test_the_optimizers_numbers_are_those_of_all_their_cases() -> None:
    rows = [
        {"case": f"{op}/step", "column": op, "direction": direction, "threads": 1, "candidate": name, "status": "ok",
         "quantiles_us": {"p50": us}}
        for op, direction in (("adam", "step"), ("rmsprop", "step"), ("batch_norm", "fwd"))
        for name, us in (("fastnorm", 10.0), ("eager", 30.0), ("floor:copy", 9.0))
    ]  # fmt: skip
    told = ledger_rows.numbers_of("optim", all_ratios(rows))
    assert told == "0.90 of a copy's bandwidth, 3.00 x eager (median of 2 cases)"


def test_rows_of_cuda_kernels_are_printed_where_they_were_tested(tmp_path: Path) -> None:
    entries = [Entry("norm_fwd", "", backend, "unproven", "-", "-") for backend in ("triton", "native")]
    for backends, rows in (("triton", 1), ("triton,cuda", 2)):
        assert len(ledger_rows.proven_rows(run_of(tmp_path, backends), entries, "code")) == rows


@pytest.mark.parametrize(
    ("changes", "told"),
    (
        ({"source": {"sources": "other", "dry_run": False, "gpu": "NVIDIA H200"}}, "other code"),
        ({"source": {"sources": "code", "dry_run": True, "gpu": None}}, "dry run"),
        ({"commit": {"hash": "a" * 40, "dirty": True}}, "changes on top"),
        ({"commit": {"hash": "unknown", "dirty": None}}, "no known commit"),
        ({"steps": [{"step": "conformance", "status": "PASS", "columns": ["row_norm"]}]}, "not passed for all ops"),
    ),
)
def test_a_run_that_proves_nothing(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    with pytest.raises(ledger_rows.NotProven, match=told):
        ledger_rows.proven_rows(run_of(tmp_path, **changes), [], "code")
