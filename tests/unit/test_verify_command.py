"""`python -m fastnorm verify`: what it takes, what it prints, and its exit codes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastnorm
from fastnorm.__main__ import main
from fastnorm.ops import backend

MODELS = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))

def pair():
    return net(), torch.randn(4, 3, 8, 8)

def triple():
    return *pair(), lambda output: nn.functional.cross_entropy(output, torch.arange(4))

class Seen(nn.Module):
    def forward(self, x):
        seen.append((x.dtype, x.is_contiguous(memory_format=torch.channels_last), torch.get_num_threads()))
        return x

seen = []

def watched():
    return nn.Sequential(Seen(), net()), torch.randn(4, 3, 8, 8)

def number():
    return 3

def raises():
    raise KeyError("a mistake of its own")

def refuses():
    return net(), torch.randn(4, 5, 8, 8)

value = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None) -> Iterator[Path]:
    """A current folder with a module of models."""
    (tmp_path / "some_models.py").write_text(MODELS)
    (tmp_path / "broken_models.py").write_text("import not_there_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    sys.modules.pop("some_models", None)


def run(*arguments: str) -> int:
    return main(["verify", *arguments])


@pytest.mark.parametrize("factory", ["pair", "triple"])
def test_a_good_model(factory: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"some_models:{factory}", "--steps", "0", "--json", "found.json") == 0
    told = capsys.readouterr().out
    assert "1 replaced, 1 fused" in told and "training, float64: gradients" in told and told.endswith("ok\n")
    found = json.loads((folder / "found.json").read_text())
    assert found["ok"] and found["conversion"]["replaced"][0]["name"] == "1" and found["speeds"] == []


def test_a_model_alone(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--steps", "1", "--time-budget", "0.01", "--max-slowdown", "99")
    assert run("some_models:net", "--input", "2,3,8,8", *options) == 0
    assert "training step" in capsys.readouterr().out


def test_the_options_reach_the_model() -> None:
    options = (
        "--steps",
        "0",
        "--dtype",
        "bf16",
        "--channels-last",
        "--threads",
        "2",
        "--no-fuse",
        "--backend",
        "eager",
    )
    assert run("some_models:watched", *options) == 0
    seen = importlib.import_module("some_models").seen
    assert {torch.bfloat16, torch.float64} == {dtype for dtype, _, _ in seen}
    assert {(True, 2)} == {(form, threads) for _, form, threads in seen}


def test_the_backend_is_chosen_for_the_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    before, used, right = backend.chosen(), [], fastnorm.BatchNorm2d.forward

    def watched(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        used.append(backend.chosen())
        return right(self, x, *args, **kwargs)

    monkeypatch.setattr(fastnorm.BatchNorm2d, "forward", watched)
    assert run("some_models:pair", "--steps", "0", "--no-fuse", "--backend", "eager") == 0
    assert set(used) == {"eager"} and backend.chosen() == before


def test_a_broken_norm_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = fastnorm.BatchNorm2d.forward
    monkeypatch.setattr(fastnorm.BatchNorm2d, "forward", lambda self, x: right(self, x) * 1.001)
    assert run("some_models:pair", "--no-fuse") == 1
    assert "FAIL training: outputs, output is" in capsys.readouterr().out


def test_slower_than_allowed_is_exit_code_1(threads: None, capsys: pytest.CaptureFixture[str]) -> None:
    """No model runs in a thousandth of the time."""
    assert (
        run("some_models:pair", "--steps", "3", "--time-budget", "0.1", "--max-slowdown", "0.001", "--threads", "1")
        == 1
    )
    assert "0.001 is allowed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["some_models"], "'some_models' is not of the form module:factory"),
        (["nobody_has_this:net"], "no module named 'nobody_has_this' in "),
        (["some_models:nothing"], "module 'some_models' has no 'nothing'"),
        (["some_models:value"], "some_models:value is no function, but int"),
        (["some_models:number"], "must give (model, batch), (model, batch, loss) or a model, not int"),
        (["some_models:net"], "gives a model without a batch: pass --input with its shape"),
        (["some_models:pair", "--input", "1,2"], "gives a batch: leave --input out"),
        (["some_models:raises"], "some_models:raises cannot run: KeyError: 'a mistake of its own'"),
        (["some_models:refuses"], "some_models:refuses cannot run: RuntimeError: Given groups=1"),
        (
            ["broken_models:net"],
            "broken_models:net cannot run: ModuleNotFoundError: No module named 'not_there_at_all'",
        ),
        (["some_models:pair", "--max-slowdown", "-1"], "allowed.slowdown must be a positive number, got -1.0"),
        (["some_models:pair", "--steps", "-1"], "steps must not be negative"),
        (["some_models:pair", "--json", "no/such/folder.json", "--steps", "0"], "No such file or directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_call_is_exit_code_2(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    told = capsys.readouterr().err
    assert told.splitlines()[-1].startswith("fastnorm verify: ") and sentence in told.splitlines()[-1]
    assert ("Traceback" in told) is ("cannot run" in sentence)


@pytest.mark.parametrize("option", [["--threads", "0"], ["--input", "3,x"], ["--input", "3,-1"], ["--dtype", "int8"]])
def test_a_bad_option_is_exit_code_2(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("some_models:net", *option)
    assert stopped.value.code == 2 and option[0] in capsys.readouterr().err


def test_from_a_shell() -> None:
    root = Path(fastnorm.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "fastnorm", "verify", "some_models:pair", "--steps", "0", "--threads", "1"],
        env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout + done.stderr
