"""The demo as a user runs it: its output, its files, its exit code."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastnorm.__main__ import main
from fastnorm.demo import data

pytestmark = pytest.mark.integration
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastnorm", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_info_prints_the_report() -> None:
    result = run("info")
    assert result.returncode == 0, result.stderr
    assert "torch" in result.stdout and "eager" in result.stdout


def test_shapes_need_no_package(tmp_path: Path) -> None:
    """What a bare GPU machine runs: neither scikit-learn nor matplotlib is imported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['sklearn'] = sys.modules['matplotlib'] = None\n"
    )
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    result = run("demo", "--data", "shapes", "--no-plot", "--out", str(tmp_path), PYTHONPATH=path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "target 0.97 reached" in result.stdout
    assert json.loads((tmp_path / "demo_shapes.json").read_text())["accuracy"]["fastnorm"] >= 0.97
    assert not list(tmp_path.glob("*.png"))
    refused = run("demo", "--data", "shapes", "--out", str(tmp_path), PYTHONPATH=path)
    assert refused.returncode == 1 and "matplotlib" in refused.stderr


def test_digits_with_default_settings_reach_the_target(tmp_path: Path) -> None:
    result = run("demo", "--out", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    rows = re.findall(r"^ +\d+ +\d\.\d+ .*$", result.stdout, re.MULTILINE)
    assert len(rows) == 10
    assert re.search(r"first batch: losses \S+ and \S+ agree", result.stdout)
    assert "target 0.97 reached" in result.stdout
    numbers = json.loads((tmp_path / "demo_digits.json").read_text())
    assert numbers["accuracy"]["fastnorm"] >= 0.97
    assert numbers["saved_bytes"]["fastnorm"] < numbers["saved_bytes"]["torch.nn"]
    assert sum(numbers["train_seconds"].values()) < 30
    picture = (tmp_path / "demo_digits.png").read_bytes()
    assert picture.startswith(PNG_MAGIC) and len(picture) > 20_000


def test_options_are_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ("--epochs", "1+1", "--lr", "0.05", "--batch-size", "100")
    where = ("--seed", "7", "--backend", "eager", "--device", "cpu", "--threads", "1")
    assert main(["demo", "--out", str(tmp_path), *recipe, *where]) == 0
    numbers = json.loads((tmp_path / "demo_digits.json").read_text())
    assert [numbers[key] for key in ("seed", "backend", "batch_size", "threads")] == [7, "eager", 100, 1]
    assert "1+1 epochs at lr 0.05" in capsys.readouterr().out


@pytest.mark.parametrize("norm", ["layer", "group", "instance", "rms"])
def test_every_norm_trains(tmp_path: Path, norm: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--norm", norm, "--epochs", "3", "--threads", "1", "--out", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / f"demo_digits_{norm}.json").read_text())
    assert numbers["norm"] == norm and numbers["accuracy"]["fastnorm"] > 0.9
    assert numbers["saved_bytes"]["fastnorm"] < numbers["saved_bytes"]["torch.nn"]
    assert "act=GeneralRelu(0.1, 0.4)" in capsys.readouterr().out


@pytest.mark.parametrize("opt", ["momentum", "rmsprop", "adam"])
def test_every_optimizer_trains(tmp_path: Path, opt: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--opt", opt, "--epochs", "2", "--threads", "1", "--no-plot", "--out", str(tmp_path))
    assert main(["demo", *options]) == 0
    numbers = json.loads((tmp_path / f"demo_digits_{opt}.json").read_text())
    assert numbers["opt"] == opt and min(numbers["accuracy"].values()) > 0.9
    assert f"the lessons' {opt}" in capsys.readouterr().out


def write_shapes(root: Path) -> None:
    """Four tiny IDX files in place of Fashion-MNIST: class k is a bright row 2k on a noisy ground."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 320), ("t10k", 100)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = generator.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        images[np.arange(count), 2 * labels] = 255
        header = struct.pack(">IIII", 0x803, *images.shape)
        (root / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (root / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())


def test_fashion_mnist_files_are_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shapes(tmp_path)
    folders = ("--root", str(tmp_path), "--out", str(tmp_path))
    recipe = ("--batch-size", "32", "--lr", "0.1+0.02")
    assert main(["demo", "--data", "fashion-mnist", *folders, *recipe]) == 0
    assert "320 training and 100 validation images, 1 x 28 x 28" in capsys.readouterr().out
    assert json.loads((tmp_path / "demo_fashion-mnist.json").read_text())["accuracy"]["fastnorm"] > 0.9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--epochs", "x"), "bad --epochs or --lr: 'x'"),
        (("--threads", "0"), "--threads must be at least 1"),
        (("--seed", "-1"), "--seed must lie in"),
        (("--lr", "1e30"), "infinite or NaN"),
        (("--out", __file__), "--out"),
    ],
)
def test_what_cannot_be_done_is_one_plain_sentence(
    tmp_path: Path, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path), *arguments]) in (1, 2)
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_device_or_backend_that_is_not_there_is_refused(tmp_path: Path) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    for arguments, words in (
        (("--device", "cuda"), "--device cuda was asked for"),
        (("--backend", "triton"), "backend 'triton' cannot serve"),
    ):
        result = run("demo", "--out", str(tmp_path), *arguments, **hidden)
        assert result.returncode == 1
        assert words in result.stderr and "Traceback" not in result.stderr


def test_a_missed_target_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shuffled labels cannot be learnt: the default settings must then end in failure, not in a shrug."""
    load = data._load_digits

    def shuffled(seed: int) -> data.Data:
        digits = load(seed)
        return dataclasses.replace(digits, train_y=digits.train_y[torch.randperm(len(digits.train_y))])

    monkeypatch.setattr(data, "_load_digits", shuffled)
    assert main(["demo", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert re.search(r"FAILED: the final validation accuracy 0\.\d+ is below the target 0\.97", said)
