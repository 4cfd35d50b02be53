"""What torch.optim's users rely on: classes, checkpoints both ways, schedulers, hooks, closures, copies."""

from __future__ import annotations

import copy
import io
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

from fastnorm import optim
from fastnorm.testing.optim import make_params, set_grads

pytestmark = pytest.mark.usefixtures("optim_route")

KWARGS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "RMSprop": {"lr": 0.1, "momentum": 0.9, "centered": True},
    "Adam": {"lr": 0.1, "amsgrad": True},
    "AdamW": {"lr": 0.1},
}
NAMES = tuple(KWARGS)
SHAPES = [(40,), (3, 5), ()]


def make(package: Any, name: str, dtype: torch.dtype = torch.float64, **more: Any) -> tuple[list[Tensor], Any]:
    params = make_params(SHAPES, dtype)
    return params, getattr(package, name)(params, **{**KWARGS[name], **more})


def train(params: list[Tensor], optimizer: Any, steps: range) -> None:
    for step in steps:
        set_grads(params, seed=step)
        optimizer.step()


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_is_one_of_torchs(name: str) -> None:
    _, ours = make(optim, name)
    _, theirs = make(torch.optim, name)
    assert isinstance(ours, getattr(torch.optim, name))
    assert theirs.defaults.items() <= ours.defaults.items()
    assert name in repr(ours)
    if name == "AdamW":
        assert isinstance(ours, optim.Adam)


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_go_both_ways(name: str) -> None:
    for first, second in ((optim, torch.optim), (torch.optim, optim)):
        start_params, start = make(first, name)
        train(start_params, start, range(3))
        params, optimizer = make(second, name)
        for p, q in zip(params, start_params, strict=True):
            p.data.copy_(q.data)
        optimizer.load_state_dict(copy.deepcopy(start.state_dict()))
        train(start_params, start, range(3, 6))
        train(params, optimizer, range(3, 6))
        for p, q in zip(params, start_params, strict=True):
            torch.testing.assert_close(p, q)
        assert start.state[start_params[0]].keys() == optimizer.state[params[0]].keys()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_has_the_same_bits(name: str, dtype: torch.dtype) -> None:
    more = {"stochastic_rounding": dtype == torch.bfloat16, "seed": 5}
    params, optimizer = make(optim, name, dtype, **more)
    train(params, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "params": [p.detach().clone() for p in params]}, file)
    train(params, optimizer, range(3, 6))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, resumed = make(optim, name, dtype, **more)
    for p, value in zip(again, saved["params"], strict=True):
        p.data.copy_(value)
    resumed.load_state_dict(saved["optimizer"])
    train(again, resumed, range(3, 6))
    assert same(params, again)


@pytest.mark.parametrize("name", NAMES)
def test_copies_go_on_alone(name: str) -> None:
    params, optimizer = make(optim, name)
    train(params, optimizer, range(2))
    for copied in (copy.deepcopy((params, optimizer)), pickle.loads(pickle.dumps((params, optimizer)))):
        train(*copied, range(2, 4))
        reference = copy.deepcopy((params, optimizer))
        train(*reference, range(2, 4))
        assert same(copied[0], reference[0]) and not same(copied[0], params)


