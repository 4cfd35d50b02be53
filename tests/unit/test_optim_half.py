"""16-bit parameters: fp32 state, master weights, rounding at random, and mixed-precision training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastnorm
from fastnorm import optim
from fastnorm.eager.optim import random_bits, random_key, rounded_at_random

pytestmark = pytest.mark.usefixtures("optim_route")

HALF = (torch.bfloat16, torch.float16)
CLASSES = (optim.SGD, optim.RMSprop, optim.Adam, optim.AdamW)


def momentum(cls: Any) -> dict[str, float]:
    return {"momentum": 0.9} if cls in (optim.SGD, optim.RMSprop) else {}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("cls", CLASSES)
def test_the_state_is_fp32(cls: Any, dtype: torch.dtype) -> None:
    p = torch.nn.Parameter(torch.ones(20, dtype=dtype))
    p.grad = torch.ones(20, dtype=dtype)
    optimizer = cls([p], lr=0.1, **momentum(cls))
    optimizer.step()
    assert {value.dtype for value in optimizer.state[p].values()} == {torch.float32}


def test_the_second_moment_decays() -> None:
    """In bf16, v * 0.999 is v."""
    p = torch.nn.Parameter(torch.zeros(20, dtype=torch.bfloat16))
    optimizer = optim.Adam([p])
    for step in range(50):
        p.grad = torch.full((20,), float(step == 0), dtype=torch.bfloat16)
        optimizer.step()
    expected = 1e-3 * 0.999**49
    torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], torch.full((20,), expected))


@pytest.mark.parametrize("backend", ("native", "eager"))
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("cls", CLASSES)
def test_master_weights_are_those_of_an_fp32_run(cls: Any, dtype: torch.dtype, backend: str) -> None:
    start = torch.linspace(-1, 1, 1025).to(dtype)
    p, q = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    with_master = cls([p], lr=1e-3, master_weights="fp32", **momentum(cls))
    single = cls([q], lr=1e-3, **momentum(cls))
    with fastnorm.use_backend(backend):
        for step in range(5):
            p.grad = torch.linspace(0.1 + step, 1, 1025).to(dtype)
            q.grad = p.grad.float()
            with_master.step()
            single.step()
    master = with_master.state[p]["master_param"]
    assert master.dtype == torch.float32 and torch.equal(master, q) and torch.equal(p, q.to(dtype))


def test_master_weights_need_nothing_for_fp32() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = optim.Adam([p], master_weights="fp32")
    optimizer.step()
    assert "master_param" not in optimizer.state[p]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last", "sliced"))
@pytest.mark.parametrize("cls", CLASSES)
def test_random_rounding_is_the_references_bit_for_bit(cls: Any, dtype: torch.dtype, layout: str) -> None:
    """Numbers that the step itself computes exactly, so that only the rounding can differ."""
    values = torch.linspace(-3, 3, 6 * 40 * 5 * 4).view(6, 40, 5, 4)
    results = []
    for backend in ("native", "eager"):
        start = values.to(dtype)
        if layout == "channels_last":
            start = start.contiguous(memory_format=torch.channels_last)
        elif layout == "sliced":
            start = torch.zeros(6, 40, 5, 8, dtype=dtype)[..., ::2].copy_(start)
        p = torch.nn.Parameter(start)
        p.grad = torch.full(values.shape, 2.0**-11, dtype=dtype)
        with fastnorm.use_backend(backend):
            optim.SGD([p], lr=0.5, stochastic_rounding=True, seed=3).step()
        results.append(p.detach())
    assert torch.equal(*results)
    assert cls([p], lr=0.1, stochastic_rounding=True).param_groups[0]["stochastic_rounding"]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("size", (1.0, 300.0, 2.0**-15, 2.0**-22))
def test_random_rounding_is_right_on_average(dtype: torch.dtype, size: float) -> None:
    value = torch.full((200_000,), 1.2345678) * size
    rounded = rounded_at_random(value, value.to(dtype), random_key(1, 2, 3)).double()
    assert rounded.unique().numel() <= 2
    gap = float(rounded.max() - rounded.min())
    assert gap <= float(torch.finfo(dtype).eps) * 2 * size or size < 2.0**-13
    assert abs(float(rounded.mean()) - float(value[0])) <= 5 * gap / 2 / 200_000**0.5
    exact = torch.tensor([0.0, -0.0, 1.0, -2.0, float("inf"), -float("inf")])
    assert torch.equal(rounded_at_random(exact, exact.to(dtype), 7), exact.to(dtype))
    assert rounded_at_random(torch.tensor([torch.nan]), exact[:1].to(dtype), 7).isnan().all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("size", (1.0, 2.0**-15))
def test_the_kernel_rounds_up_as_often_as_it_should(dtype: torch.dtype, size: float) -> None:
    """A tenth of the gap between two numbers moves a tenth of the elements."""
    gap = float(torch.finfo(dtype).eps) * size if size == 1.0 or dtype == torch.bfloat16 else 2.0**-24
    p = torch.nn.Parameter(torch.full((100_000,), size, dtype=dtype))
    p.grad = torch.full((100_000,), -1.0, dtype=dtype)
    optim.SGD([p], lr=gap / 10, stochastic_rounding=True).step()
    share = float((p > size).double().mean())
    assert abs(share - 0.1) < 5 * (0.09 / 100_000) ** 0.5


def test_random_rounding_depends_on_seed_step_parameter_and_element_alone(threads: None) -> None:
    def run(seed: int, count: int) -> list[Tensor]:
        torch.set_num_threads(count)
        params = [torch.nn.Parameter(torch.ones(50_000, dtype=torch.bfloat16)) for _ in range(2)]
        optimizer = optim.SGD(params, lr=2.0**-10, stochastic_rounding=True, seed=seed)
        results = []
        for _ in range(2):
            for p in params:
                p.grad = torch.ones(50_000, dtype=torch.bfloat16)
            optimizer.step()
            results += [p.detach().clone() for p in params]
        return results

    one, two, other = run(0, 1), run(0, 2), run(1, 1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], one[1])
    bits = random_bits(1000, random_key(0, 1, 0))
    assert bits.unique().numel() == 1000 and 0.4 < float((bits >> 31).double().mean()) < 0.6


@pytest.mark.parametrize("cls", CLASSES)
def test_clipping_inside_the_step(cls: Any) -> None:
    for scale in (0.01, 100.0):
        results = []
        for inside in (True, False):
            params = [torch.nn.Parameter(torch.ones(n, dtype=torch.float64)) for n in (3, 50_000, 7)]
            optimizer = cls(params, lr=0.1, **({"max_norm": 1.5} if inside else {}), **momentum(cls))
            for step in range(3):
                for p in params:
                    p.grad = torch.linspace(-1, step + 1, p.numel(), dtype=torch.float64) * scale / p.numel()
                if not inside:
                    torch.nn.utils.clip_grad_norm_(params, 1.5)
                optimizer.step()
            results.append(params)
        for p, q in zip(*results, strict=True):
            torch.testing.assert_close(p, q)


@pytest.mark.parametrize("cls", CLASSES)
def test_training_with_a_grad_scaler(cls: Any, threads: None) -> None:
    """Steps with overflows against a run in fp32 without a scaler (O18)."""
    torch.set_num_threads(1)
    results = []
    for scaled in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        optimizer = cls(model.parameters(), lr=1e-2, max_norm=1.0, **momentum(cls))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=20, enabled=scaled)
        x = torch.randn(64, 8)
        y = x.prod(1, keepdim=True).tanh()
        for step in range(200 if cls is optim.Adam else 60):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            scaler.scale(loss).backward()
            if scaled and step % 20 == 0:
                next(model.parameters()).grad.fill_(torch.inf)
            if step % 20 != 0 or scaled:
                scaler.step(optimizer)
                scaler.update()
        results.append((loss.item(), [p.detach() for p in model.parameters()]))
    assert abs(results[0][0] - results[1][0]) < 0.05 * results[1][0]
    if cls is not optim.RMSprop:  # whose first steps magnify any rounding
        for a, b in zip(results[0][1], results[1][1], strict=True):
            assert float((a - b).norm() / b.norm()) < 0.05
