"""What the kernels of an optimizer's step make of the table: odd addresses, far offsets, all dtypes, clipping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastnorm
from fastnorm import optim
from fastnorm.ops.optim_table import OptimRow, OptimTable
from fastnorm.optim.plan import launcher_of
from fastnorm.testing.optim import check_step, make_params, set_grads
from tests.conformance.backends import DEVICE, LAUNCHED, on_launched
from tests.conformance.test_optim_oracle import NAMES, options

pytestmark = on_launched
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(autouse=True, params=LAUNCHED, ids=str)
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    with fastnorm.use_backend(request.param.namespace):
        yield request.param.namespace


def shifted(t: Tensor, by: int) -> Tensor:
    """A copy on the device that begins so many elements after an address that divides by 16."""
    room = torch.empty(t.numel() + by, dtype=t.dtype, device=DEVICE)[by:].view(t.shape)
    return room.copy_(t.detach())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_addresses_that_do_not_divide_by_16(name: str, dtype: torch.dtype) -> None:
    """Parameters and gradients begin anywhere, another place in every step."""
    kwargs = options(name)[-1]
    params: list[Any] = [torch.nn.Parameter(shifted(p, 3)) for p in make_params([(37,), (1025,), (1,)], dtype)]
    ours = getattr(optim, name)(params, **kwargs)
    for step in range(3):
        set_grads(params, seed=step)
        for p in params:
            p.grad = shifted(p.grad, step)
        check_step(ours, params, lambda ps: getattr(torch.optim, name)(ps, **kwargs), f"{name} {dtype}, step {step}")
    assert not any(part.form.aligned for part in ours._plan.sole.table.parts)


def clipped(name: str, kwargs: dict[str, Any], max_norm: float) -> Any:
    """torch's optimizer behind torch's own clipping."""

    def make(params: list[Tensor]) -> torch.optim.Optimizer:
        optimizer = getattr(torch.optim, name)(params, **kwargs)
        optimizer.register_step_pre_hook(lambda *_: torch.nn.utils.clip_grad_norm_(params, max_norm) and None)
        return optimizer

    return make


@pytest.mark.parametrize("max_norm", (0.25, 1e6), ids=("clips", "does not clip"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_clipping(name: str, dtype: torch.dtype, max_norm: float) -> None:
    """By the norm of all gradients together, over more chunks than are summed at once on three SMs."""
    kwargs = options(name)[-1]
    shapes = [(33,), (2050,), (5, 7), *([(3,)] * 13)]
    params = [torch.nn.Parameter(p.detach().to(DEVICE)) for p in make_params(shapes, dtype)]
    ours = getattr(optim, name)(params, **kwargs, max_norm=max_norm)
    for step in range(2):
        set_grads(params, seed=step)
        check_step(ours, params, clipped(name, kwargs, max_norm), f"{name} {dtype} to {max_norm}, step {step}")


def test_gradients_of_several_dtypes_are_clipped_together() -> None:
    """The bits of steps without clipping whose gradients were scaled by a power of two, which is exact."""
    results = []
    for max_norm, scale in ((None, 0.25), (2.0 * (1 + 1e-6 / 8.0), 1.0)):
        params = [
            torch.nn.Parameter(torch.linspace(-1, 1, 64, device=DEVICE).to(dtype)) for dtype in DTYPES for _ in range(2)
        ]
        optimizer = optim.SGD(params, lr=0.5, max_norm=max_norm)
        for p, norm in zip(params, (4.0, 4.0, 4.0, 4.0, 0.0, 0.0, 0.0, 0.0), strict=True):  # 8 in all
            p.grad = torch.zeros_like(p)
            p.grad[7] = norm * scale
        optimizer.step()
        results.append([p.detach().double() for p in params])
    for plain, clip in zip(*results, strict=True):
        torch.testing.assert_close(clip, plain, rtol=0, atol=1e-7)
    assert not torch.equal(results[0][0], torch.linspace(-1, 1, 64, device=DEVICE).double())


def test_a_norm_that_is_not_finite() -> None:
    """As torch's clipping: infinity makes every gradient 0 and its own NaN, NaN makes all NaN."""
    for value in (torch.inf, torch.nan):
        params = [torch.nn.Parameter(torch.ones(5, device=DEVICE)) for _ in range(2)]
        twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
        for p in (*params, *twins):
            p.grad = torch.ones_like(p)
        for group in (params, twins):
            assert group[0].grad is not None
            group[0].grad[1] = value
        optim.SGD(params, lr=0.5, max_norm=1.0).step()
        torch.nn.utils.clip_grad_norm_(twins, 1.0)
        torch.optim.SGD(twins, lr=0.5).step()
        for p, q in zip(params, twins, strict=True):
            assert torch.equal(p.isnan(), q.isnan()) and torch.equal(p.nan_to_num(0), q.nan_to_num(0))


FAR = (2**31 - 1024, 2**31, 2**32 + 3 * 8192)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=str)
@pytest.mark.parametrize("kind, states", ((0, 1), (1, 2), (2, 3)))
def test_offsets_past_two_to_the_31(kind: int, states: int, dtype: torch.dtype, namespace: str) -> None:
    """One chunk that begins so far into its tensors; their addresses lie so far before the memory that there is."""
    near = step_at(0, kind, states, dtype, namespace)
    for begin in FAR:
        far = step_at(begin, kind, states, dtype, namespace)
        assert all(torch.equal(a, b) for a, b in zip(near, far, strict=True)), begin


def step_at(begin: int, kind: int, states: int, dtype: torch.dtype, namespace: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    param, grad, *own = (torch.rand(700, generator=generator).to(DEVICE, dtype) for _ in range(2 + states))
    before = param.clone()
    table = OptimTable([OptimRow(param, own)], launcher_of(namespace))
    table.take([grad])
    (part,) = table.parts
    assert part.chunks.tolist() == [[0, 0]]
    part.chunks = torch.tensor([[0, begin]], device=DEVICE)
    back = begin * dtype.itemsize
    part.lines[0] = [*(address - back if address else 0 for address in part.lines[0][:6]), begin + 700]
    width = (8, 11, 10)[kind]
    assert table.step(kind, [grad], [0], torch.full((1, width), 0.25, dtype=torch.float64)) == 1
    assert not torch.equal(param, before)
    return [param, *own]
