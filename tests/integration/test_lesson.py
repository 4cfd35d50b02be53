"""examples/lesson.py, shortened: some rows, one epoch, on drawn shapes and on tiny Fashion-MNIST files."""

from __future__ import annotations

import importlib.util
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastnorm.demo import idx

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ("plot_stats", "color_dim", "dead_chart")


@pytest.fixture
def lesson(threads: None) -> ModuleType:
    spec = importlib.util.spec_from_file_location("lesson", ROOT / "examples" / "lesson.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lesson"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(lesson: ModuleType, patch: pytest.MonkeyPatch, *arguments: object) -> int:
    patch.setattr(sys, "argv", ["lesson.py", *map(str, arguments)])
    return lesson.main()


def write_idx(folder: Path, count: int) -> None:
    """Fashion-MNIST's four files, with random images of random classes."""
    generator = torch.Generator().manual_seed(0)
    for name in idx.FILES:
        shape = (count, 28, 28) if "images" in name else (count,)
        values = torch.randint(256 if "images" in name else 10, shape, generator=generator).byte()
        head = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        (folder / name).write_bytes(head + values.numpy().tobytes())


@pytest.mark.integration
def test_rows_pictures_and_table(
    lesson: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    rows = [row for row in lesson.ROWS if row.stem in ("lsuv", "batch_norm") or row.norm == "layer"]
    monkeypatch.setattr(lesson, "ROWS", rows)
    assert run(lesson, monkeypatch, "--data", "shapes", "--epochs", 1, "--out", tmp_path) == 0
    told = capsys.readouterr().out
    for row in rows:
        (line,) = [line for line in told.splitlines() if line.startswith(row.title) and "0." in line]
        accuracy = float(line.removeprefix(row.title).split()[2])
        assert accuracy > 0.2, "of ten classes: it learns"
    assert "before: mean" in told and "block3.0  Conv2d" in told  # LSUV's table
    drawn = {path.stem for path in (tmp_path / "lesson_shapes").iterdir()}
    assert drawn == {"lr_find", *(f"{stem}_{name}" for stem in ("lsuv", "batch_norm") for name in PICTURES)}


@pytest.mark.integration
def test_fashion_mnist_joins_where_its_files_are(
    lesson: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    walked = []
    monkeypatch.setattr(lesson, "walk", lambda name, args, folder: walked.append((name, folder.name)))
    assert run(lesson, monkeypatch, "--root", tmp_path) == 0 and walked == [("digits", "lesson_digits")]
    write_idx(tmp_path, 300)
    assert run(lesson, monkeypatch, "--root", tmp_path) == 0
    assert walked[1:] == [("digits", "lesson_digits"), ("fashion-mnist", "lesson_fashion-mnist")]
    monkeypatch.undo()
    monkeypatch.setattr(lesson, "ROWS", lesson.ROWS[4:5])
    arguments = ("--data", "fashion-mnist", "--root", tmp_path, "--out", tmp_path, "--epochs", 1, "--no-plot")
    assert run(lesson, monkeypatch, *arguments) == 0
    told = capsys.readouterr().out
    assert "fashion-mnist: 300 training, 300 validation images" in told and "batch" in told


def test_the_rows_change_one_thing_after_the_other(lesson: ModuleType) -> None:
    assert len({row.title for row in lesson.ROWS}) == len(lesson.ROWS)
    stems = [row.stem for row in lesson.ROWS if row.stem]
    assert len(set(stems)) == len(stems)


def test_a_start_that_does_not_train_and_one_that_does(lesson: ModuleType) -> None:
    """What the first rows show: the default start loses the signal layer by layer, LSUV keeps it."""
    data = lesson.load_raw("shapes", root=Path(), seed=0)
    x = data.train_x[:128]
    for row, low, high in ((lesson.ROWS[0], 0.0, 0.2), (lesson.ROWS[5], 0.99, 1.01)):
        net = lesson.started(row, data)
        with lesson.ActivationStats(net, lesson.activations(net)) as stats:
            net(x)
        assert low < float(stats.layers[-1].stds[0]) < high, row.title
