"""The demo's data: digits, shapes and fashion, normalised, split and cut into batches."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch

from fastnorm.demo import data, shapes
from fastnorm.demo.settings import DemoError


@pytest.fixture(scope="module")
def digits() -> data.Data:
    return data.load("digits", root=Path("unused"), seed=0)


def test_training_images_have_mean_0_and_std_1(digits: data.Data) -> None:
    assert abs(digits.train_x.mean().item()) < 1e-5
    assert abs(digits.train_x.std().item() - 1) < 1e-5
    # The validation images share that shift and scale, so they come close but not exactly there.
    assert 1e-5 < abs(digits.valid_x.mean().item()) < 0.1
    assert len(digits.train_x) + len(digits.valid_x) == 1797


def test_images_without_any_variation_are_refused() -> None:
    flat = torch.ones(4, 1, 2, 2)
    with pytest.raises(DemoError, match="all the same"):
        data.normalised(data.Data(flat, torch.zeros(4), flat, torch.zeros(4)))


def test_every_kind_of_shape_is_drawn_inside_its_image() -> None:
    images, labels = shapes.draw(seed=3)
    again, _ = shapes.draw(seed=3)
    assert torch.equal(images, again) and not torch.equal(images, shapes.draw(seed=4)[0])
    assert images.shape == (shapes.COUNT, 1, shapes.SIDE, shapes.SIDE)
    assert labels.bincount().tolist() == [shapes.COUNT // data.CLASSES] * data.CLASSES == [200] * len(shapes.SHAPES)
    inked = (images > 0.5).float().mean((1, 2, 3))
    assert bool((inked > 0.02).all()) and bool((inked < 0.7).all())


def test_split_is_disjoint_complete_stratified_and_fixed_by_seed() -> None:
    labels = torch.arange(10).repeat(50)
    train_i, valid_i = data.split(labels, seed=3)
    both = torch.cat([train_i, valid_i])
    assert torch.equal(both.sort().values, torch.arange(500))
    assert torch.equal(labels[valid_i].bincount(), torch.full((10,), 10))
    assert torch.equal(valid_i, data.split(labels, seed=3)[1])
    assert not torch.equal(valid_i, data.split(labels, seed=4)[1])


def test_batches_cover_an_epoch_and_leave_out_a_single_image() -> None:
    generator = torch.Generator().manual_seed(0)
    assert sorted(torch.cat(list(data.batches(10, 4, generator=generator))).tolist()) == list(range(10))
    assert [len(batch) for batch in data.batches(9, 4, generator=generator)] == [4, 4]


def write_fashion(root: Path, *, labels: list[int], side: int = 28) -> None:
    for part in ("train", "t10k"):
        images = struct.pack(">IIII", 0x803, 3, side, side) + bytes(i % 251 for i in range(3 * side * side))
        (root / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (root / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(labels)) + bytes(labels))


def test_fashion_mnist_files_become_tensors(tmp_path: Path) -> None:
    write_fashion(tmp_path, labels=[1, 9, 0])
    loaded = data.load("fashion-mnist", root=tmp_path, seed=0)
    assert loaded.train_x.shape == loaded.valid_x.shape == (3, 1, 28, 28)
    assert loaded.train_x.dtype == torch.float32 and loaded.valid_y.tolist() == [1, 9, 0]
    assert abs(loaded.train_x.std().item() - 1) < 1e-5


@pytest.mark.parametrize(
    ("labels", "side", "words"),
    [([1, 2], 28, "train-labels.*expected 3 labels"), ([1, 2, 10], 28, r"0\.\.9"), ([1, 2, 3], 27, "27, 27")],
)
def test_fashion_mnist_files_that_do_not_belong_together(
    tmp_path: Path, labels: list[int], side: int, words: str
) -> None:
    write_fashion(tmp_path, labels=labels, side=side)
    with pytest.raises(DemoError, match=words):
        data.load("fashion-mnist", root=tmp_path, seed=0)
