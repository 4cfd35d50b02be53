"""More than 2^31 elements: indices are 64 bits wide. Needs memory, hence slow, and skipped where there is none.

Rows repeat a short pattern, so that the right answer is known from a small tensor; a row's result does not depend on
its batch, so that it is known to the last bit. The numbers of batch norm are such that its
sums are exact however they are cut.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import fastnorm
from fastnorm import optim
from fastnorm.functional import batch_norm, general_relu, group_norm, layer_norm, rms_norm
from fastnorm.testing.free_memory import free_memory

from .backends import REQUIRED, Backend

GIB = 2**30
PAST = 2**31 + 2**12
on_kernels = pytest.mark.parametrize("backend", [b for b in REQUIRED if b.name in ("cpu", "triton", "cuda")], ids=str)
pytestmark = pytest.mark.slow


HEADROOM = 3.0  # GiB for whatever else runs: where memory ends, the system ends processes, and all tests with them


def need(gib: float, backend: Backend) -> None:
    free = torch.cuda.mem_get_info()[0] if backend.device == "cuda" else free_memory() - HEADROOM * GIB
    if free < gib * GIB:
        pytest.skip(f"needs {gib} GiB of free memory")


@pytest.fixture(autouse=True)
def _nothing_is_filled() -> Iterator[None]:
    """Filling 4 GiB with NaN before they are written takes longer than the test."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True
    gc.collect()


def repeated(pattern: Tensor, count: int, device: str) -> Tensor:
    """[count, *pattern], dense."""
    return pattern.to(device).expand(count, *pattern.shape).contiguous()


def some(t: Tensor) -> list[Tensor]:
    """Samples at the start, around element 2^31, and at the end."""
    middle = 2**31 // t[0].numel()
    return [t[:1], t[middle - 1 : middle], t[middle : middle + 1], t[-1:]]


@on_kernels
def test_rows(backend: Backend) -> None:
    """Forward and backward of 2^31 / 4096 rows of fp16; plus and minus one, so that every sum is exact."""
    need(19, backend)
    generator = torch.Generator().manual_seed(0)
    row = torch.tensor([1.0, -1.0]).repeat(2048)[torch.randperm(4096, generator=generator)].to(backend.device)
    dy = torch.randint(-4, 5, (4096,), generator=generator).to(backend.device).half()
    weight, bias = (torch.ones(4096, device=backend.device, requires_grad=True) for _ in range(2))
    small = row.half()[None].requires_grad_()
    y = layer_norm(small, (4096,), weight, bias, 0.0, backend=backend.namespace)
    (dx,) = torch.autograd.grad(y, small, dy[None])
    count = PAST // 4096
    x = repeated(row.half(), count, backend.device).requires_grad_()
    got = layer_norm(x, (4096,), weight, bias, 0.0, backend=backend.namespace)
    assert all(torch.equal(part, y) for part in some(got))
    got_dx, dweight, dbias = torch.autograd.grad(got, (x, weight, bias), dy.expand(x.shape))
    assert all(torch.equal(part, dx) for part in some(got_dx))
    assert torch.equal(dweight, count * dy.float() * row) and torch.equal(dbias, count * dy.float())


@on_kernels
def test_one_set(backend: Backend) -> None:
    """One row longer than an int32 can count: its mean square is that of its pattern."""
    need(10, backend)
    pattern = torch.tensor([3.0, -1.0, 2.0, -2.0], dtype=torch.bfloat16)  # of mean square 4.5
    x = repeated(pattern, PAST // 4, backend.device).reshape(1, PAST)
    y = rms_norm(x, (PAST,), None, 0.0, backend=backend.namespace)
    want = (pattern.double() / 4.5**0.5).bfloat16().to(backend.device)
    for first in (0, 2**31 - 4, 2**31, PAST - 4):
        assert torch.equal(y[0, first : first + 4], want)


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=("nchw", "nhwc"))
@on_kernels
def test_groups(layout: torch.memory_format, backend: Backend) -> None:
    need(10, backend)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(64, 32, 32, generator=generator).half()
    small = sample.to(backend.device)[None].contiguous(memory_format=layout)
    y = group_norm(small, 8, backend=backend.namespace)
    count = PAST // sample.numel() + 1
    x = torch.empty((count, *sample.shape), dtype=torch.float16, device=backend.device, memory_format=layout)
    x.copy_(small.expand(x.shape))
    got = group_norm(x, 8, backend=backend.namespace)
    for part in some(got):
        assert torch.equal(part, y)


