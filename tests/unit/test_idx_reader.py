"""The demo's IDX reader and downloader, on tiny files written here."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from fastnorm.demo import idx
from fastnorm.demo.settings import DemoError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def encode(array: np.ndarray, code: int = 0x08) -> bytes:
    header = struct.pack(">HBB", 0, code, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(idx.DTYPES[code]).tobytes()


def written(folder: Path, content: bytes) -> Path:
    path = folder / "some-file"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gz"])
def test_reads_raw_and_gzip(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    array = idx.read_idx(written(tmp_path, pack(encode(IMAGES))))
    assert array.dtype == np.uint8 and array.flags.writeable
    np.testing.assert_array_equal(array, IMAGES)


@pytest.mark.parametrize("code", sorted(idx.DTYPES))
def test_reads_every_element_type_in_native_order(tmp_path: Path, code: int) -> None:
    values = np.array([1, 2, 100])
    array = idx.read_idx(written(tmp_path, encode(values, code)))
    assert array.dtype == np.dtype(idx.DTYPES[code]).newbyteorder("=")
    np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot hold its 4-byte magic"),
        (b"\x00\x00\x08", "cannot hold its 4-byte magic"),
        (b"\x89PNG" + bytes(40), "magic number is 0x89504e47"),
        (b"\x00\x00\x07\x01" + bytes(8), "magic number is 0x00000701"),
        (b"\x00\x00\x08\x00" + bytes(8), "magic number is 0x00000800"),
        (encode(IMAGES)[:10], "truncated, 10 bytes cannot hold a header of 3 dimensions"),
        (encode(IMAGES)[:-1], r"truncated, 39 bytes where shape \(2, 3, 4\) needs 40"),
        (encode(IMAGES) + b"!", "too long, 41 bytes"),
        (gzip.compress(encode(IMAGES)[:-1]), "truncated, 39 bytes"),
        (gzip.compress(encode(IMAGES))[:-9], "truncated or damaged gzip"),
        (b"\x1f\x8b" + bytes(30), "truncated or damaged gzip"),
    ],
    # gzip writes the time into its bytes: no id that two processes agree on.
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}_bytes",
)
def test_a_damaged_file_is_named_with_its_damage(tmp_path: Path, content: bytes, words: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(DemoError, match=words) as caught:
        idx.read_idx(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_flipped_bit_in_gzip_data_is_noticed(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(encode(IMAGES)))
    content[-6] ^= 1  # in the stored checksum
    with pytest.raises(DemoError, match="damaged gzip"):
        idx.read_idx(written(tmp_path, bytes(content)))


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="nowhere: cannot be read"):
        idx.read_idx(tmp_path / "nowhere")


class Server:
    """Stands in for urlopen: answers with prepared content, remembers what it was asked for."""

    def __init__(self, content: dict[str, bytes]) -> None:
        self.content = content
        self.urls: list[str] = []

    def __call__(self, url: str, *, timeout: float) -> IO[bytes]:
        assert 0 < timeout <= 60
        self.urls.append(url)
        name = url.rsplit("/", 1)[1]
        if name not in self.content:
            raise urllib.error.URLError("no route to host")
        return io.BytesIO(self.content[name])


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Tiny stand-ins for the four files, with their sizes and checksums put in the place of the real ones."""
    files = {name: gzip.compress(encode(IMAGES) + bytes([i])) for i, name in enumerate(idx.FILES)}
    known = {
        name: (len(content), hashlib.md5(content, usedforsecurity=False).hexdigest()) for name, content in files.items()
    }
    monkeypatch.setattr(idx, "FILES", known)
    return {f"{name}.gz": content for name, content in files.items()}


def test_downloads_what_is_missing_and_only_that(tmp_path: Path, published: dict[str, bytes]) -> None:
    root = tmp_path / "new" / "folder"
    root.mkdir(parents=True)
    first = next(iter(idx.FILES))
    (root / first).write_bytes(b"already here")
    server = Server(published)
    paths = idx.find_files(root, opener=server)
    assert paths == {name: root / (name if name == first else f"{name}.gz") for name in idx.FILES}
    assert len(server.urls) == 3
    assert all(path.read_bytes() == published[path.name] for path in paths.values() if path.suffix == ".gz")
    assert len(list(root.iterdir())) == 4, "partial files are left behind"
    assert idx.find_files(root, opener=Server({})) == paths


def assert_names_everything(message: str, root: Path) -> None:
    assert str(root) in message
    for name in idx.FILES:
        assert f"{name}.gz" in message


def test_without_network_the_error_names_files_and_folder(tmp_path: Path) -> None:
    root = tmp_path / "fashion"
    server = Server({})
    with pytest.raises(DemoError, match="no route to host") as caught:
        idx.find_files(root, opener=server)
    assert_names_everything(str(caught.value), root)
    assert len(server.urls) == len(idx.SOURCES), "every source is tried"


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c + b"!", lambda c: c[:-1] + b"\xff"])
def test_a_wrong_download_is_refused(
    tmp_path: Path, published: dict[str, bytes], damage: Callable[[bytes], bytes]
) -> None:
    name = "t10k-labels-idx1-ubyte.gz"
    with pytest.raises(DemoError, match=f"{name} sent .* not the expected") as caught:
        idx.find_files(tmp_path, opener=Server({**published, name: damage(published[name])}))
    assert_names_everything(str(caught.value), tmp_path)
    assert name not in {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.glob("*.part-*"))


def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise TimeoutError("timed out")

    with pytest.raises(DemoError, match="timed out"):
        idx.find_files(tmp_path, opener=lambda url, timeout: Broken())
    assert not list(tmp_path.iterdir())


def test_a_root_that_is_a_file_is_a_plain_error(tmp_path: Path) -> None:
    path = written(tmp_path, b"")
    with pytest.raises(DemoError, match="some-file"):
        idx.find_files(path, opener=Server({}))