def test_old_checkpoints_with_a_number_as_step() -> None:
    params, optimizer = make(optim, "Adam")
    train(params, optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = int(state["step"])
    for key in ("amsgrad", "maximize", "eps_inside_sqrt", "max_norm", "seed", "master_weights", "stochastic_rounding"):
        saved["param_groups"][0].pop(key)
    again, resumed = make(optim, "Adam", amsgrad=False)
    resumed.load_state_dict(saved)
    train(again, resumed, range(1))
    assert resumed.state[again[0]]["step"] == 4 and resumed.param_groups[0]["max_norm"] is None


def test_a_loaded_state_keeps_its_dtype() -> None:
    """torch.optim would cast the fp32 averages of a bf16 parameter to bf16."""
    params, optimizer = make(optim, "Adam", torch.bfloat16)
    train(params, optimizer, range(1))
    again, resumed = make(optim, "Adam", torch.bfloat16)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert {v.dtype for v in resumed.state[again[0]].values()} == {torch.float32}
    theirs_params, theirs = make(torch.optim, "Adam", torch.bfloat16)
    train(theirs_params, theirs, range(1))
    resumed.load_state_dict(theirs.state_dict())
    train(again, resumed, range(2))
    assert resumed.state[again[0]]["exp_avg"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_load_hooks_see_and_change_what_is_loaded(name: str) -> None:
    params, optimizer = make(optim, name)
    train(params, optimizer, range(1))
    _, resumed = make(optim, name)
    resumed.register_load_state_dict_pre_hook(
        lambda _, saved: {**saved, "param_groups": [{**g, "lr": 7.0} for g in saved["param_groups"]]}
    )
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.param_groups[0]["lr"] == 7.0 and len(resumed._optimizer_load_state_dict_pre_hooks) == 1


@pytest.mark.parametrize("name", NAMES)
def test_closure_and_hooks(name: str) -> None:
    params, optimizer = make(optim, name)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure() -> Tensor:
        seen.append("closure")
        optimizer.zero_grad()
        loss = sum((p * p).sum() for p in params)
        assert isinstance(loss, Tensor) and loss.requires_grad
        loss.backward()
        return loss

    with torch.no_grad():
        first = optimizer.step(closure)
        second = optimizer.step(closure)
    assert second < first and seen == ["before", "closure", "after"] * 2


@pytest.mark.parametrize("name", NAMES)
def test_schedulers(name: str) -> None:
    ours, theirs = make(optim, name), make(torch.optim, name)
    makers = (
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=7),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
    )
    for scheduler in makers:
        pair = [(params, optimizer, scheduler(optimizer)) for params, optimizer in (ours, theirs)]
        for step in range(6):
            for params, optimizer, schedule in pair:
                set_grads(params, seed=step)
                optimizer.step()
                schedule.step()
    for p, q in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", NAMES)
def test_groups_with_numbers_of_their_own(name: str) -> None:
    results = []
    for package in (optim, torch.optim):
        params = make_params([(30,)] * 6, torch.float64)
        groups = [{"params": params[i::3], "lr": 0.1 * (i + 1), "weight_decay": 0.1 * i} for i in range(3)]
        optimizer = getattr(package, name)(groups, **KWARGS[name])
        train(params, optimizer, range(3))
        results.append(params)
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", NAMES)
def test_torchs_error_inputs(name: str) -> None:
    info = next(info for info in optim_db if info.optim_cls is getattr(torch.optim, name))
    checked = 0
    for item in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
        if item.error_on != OptimizerErrorEnum.CONSTRUCTION_ERROR:
            continue
        bad = item.optimizer_error_input
        context = pytest.warns if issubclass(item.error_type, Warning) else pytest.raises
        with context(item.error_type) as caught:
            getattr(optim, name)(bad.params, **bad.kwargs)
        said = str(caught[0].message) if issubclass(item.error_type, Warning) else str(caught.value)
        assert item.error_regex in said or re.search(item.error_regex, said)
        checked += 1
    assert checked >= 5


@pytest.mark.parametrize("flags", ({"foreach": True}, {"foreach": False}, {"fused": True}, {"fused": False}))
@pytest.mark.parametrize("name", NAMES)
def test_foreach_and_fused_mean_nothing_more(name: str, flags: dict[str, bool]) -> None:
    plain, flagged = make(optim, name), make(optim, name, **flags)
    for params, optimizer in (plain, flagged):
        train(params, optimizer, range(3))
    assert same(plain[0], flagged[0])


@pytest.mark.parametrize("name", NAMES)
def test_differentiable_steps_carry_gradients(name: str) -> None:
    """Of what the parameter becomes after two steps, with respect to its start, the gradient and lr."""

    def trained(start: Tensor, grad: Tensor, lr: Tensor) -> Tensor:
        target = start.clone()
        optimizer = getattr(optim, name)([target], **{**KWARGS[name], "lr": lr}, differentiable=True)
        for _ in range(2):
            target.grad = grad
            optimizer.step()
        return target

    start = torch.linspace(-1, 1, 6, dtype=torch.float64, requires_grad=True)
    grad = torch.linspace(0.5, 2, 6, dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(trained, (start, grad, lr))


def test_named_parameters_and_zero_grad() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = optim.Adam(model.named_parameters(), lr=0.1)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert model.weight.grad is None and optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_a_compiled_step_falls_back_to_the_same_one() -> None:
    params, optimizer = make(optim, "Adam")
    other, plain = make(optim, "Adam")
    compiled = torch.compile(optimizer.step, backend="eager")
    for step in range(2):
        set_grads(params, seed=step)
        compiled()
    train(other, plain, range(2))
    assert same(params, other)