@on_kernels
def test_general_relu(backend: Backend) -> None:
    """Forward and backward, element by element; the last block is not full."""
    need(18, backend)
    pattern = torch.tensor([2.0, -1.0, 0.25, -0.5]).half()
    x = repeated(pattern, PAST // 4 + 1, backend.device).flatten()[: PAST + 1].requires_grad_()
    y = general_relu(x, 0.5, 0.25, 1.0, backend=backend.namespace)
    (dx,) = torch.autograd.grad(y, x, torch.ones((), device=backend.device, dtype=x.dtype).expand(x.shape))
    wanted_y, wanted_dx = torch.tensor([1.0, -0.75, 0.0, -0.5]).half(), torch.tensor([0.0, 0.5, 1.0, 0.5]).half()
    for first in (0, 2**31 - 4, 2**31, PAST - 4):
        assert torch.equal(y[first : first + 4].cpu(), wanted_y)
        assert torch.equal(dx[first : first + 4].cpu(), wanted_dx)
    assert y[PAST] == 1.0 and dx[PAST] == 0.0


@pytest.mark.column("batch_norm")
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=("nchw", "nhwc"))
@on_kernels
def test_channels(layout: torch.memory_format, backend: Backend) -> None:
    """Batch norm forward and backward. x is +1, -1, ..., dy +1, +1, -1, -1, ...: all sums of whole quadruples are 0.

    Each sample has a sign of its own, and dy has 4 more at the first and the last position of every channel.
    """
    need(22, backend)
    device = backend.device
    count = PAST // (32 * 1024) + 1
    signs = 2.0 * torch.randint(0, 2, (count, 1, 1, 1), generator=torch.Generator().manual_seed(0)) - 1
    signs[0], signs[-1] = 1.0, -1.0
    x, dy = (torch.empty((count, 32, 32, 32), dtype=torch.float16, device=device, memory_format=layout) for _ in "xy")
    x.copy_(signs.to(device) * torch.tensor([1.0, -1.0]).repeat(16).to(device))
    dy.copy_(torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(8).to(device))
    dy[0, :, 0, 0] += 4
    dy[-1, :, -1, -1] += 4
    weight = torch.arange(1.0, 33.0, device=device, requires_grad=True)
    bias = torch.full((32,), 0.5, device=device, requires_grad=True)
    x.requires_grad_()
    y = batch_norm(x, None, None, weight, bias, True, eps=1e-30, backend=backend.namespace)
    wide = weight.detach()[:, None, None]
    for part, part_x in zip(some(y), some(x.detach()), strict=True):
        assert torch.equal(part, (part_x * wide + 0.5).half())
    dx, dweight, dbias = torch.autograd.grad(y, (x, weight, bias), dy)
    assert torch.equal(dbias, torch.full_like(dbias, 8.0))
    assert torch.equal(dweight, torch.full_like(dweight, 8.0))
    for part, part_dy in zip(some(dx), some(dy), strict=True):  # both averages are lost in fp16
        assert torch.equal(part, (part_dy * wide).half())


@pytest.mark.column("optim")
@pytest.mark.parametrize("name, gib", (("SGD", 10), ("Adam", 27)))
@on_kernels
def test_optimizer(name: str, gib: float, backend: Backend) -> None:
    """Two steps of one bf16 parameter, with fp32 states where it has some; the last chunk has one element."""
    need(gib, backend)
    generator = torch.Generator().manual_seed(0)
    pattern, grad = (torch.randn(8, generator=generator).bfloat16() for _ in range(2))

    def stepped(count: int) -> Tensor:
        p, g = (repeated(t, count, backend.device).flatten()[: 8 * count - 7] for t in (pattern, grad))
        param = torch.nn.Parameter(p)
        param.grad = g
        with fastnorm.use_backend(backend.namespace):
            optimizer = getattr(optim, name)([param], lr=0.1, weight_decay=0.01)
            for _ in range(2):
                optimizer.step()
        return param.detach()

    few, many = stepped(3)[:8], stepped(PAST // 8 + 1)
    assert not torch.equal(few, pattern.to(few.device))
    for first in (0, 2**31 - 8, 2**31, PAST - 8):
        assert torch.equal(many[first : first + 8], few)
    assert many.numel() == PAST + 1 and many[PAST] == few[0]
