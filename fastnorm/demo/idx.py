"""The IDX format of the MNIST family: a careful reader, and the Fashion-MNIST files, fetched where possible.

An IDX file is two zero bytes, one byte for the element type, one byte for the number of dimensions, each
dimension as a big-endian 32-bit number, then the elements, big-endian, last dimension fastest.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import urllib.request
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastnorm.demo.progress import Progress
from fastnorm.demo.settings import DemoError

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"
TIMEOUT_S = 30.0

# name: (bytes, md5) of the .gz file, as its publisher lists them
FILES = {
    "train-images-idx3-ubyte": (26421880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    "train-labels-idx1-ubyte": (29515, "25c81989df183df01b3e8a0aad5dffbe"),
    "t10k-images-idx3-ubyte": (4422102, "bef4ecab320f06d8554ea6380940ec79"),
    "t10k-labels-idx1-ubyte": (5148, "bb300cfdad3c16e7a12a480ee83cd310"),
}
SOURCES = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)

Opener = Callable[..., IO[bytes]]


def read_idx(path: Path) -> np.ndarray[Any, Any]:
    """Read one IDX file, gzip-compressed or raw (told apart by content, not by name).

    Returns an array of the file's shape and element type in native byte order.
    Raises DemoError, naming the file and what is wrong, for anything but a complete IDX file.
    """
    raw = _read_bytes(path)
    if len(raw) < 4:
        raise DemoError(f"{path}: not an IDX file, {len(raw)} bytes cannot hold its 4-byte magic number")
    zero, code, ndim = struct.unpack_from(">HBB", raw)
    if zero != 0 or code not in DTYPES or ndim == 0:
        raise DemoError(f"{path}: not an IDX file, magic number is 0x{raw[:4].hex()}")
    start = 4 + 4 * ndim
    if len(raw) < start:
        raise DemoError(f"{path}: truncated, {len(raw)} bytes cannot hold a header of {ndim} dimensions")
    shape = struct.unpack_from(f">{ndim}I", raw, 4)
    dtype = np.dtype(DTYPES[code])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        what = "truncated" if len(raw) < expected else "too long"
        raise DemoError(f"{path}: {what}, {len(raw)} bytes where shape {shape} needs {expected}")
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw.startswith(GZIP_MAGIC) else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DemoError(f"{path}: truncated or damaged gzip data ({error})") from error
    except OSError as error:
        raise DemoError(f"{path}: cannot be read ({error.strerror or error})") from error


def find_files(root: Path, *, opener: Opener = urllib.request.urlopen) -> dict[str, Path]:
    """Path of each of the four Fashion-MNIST files under root, downloading those that are not there.

    Raises DemoError that names all four files, the folder to put them in, and why the download failed.
    """
    missing = [name for name in FILES if _present(root, name) is None]
    try:
        if missing:
            root.mkdir(parents=True, exist_ok=True)
        for name in missing:
            _download(root, name, opener)
    except (OSError, HTTPException, ValueError) as error:
        names = ", ".join(f"{name}.gz" for name in FILES)
        raise DemoError(
            f"Fashion-MNIST is not complete in {root} and could not be downloaded ({error}); "
            f"put these four files, gzip-compressed or unpacked, into {root}: {names}"
        ) from error
    return {name: path for name in FILES if (path := _present(root, name)) is not None}


def complete(root: Path) -> bool:
    """Whether all four files lie in root, so that nothing would be downloaded."""
    return all(_present(root, name) is not None for name in FILES)


def _present(root: Path, name: str) -> Path | None:
    return next((path for path in (root / name, root / f"{name}.gz") if path.is_file()), None)


def _download(root: Path, name: str, opener: Opener) -> None:
    """Fetch name.gz into root; it appears there whole and verified, or not at all. Tries all sources."""
    target = root / f"{name}.gz"
    part = root / f"{name}.gz.part-{os.getpid()}"
    for last, source in ((source == SOURCES[-1], source) for source in SOURCES):
        try:
            _fetch(source + target.name, part, FILES[name], opener)
            os.replace(part, target)
            return
        except (OSError, HTTPException, ValueError):
            if last:
                raise
        finally:
            part.unlink(missing_ok=True)


def _fetch(url: str, part: Path, expected: tuple[int, str], opener: Opener) -> None:
    """Stream url into part. Raises ValueError unless its size and checksum are the expected ones."""
    size, checksum = expected
    digest = hashlib.md5(usedforsecurity=False)
    received = 0
    with opener(url, timeout=TIMEOUT_S) as source, part.open("wb") as sink, Progress(size, url) as progress:
        while received <= size and (block := source.read(1 << 16)):
            sink.write(block)
            digest.update(block)
            received += len(block)
            progress.advance(len(block))
    if (received, digest.hexdigest()) != (size, checksum):
        raise ValueError(f"{url} sent {received} bytes that are not the expected {size}-byte file")
