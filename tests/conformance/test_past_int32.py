"""More than 2^31 elements: indices are 64 bits wide. Slow, and skipped where memory is short.

Inputs are zero but for a few marked elements at the start, around element 2^31 and at the end. The right answer is
known from the marks alone, everywhere; and zeros that nobody has written take no memory on a CPU, only results do.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

import numpy as np
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
both_layouts = pytest.mark.parametrize("last", (False, True), ids=("nchw", "nhwc"))
pytestmark = pytest.mark.slow
HEADROOM = 3.0  # GiB for whatever else runs: where memory ends, the system ends processes, and all tests with them


def need(gib: float, backend: Backend) -> None:
    """gib: of results. On a GPU zeros take memory too, two tensors of 16-bit numbers at most."""
    if backend.device == "cuda":
        gib, free = gib + 9, torch.cuda.mem_get_info()[0]
    else:
        free = free_memory() - HEADROOM * GIB
    if free < gib * GIB:
        pytest.skip(f"needs {gib} GiB of free memory")


@pytest.fixture(autouse=True)
def _nothing_is_filled() -> Iterator[None]:
    """Filling 4 GiB with NaN before they are written takes longer than the test."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True
    gc.collect()


def zeros(shape: Sequence[int], backend: Backend, dtype: torch.dtype = torch.float16) -> Tensor:
    """Of 16 bits each. torch.zeros would write them."""
    if backend.device == "cuda":
        return torch.zeros(shape, dtype=dtype, device="cuda")
    return torch.from_numpy(np.zeros(shape, np.int16)).view(dtype)


def images(count: int, channels: int, side: int, last: bool, backend: Backend) -> Tensor:
    if last:
        return zeros((count, side, side, channels), backend).permute(0, 3, 1, 2)
    return zeros((count, channels, side, side), backend)


def marked(length: int, size: int) -> list[int]:
    """Of so many rows of this size: the first, those on both sides of element 2^31, the last."""
    middle = 2**31 // size
    return sorted({0, middle - 1, middle, length - 1})


def others(t: Tensor, rows: Sequence[int]) -> Iterator[Tensor]:
    """All of t but these rows of its first dim."""
    for before, row in zip((-1, *rows), (*rows, t.shape[0]), strict=True):
        if row > before + 1:
            yield t[before + 1 : row].detach()


def all_are(value: float, parts: Iterator[Tensor]) -> bool:
    """Whether all elements are this number. In the order of memory: else min() makes a copy."""
    ordered = (part if part.is_contiguous() else part.movedim(1, -1) for part in parts)
    return all(float(part.min()) == value == float(part.max()) for part in ordered)


def released(y: Tensor) -> torch.autograd.graph.GradientEdge:
    """What is needed of a result to go back from it, for `del y`."""
    return torch.autograd.graph.get_gradient_edge(y)


