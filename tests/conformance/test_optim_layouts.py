"""Strides, views, threads and places in the list: the same numbers always (N2, N3, O6, O16, O17, M2, M3, M10)."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastnorm import optim
from fastnorm.testing.optim import check_step, make_params, set_grads

pytestmark = pytest.mark.usefixtures("optim_route")

SHAPE = (6, 10, 5, 4)
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "RMSprop": {"lr": 0.1, "momentum": 0.9, "centered": True, "weight_decay": 0.1},
    "Adam": {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1},
    "AdamW": {"lr": 0.1},
}


def sliced(t: Tensor) -> Tensor:
    room = torch.full((*t.shape[:-1], 2 * t.shape[-1]), torch.nan, dtype=t.dtype)
    view = room[..., ::2]
    view.copy_(t)
    return view


def offset(t: Tensor) -> Tensor:
    room = torch.full((t.numel() + 3,), torch.nan, dtype=t.dtype)
    return room[1:-2].view(t.shape).copy_(t)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "sliced": sliced,
    "offset": offset,
}


def laid(layout: str, t: Tensor) -> Tensor:
    return LAYOUTS[layout](t.detach().clone())


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("grad_layout", [*LAYOUTS, "expanded"])
@pytest.mark.parametrize("param_layout", LAYOUTS)
def test_any_layout_of_parameter_and_gradient(param_layout: str, grad_layout: str, dtype: torch.dtype) -> None:
    for name, kwargs in OPTIONS.items():
        (values,) = make_params([SHAPE], dtype)
        param = torch.nn.Parameter(laid(param_layout, values))
        place, version = param.data_ptr(), param._version
        ours = getattr(optim, name)([param], **kwargs)
        for step in range(2):
            set_grads([values], seed=step)
            assert values.grad is not None
            if grad_layout == "expanded":
                param.grad = values.grad[:1, :, :1].expand(SHAPE)
            else:
                param.grad = laid(grad_layout, values.grad)
            label = f"{name}, {param_layout} parameter, {grad_layout} gradient, step {step}"
            check_step(ours, [param], lambda ps, n=name, k=kwargs: getattr(torch.optim, n)(ps, **k), label)
        assert param.data_ptr() == place and param._version > version


@pytest.mark.parametrize("name", OPTIONS)
def test_states_in_another_layout(name: str) -> None:
    """A contiguous checkpoint for a channels_last weight."""
    first, second = (make_params([SHAPE], torch.float32) for _ in range(2))
    kwargs = OPTIONS[name]
    before = getattr(optim, name)(first, **kwargs)
    set_grads(first, seed=1)
    before.step()
    second[0].data = first[0].data.clone(memory_format=torch.channels_last)
    after = getattr(optim, name)(second, **kwargs)
    after.load_state_dict(before.state_dict())
    for step in range(2):
        set_grads(second, seed=step)
        check_step(after, second, lambda ps: getattr(torch.optim, name)(ps, **kwargs), f"{name}, step {step}")


@pytest.mark.parametrize("name", OPTIONS)
def test_a_model_moved_to_channels_last_in_mid_training(name: str) -> None:
    moved, stayed = (make_params([SHAPE], torch.float32) for _ in range(2))
    optimizers = [getattr(optim, name)(p, **OPTIONS[name]) for p in (moved, stayed)]
    for step in range(4):
        for params, optimizer in zip((moved, stayed), optimizers, strict=True):
            set_grads(params, seed=step)
            optimizer.step()
        if step == 1:
            moved[0].data = moved[0].data.contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved[0], stayed[0])


@pytest.mark.parametrize("name", OPTIONS)
def test_what_lies_between_the_elements_stays(name: str) -> None:
    for layout in ("sliced", "offset"):
        (values,) = make_params([SHAPE], torch.float32)
        room = laid(layout, values)
        param = torch.nn.Parameter(room)
        set_grads([param], seed=0)
        getattr(optim, name)([param], **OPTIONS[name]).step()
        storage = torch.empty(0).set_(room.untyped_storage())
        assert int(storage.isnan().sum()) == storage.numel() - values.numel()
        assert not param.isnan().any()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_bits_do_not_depend_on_threads_or_place(name: str, dtype: torch.dtype, threads: None) -> None:
    shapes = [(40_000,), (3,), (70_001,), (17, 9)]

    def run(order: list[int], count: int, split: bool) -> list[Tensor]:
        torch.set_num_threads(count)
        params = make_params(shapes, dtype)
        sets = [[params[i]] for i in order] if split else [[params[i] for i in order]]
        optimizers = [getattr(optim, name)(part, **OPTIONS[name]) for part in sets]
        for step in range(2):
            set_grads(params, seed=step)
            for optimizer in optimizers:
                optimizer.step()
        return [p.detach().clone() for p in params]

    wanted = run([0, 1, 2, 3], 1, False)
    for order, count, split in (([0, 1, 2, 3], 2, False), ([3, 1, 0, 2], 3, False), ([2, 0, 3, 1], 1, True)):
        assert all(torch.equal(a, b) for a, b in zip(run(order, count, split), wanted, strict=True))


@pytest.mark.parametrize("name", OPTIONS)
def test_parameters_that_share_memory_are_updated_in_turn(name: str, threads: None) -> None:
    torch.set_num_threads(2)
    pairs = []
    for package in (optim, torch.optim):
        base = make_params([(80_000,)], torch.float64)[0].detach()
        params = [torch.nn.Parameter(base[:60_000]), torch.nn.Parameter(base[30_000:])]
        optimizer = getattr(package, name)(params, **OPTIONS[name])
        for step in range(2):
            set_grads(params, seed=step)
            optimizer.step()
        pairs.append(base)
    torch.testing.assert_close(*pairs)


@pytest.mark.parametrize("name", OPTIONS)
def test_one_parameter_twice_in_a_group(name: str) -> None:
    results = []
    for package in (optim, torch.optim):
        (p,) = make_params([(50,)], torch.float64)
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = getattr(package, name)([p, p], **OPTIONS[name])
        for step in range(2):
            set_grads([p], seed=step)
            optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results)


def test_an_expanded_parameter_is_refused_by_number() -> None:
    fine, expanded = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(1).expand(4))
    fine.grad, expanded.grad = torch.ones(3), torch.ones(4)
    with pytest.raises(RuntimeError, match="parameter 1 has elements that share memory"):
        optim.SGD([fine, expanded], lr=1.0).step()


def guarded(count: int, dtype: torch.dtype) -> Tensor:
    """`count` elements that end where an unreadable page begins."""
    page = mmap.PAGESIZE
    size = count * torch.empty(0, dtype=dtype).element_size()
    pages = -(-size // page) * page
    memory = mmap.mmap(-1, pages + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + pages), page, 0) == 0
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=pages - size)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_beyond_the_end_is_touched(name: str, dtype: torch.dtype) -> None:
    for count in (1, 7, 33, 1025):
        param = torch.nn.Parameter(guarded(count, dtype).zero_())
        param.grad = guarded(count, dtype).fill_(1)
        getattr(optim, name)([param], **OPTIONS[name]).step()
        assert (param != 0).all()
