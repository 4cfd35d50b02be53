"""The step of the optimizers on a device, against torch.optim in float64: Triton's kernel, and on a GPU CUDA C++'s.

Without a GPU Triton's runs under its interpreter, and tests/emulation runs this file with CUDA C++'s in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastnorm
from fastnorm import optim
from fastnorm.optim.device import DeviceStep
from fastnorm.testing.compare import Expectation, check
from fastnorm.testing.optim import check_step, make_params, set_grads
from tests.conformance.backends import DEVICE, LAUNCHED, on_launched
from tests.conformance.test_optim_oracle import NAMES, options

pytestmark = on_launched


@pytest.fixture(autouse=True, params=LAUNCHED, ids=str)
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    with fastnorm.use_backend(request.param.namespace):
        yield request.param.namespace


def on_device(params: list[Tensor]) -> list[Tensor]:
    return [torch.nn.Parameter(p.detach().to(DEVICE)) for p in params]


def follow(name: str, kwargs: dict[str, Any], shapes: Any, dtype: torch.dtype, steps: int = 3) -> Any:
    params = on_device(make_params(shapes, dtype))
    ours = getattr(optim, name)(params, **kwargs)
    for step in range(steps):
        set_grads(params, seed=step + 1)
        check_step(ours, params, lambda ps: getattr(torch.optim, name)(ps, **kwargs), f"{name} {kwargs}, step {step}")
    return ours


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_combination_of_switches(name: str, dtype: torch.dtype) -> None:
    for kwargs in options(name) if dtype == torch.float32 else options(name)[-1:]:
        ours = follow(name, kwargs, [(5, 7), (), (33,), (0,)], dtype, steps=2)
        assert ours._plan.sole is not None and not ours._plan.others


@pytest.mark.parametrize("name", NAMES)
def test_sizes_around_blocks_and_chunks(name: str) -> None:
    follow(name, options(name)[-1], [(n,) for n in (1, 1023, 1024, 1025, 8191, 8192, 8193)], torch.float32, steps=1)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_from_the_host_are_those_from_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for waits in (False, True):
        if waits:
            monkeypatch.setattr(DeviceStep, "waits", property(lambda _: True, lambda *_: None), raising=False)
        monkeypatch.setattr(DeviceStep, "capturing", lambda _, waits=waits: not waits)  # which SGD's numbers depend on
        params = on_device(make_params([(40,), (7,)], torch.float32))
        optimizer = getattr(optim, name)(params, **options(name)[-1])
        for step in range(3):
            set_grads(params, seed=step)
            optimizer.step()
        results.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_of_the_cpu_give_the_same(name: str, namespace: str) -> None:
    """Options that torch.optim does not have included."""
    more: dict[str, Any] = {"decoupled_weight_decay": True}
    if name == "SGD":
        more["lerp"] = True
    else:
        more["eps_inside_sqrt"] = True
    if name == "RMSprop":
        more |= {"init": "first_grad", "lr_in_momentum": True}
    if name == "AdamW":
        more.pop("decoupled_weight_decay")
    kwargs = {**options(name)[-1], **more, "max_norm": 1.0}
    if name == "SGD":
        kwargs["nesterov"] = False
    results = []
    for backend, device in ((namespace, DEVICE), ("native", "cpu")):
        params = [torch.nn.Parameter(p.detach().to(device)) for p in make_params([(40,), (3, 5)], torch.float64)]
        with fastnorm.use_backend(backend):
            optimizer = getattr(optim, name)(params, **kwargs)
            for step in range(3):
                set_grads(params, seed=step)
                optimizer.step()
        results.append(params)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.cpu(), b)


@pytest.mark.parametrize("name", NAMES)
def test_skipped_steps_and_loss_scale(name: str) -> None:
    results = []
    for scaled in (True, False):
        params = on_device(make_params([(40,)], torch.float32))
        optimizer = getattr(optim, name)(params, **options(name)[-1])
        for step in range(4):
            set_grads(params, seed=step)
            overflow = step in (0, 2)
            if scaled:
                optimizer.grad_scale = torch.tensor(8.0, device=DEVICE)
                optimizer.found_inf = torch.tensor(float(overflow), device=DEVICE)
                assert params[0].grad is not None
                params[0].grad.mul_(torch.inf if overflow else 8.0)
            elif overflow:
                continue
            optimizer.step()
        results.append((params[0].detach(), optimizer.state[params[0]].get("step")))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]


def test_infinities_are_found_where_nobody_looked() -> None:
    params = on_device(make_params([(40,)], torch.float32))
    before = params[0].detach().clone()
    optimizer = optim.Adam(params)
    optimizer.grad_scale = torch.tensor(8.0, device=DEVICE)
    params[0].grad = torch.full_like(params[0], torch.inf)
    optimizer.step()
    assert torch.equal(params[0], before) and optimizer.state[params[0]]["step"] == 0


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_master_weights(dtype: torch.dtype) -> None:
    p = torch.nn.Parameter(torch.linspace(-1, 1, 70, device=DEVICE).to(dtype))
    q = torch.nn.Parameter(p.detach().float())
    pair = optim.Adam([p], lr=1e-3, master_weights="fp32"), optim.Adam([q], lr=1e-3)
    for step in range(3):
        p.grad = torch.linspace(step, 1, 70, device=DEVICE).to(dtype)
        q.grad = p.grad.float()
        for optimizer in pair:
            optimizer.step()
    exact = q.detach().double()
    assert torch.equal(pair[0].state[p]["master_param"], q)
    check(p, Expectation(exact, exact, torch.zeros_like(exact), dtype), "rounded")  # the interpreter may truncate


@pytest.mark.parametrize("layout", ("channels_last", "transposed", "sliced"))
def test_layouts_of_parameter_and_gradient(layout: str) -> None:
    values = make_params([(3, 4, 5, 2)], torch.float32)[0].detach().to(DEVICE)
    laid = {
        "channels_last": values.contiguous(memory_format=torch.channels_last),
        "transposed": values.transpose(0, 3).contiguous().transpose(0, 3),
        "sliced": torch.zeros(3, 4, 5, 4, device=DEVICE)[..., ::2].copy_(values),
    }[layout]
    param, plain = torch.nn.Parameter(laid), torch.nn.Parameter(values.clone())
    optimizers = optim.Adam([param], lr=0.1), optim.Adam([plain], lr=0.1)
    for step in range(2):
        set_grads([plain], seed=step)
        param.grad = plain.grad
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(param, plain)


def test_mixed_dtypes_and_two_groups_take_one_launch_for_each_combination() -> None:
    params = [*make_params([(9,), (20,), (7,)], torch.float32), *make_params([(5,), (6,)], torch.bfloat16)]
    params = on_device(params)
    optimizer = optim.Adam([{"params": params[:2], "lr": 0.1}, {"params": params[2:], "lr": 0.2}])
    set_grads(params, seed=0)
    check_step(
        optimizer, params,
        lambda ps: torch.optim.Adam([{"params": ps[:2], "lr": 0.1}, {"params": ps[2:], "lr": 0.2}]), "two groups",
    )  # fmt: skip
    device = optimizer._plan.sole
    numbers, sets = device._host_numbers()
    assert device.table.step(2, device.grads(), sets, numbers) == 2
    assert len(numbers) == 2 and sets == [0, 0, 1, 1, 1]


def test_what_lies_on_the_device_is_uploaded_once() -> None:
    """So that a captured step uploads nothing."""
    params = on_device(make_params([(9,), (20,)], torch.float32))
    optimizer = optim.SGD(params, lr=0.1)
    set_grads(params, seed=0)
    held = []
    for _ in range(3):
        optimizer.step()
        held.append([(p.table.data_ptr(), p.chunks.data_ptr()) for p in optimizer._plan.sole.table.parts])
    assert held[0] == held[1] == held[2]


@pytest.mark.parametrize("place", range(10))
def test_a_wrong_number_is_seen(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = optim.Adam.rule.numbers

    def wrong(*args: Any) -> list[Any]:
        numbers = right(*args)
        numbers[place] = numbers[place] * 1.001 + (0.001 if place in (2, 8) else 0)
        return numbers

    monkeypatch.setattr(optim.Adam.rule, "numbers", wrong)
    with pytest.raises(AssertionError, match="elements are wrong"):
        follow("Adam", options("Adam")[-1], [(40,)], torch.float32)