@on_kernels
def test_rows(backend: Backend) -> None:
    """Layer norm of 2^31 / 4096 rows. eps is such that 1 / sqrt(1 + eps) is 0.5: all sums are exact."""
    need(4.5, backend)
    generator = torch.Generator().manual_seed(0)
    row = torch.tensor([1.0, -1.0]).repeat(2048)[torch.randperm(4096, generator=generator)].half().to(backend.device)
    row_dy = torch.randint(1, 5, (4096,), generator=generator).half().to(backend.device)
    weight, bias = (torch.full((4096,), v, device=backend.device, requires_grad=True) for v in (1.0, 0.0))
    small = row[None].clone().requires_grad_()
    want = layer_norm(small, (4096,), weight, bias, 3.0, backend=backend.namespace)
    (want_dx,) = torch.autograd.grad(want, small, row_dy[None])
    x, dy = (zeros((PAST // 4096, 4096), backend) for _ in "xy")
    rows = marked(len(x), 4096)
    x[rows], dy[rows] = row, row_dy
    y = layer_norm(x.requires_grad_(), (4096,), weight, bias, 3.0, backend=backend.namespace)
    assert torch.equal(y[rows], want.expand(len(rows), 4096)) and all_are(0, others(y, rows))
    edge = released(y)
    del y
    dx, dweight, dbias = torch.autograd.grad(edge, (x, weight, bias), dy)
    assert torch.equal(dx[rows], want_dx.expand(len(rows), 4096)) and all_are(0, others(dx, rows))
    assert torch.equal(dbias, len(rows) * row_dy.float())
    assert torch.equal(dweight, len(rows) * row_dy.float() * row.float() / 2)


@on_kernels
def test_one_set(backend: Backend) -> None:
    """One row longer than an int32 can count. Its mean square is 1 with the marks on both sides of element 2^31."""
    need(4.5, backend)
    x = zeros((1, PAST), backend)
    marks = [0, 1, 2**30, 2**31 - 1, 2**31, 2**31 + 1, PAST - 2, PAST - 1]
    x[0, marks] = 2.0**14
    y = rms_norm(x, (PAST,), None, 0.0, backend=backend.namespace)[0]
    assert y[marks].tolist() == [2.0**14] * 8 and all_are(0, others(y, marks))


@both_layouts
@on_kernels
def test_groups(last: bool, backend: Backend) -> None:
    need(4.5, backend)
    sample = torch.randn(64, 32, 32, generator=torch.Generator().manual_seed(0)).half()
    x = images(PAST // sample.numel() + 4, 64, 32, last, backend)
    rows = marked(len(x), sample.numel())
    x[rows] = sample.to(backend.device)
    want = group_norm(x[:1].clone(), 8, backend=backend.namespace)
    y = group_norm(x, 8, backend=backend.namespace)
    assert torch.equal(y[rows], want.expand(len(rows), *sample.shape)) and all_are(0, others(y, rows))


@on_kernels
def test_general_relu(backend: Backend) -> None:
    """Forward and backward; the last block is not full."""
    need(4.5, backend)
    x, dy = (zeros((PAST + 1,), backend) for _ in "xy")
    marks = [first + i for first in (0, 2**31 - 2, PAST - 3) for i in range(4)]
    x[marks] = torch.tensor([2.0, -1.0, 0.25, -0.5]).half().repeat(3).to(backend.device)
    dy[marks] = torch.tensor([1.0, 2.0, 3.0, 4.0]).half().repeat(3).to(backend.device)
    y = general_relu(x.requires_grad_(), 0.5, 0.25, 1.0, backend=backend.namespace)
    assert y[marks].tolist() == [1.0, -0.75, 0.0, -0.5] * 3 and all_are(-0.25, others(y, marks))
    edge = released(y)
    del y
    (dx,) = torch.autograd.grad(edge, x, dy)
    assert dx[marks].tolist() == [0.0, 1.0, 3.0, 2.0] * 3 and all_are(0, others(dx, marks))


@pytest.mark.column("batch_norm")
@both_layouts
@on_kernels
def test_channels(last: bool, backend: Backend) -> None:
    """Batch norm forward and backward. Of each channel's n values four are not zero: +v, -v, +v, -v.

    The variance is 4 v^2 / n, so that x_hat^2 is n / 4 at the marks. dy is 9 at the first and -7 at the last of them:
    of dx = rstd * w * (dy - avg(dy) - x_hat * avg(dy * x_hat)) the last term is rstd * w * (9 + 7) / 4 there.
    """
    need(4.5, backend)
    count, v = PAST // (32 * 1024) + 4, 2.0**14
    x, dy = (images(count, 32, 32, last, backend) for _ in "xy")
    rows = marked(count, 32 * 1024)
    for row, sign in zip(rows, (1, -1, 1, -1), strict=True):
        x[row, :, -1, -1] = sign * v
    dy[0, :, -1, -1], dy[-1, :, -1, -1] = 9, -7
    weight = torch.tensor([0.5, 1.0, 2.0, 1.0] * 8, device=backend.device, requires_grad=True)
    bias = torch.full((32,), 0.5, device=backend.device, requires_grad=True)
    rstd = (count * 1024 / 4) ** 0.5 / v  # 0.25, and so little more that fp16 does not see it
    y = batch_norm(x.requires_grad_(), None, None, weight, bias, True, eps=1e-30, backend=backend.namespace)
    wide = weight.detach().half()
    for row, sign in zip(rows, (1, -1, 1, -1), strict=True):
        assert torch.equal(y[row, :, -1, -1], sign * 4096 * wide)
        y.detach()[row, :, -1, -1] = 0.5
    assert all_are(0.5, iter([y.detach()]))
    edge = released(y)
    del y
    dx, dweight, dbias = torch.autograd.grad(edge, (x, weight, bias), dy)
    assert dbias.tolist() == [2.0] * 32
    torch.testing.assert_close(dweight, torch.full_like(dweight, (9 + 7) * v * rstd))
    for row, value in zip(rows, (9 - 4, 0 + 4, 0 - 4, -7 + 4), strict=True):
        assert torch.equal(dx[row, :, -1, -1], value * 0.25 * wide)
        dx[row, :, -1, -1] = 0
    assert all_are(0, iter([dx]))


@pytest.mark.column("optim")
@pytest.mark.parametrize("name, gib", (("SGD", 4.5), ("Adam", 22)))
@on_kernels
def test_optimizer(name: str, gib: float, backend: Backend) -> None:
    """Two steps of one bf16 parameter, with fp32 states where it has some; the last chunk has one element."""
    need(gib, backend)
    generator = torch.Generator().manual_seed(0)
    pattern, slope = (torch.randn(8, generator=generator).bfloat16().to(backend.device) for _ in range(2))

    def stepped(param: Tensor, grad: Tensor) -> Tensor:
        parameter = torch.nn.Parameter(param)
        parameter.grad = grad
        with fastnorm.use_backend(backend.namespace):
            optimizer = getattr(optim, name)([parameter], lr=0.1, weight_decay=0.01)
            for _ in range(2):
                optimizer.step()
        return parameter.detach()

    want = stepped(pattern.clone(), slope.clone())
    param, grad = (zeros((PAST + 1,), backend, torch.bfloat16) for _ in "pg")
    marks = [first + i for first in (0, 2**31 - 4, PAST - 7) for i in range(8)]
    param[marks], grad[marks] = pattern.repeat(3), slope.repeat(3)
    param = stepped(param, grad)
    assert not torch.equal(want, pattern)
    assert torch.equal(param[marks], want.repeat(3)) and all_are(0, others(param, marks))
