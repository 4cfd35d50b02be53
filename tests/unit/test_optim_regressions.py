"""The bugs of other optimizers that this one must never have (N1-N6, O1-O18, A2)."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastnorm import optim

pytestmark = pytest.mark.usefixtures("optim_route")

CLASSES = (optim.SGD, optim.RMSprop, optim.Adam, optim.AdamW)
MOMENTUM = {"lr": 0.1, "momentum": 0.9}


def param(values: Tensor, grad: Tensor | None) -> torch.nn.Parameter:
    p = torch.nn.Parameter(values)
    p.grad = grad
    return p


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("count", (15, 16, 17, 24, 64, 1000))
def test_n1_half_parameters_are_updated_in_full_vectors_too(dtype: torch.dtype, count: int) -> None:
    p = param(torch.zeros(count, dtype=dtype), torch.ones(count, dtype=dtype))
    optim.SGD([p], lr=1.0, momentum=0.5).step()
    assert (p == -1).all()


@pytest.mark.parametrize("cls", CLASSES)
def test_n2_the_gradients_strides_count(cls: Any) -> None:
    values, grad = torch.randn(8, 8), torch.randn(8, 8)
    plain, transposed = param(values.clone(), grad), param(values.t().contiguous().t(), grad)
    for p in (plain, transposed):
        cls([p], lr=0.1).step()
    assert torch.equal(plain, transposed)


@pytest.mark.parametrize("cls", CLASSES)
def test_n3_an_expanded_gradient_is_one_number(cls: Any) -> None:
    expanded, full = (param(torch.zeros(4096), g) for g in (torch.ones(1).expand(4096), torch.ones(4096)))
    for p in (expanded, full):
        cls([p], lr=0.1).step()
    assert torch.equal(expanded, full)


@pytest.mark.parametrize("cls", CLASSES)
def test_n4_version_counters_move(cls: Any) -> None:
    p = param(torch.ones(3), torch.ones(3))
    optimizer = cls([p], lr=0.1, **({"momentum": 0.9} if cls in (optim.SGD, optim.RMSprop) else {}))
    optimizer.step()
    versions = {k: v._version for k, v in optimizer.state[p].items() if k != "step"}
    y = (p * p).sum()
    p.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    assert versions and all(optimizer.state[p][k]._version > v for k, v in versions.items())


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("skipped", (0, 2))
def test_n5_o7_a_skipped_step_leaves_no_trace(cls: Any, skipped: int) -> None:
    """Also where it is the first one; and the steps after it are those of a run without it."""
    kwargs = {"lr": 0.1, **({"momentum": 0.9} if cls in (optim.SGD, optim.RMSprop) else {})}
    p, q = (param(torch.linspace(-1, 1, 40), None) for _ in range(2))
    with_skip, without = cls([p], **kwargs), cls([q], **kwargs)
    for step in range(5):
        p.grad = torch.full((40,), float(step + 1))
        if step == skipped:
            before = copy.deepcopy(with_skip.state_dict()["state"]), p.detach().clone()
            p.grad[7] = torch.inf
            with_skip.grad_scale, with_skip.found_inf = torch.tensor(8.0), torch.tensor(1.0)
            with_skip.step()
            after = with_skip.state_dict()["state"], p.detach()
            assert str(before) == str(after)
            continue
        with_skip.grad_scale, with_skip.found_inf = torch.tensor(8.0), torch.tensor(0.0)
        q.grad = p.grad.clone()
        p.grad = p.grad * 8
        with_skip.step()
        without.step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("cls", CLASSES)
def test_n5_the_step_finds_the_infinity_itself_where_nobody_did(cls: Any) -> None:
    """With dampening, the first gradient counts for more than the others: the step after a skipped one is the first."""
    kwargs = {"lr": 0.1, **({"momentum": 0.9} if cls in (optim.SGD, optim.RMSprop) else {})}
    if cls is optim.SGD:
        kwargs["dampening"] = 0.5
    p, q = param(torch.ones(5), torch.full((5,), torch.inf)), param(torch.ones(5), torch.ones(5))
    skipping, plain = cls([p], **kwargs), cls([q], **kwargs)
    skipping.grad_scale = torch.tensor(4.0)
    skipping.step()
    assert (p == 1).all()
    p.grad = torch.full((5,), 4.0)
    skipping.step()
    plain.step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("cls", CLASSES)
def test_n6_o5_gradients_that_come_late_or_never(cls: Any) -> None:
    kwargs = {"lr": 0.1, "weight_decay": 0.1, **({"momentum": 0.9} if cls in (optim.SGD, optim.RMSprop) else {})}
    ours, theirs = ([param(torch.ones(n, dtype=torch.float64), None) for n in (3, 4, 5)] for _ in range(2))
    a, b = cls(ours, **kwargs), getattr(torch.optim, cls.__name__)(theirs, **kwargs)
    for step in range(4):
        for params in (ours, theirs):
            params[0].grad = torch.full((3,), step + 1.0, dtype=torch.float64)
            params[1].grad = torch.full((4,), step + 1.0, dtype=torch.float64) if step in (1, 3) else None
        a.step()
        b.step()
    assert (ours[2] == 1).all() and ours[2] not in a.state
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)
    if "step" in a.state[ours[1]]:
        assert [int(a.state[p]["step"]) for p in ours[:2]] == [4, 2]


def test_o1_where_eps_stands() -> None:
    p = param(torch.zeros(1, dtype=torch.float64), torch.full((1,), 1e-3, dtype=torch.float64))
    optim.Adam([p], lr=1.0, eps=1.0).step()
    assert math.isclose(p.item(), -1e-3 / (1e-3 + 1.0), rel_tol=1e-12)
    p = param(torch.zeros(1, dtype=torch.float64), torch.full((1,), 1e-3, dtype=torch.float64))
    optim.Adam([p], lr=1.0, eps=1.0, eps_inside_sqrt=True).step()
    assert math.isclose(p.item(), -1e-3 / math.sqrt(1e-6 + 1.0), rel_tol=1e-12)


def test_o2_the_bias_correction_is_exact() -> None:
    """In fp32, 1 - 0.999 alone would be off by 1e-5."""
    p = param(torch.zeros(1), torch.ones(1))
    optim.Adam([p], lr=1.0, eps=0.0).step()
    assert abs(p.item() + 1) < 4e-7


def test_o3_steps_count_as_float32() -> None:
    p = param(torch.zeros(1), torch.ones(1))
    optimizer = optim.Adam([p])
    optimizer.step()
    step = optimizer.state[p]["step"]
    assert step.dtype == torch.float32 and step.shape == () and step.device.type == "cpu" and step == 1


def test_o8_sgd_keeps_no_state_without_momentum_and_starts_with_the_gradient() -> None:
    p = param(torch.zeros(3), torch.ones(3))
    plain = optim.SGD([p], lr=0.1)
    plain.step()
    assert not plain.state[p]
    heavy = optim.SGD([p], lr=0.1, momentum=0.9, dampening=0.5)
    heavy.step()
    assert torch.equal(heavy.state[p]["momentum_buffer"], torch.ones(3))


@pytest.mark.parametrize("cls", CLASSES)
def test_o9_numbers_are_read_at_every_step(cls: Any) -> None:
    lr = torch.tensor(0.1, dtype=torch.float64)
    ours, theirs = (param(torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)) for _ in range(2))
    a, b = cls([ours], lr=lr), getattr(torch.optim, cls.__name__)([theirs], lr=lr)
    for step in range(6):
        lr.fill_(0.1 / (step + 1))
        for group in (a.param_groups[0], b.param_groups[0]):
            group["weight_decay"] = 0.1 * step
            if "betas" in group:
                group["betas"] = (0.5 + 0.05 * step, 0.9)
            else:
                group["momentum"] = 0.0 if step == 0 else 0.5 + 0.05 * step
                for p in (ours, theirs):  # torch's own RMSprop would miss the buffer
                    if "square_avg" in b.state[p]:
                        b.state[p].setdefault("momentum_buffer", torch.zeros(4, dtype=torch.float64))
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("cls", CLASSES)
def test_o9_lr_of_zero_changes_nothing(cls: Any) -> None:
    p = param(torch.randn(20), torch.randn(20))
    before = p.detach().clone()
    cls([p], lr=0.0, weight_decay=0.1).step()
    assert torch.equal(p, before)


def test_o10_o14_what_is_refused() -> None:
    p = param(torch.zeros(2), torch.ones(2))
    for cls in (optim.RMSprop, optim.Adam, optim.AdamW):
        with pytest.raises(ValueError, match="Invalid learning rate: nan"):
            cls([p], lr=float("nan"))
        with pytest.raises(AssertionError, match="If capturable=True"):
            cls([p], capturable=True).step()
    optim.SGD([p], lr=float("nan"))
    for bad in ({"max_norm": 0.0}, {"master_weights": "bf16"}, {"seed": 1 << 63}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            optim.Adam([p], **bad)
    with pytest.raises(ValueError, match="stochastic_rounding"):
        optim.Adam([p], master_weights="fp32", stochastic_rounding=True)
    with pytest.raises(ValueError, match="init must be one of 'zeros'"):
        optim.RMSprop([p], init="twos")
    with pytest.raises(ValueError, match="dampening must be 0"):
        optim.SGD([p], lr=0.1, momentum=0.9, dampening=0.1, lerp=True)


@pytest.mark.parametrize("cls", CLASSES)
def test_o12_sparse_gradients_are_refused_also_later(cls: Any) -> None:
    p = param(torch.zeros(2), torch.ones(2))
    optimizer = cls([p], lr=0.1)
    optimizer.step()
    p.grad = torch.ones(2).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


@pytest.mark.parametrize("cls", CLASSES)
def test_o13_a_complex_parameter_is_two_real_ones(cls: Any) -> None:
    z = param(torch.randn(5, dtype=torch.complex64), torch.randn(5, dtype=torch.complex64))
    assert z.grad is not None
    r = param(torch.view_as_real(z.detach()).clone(), torch.view_as_real(z.grad).clone())
    for p in (z, r):
        optimizer = cls([p], lr=0.1, **({"momentum": 0.9} if cls in (optim.SGD, optim.RMSprop) else {}))
        for _ in range(3):
            optimizer.step()
    assert torch.equal(torch.view_as_real(z.detach()), r)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_parameter_that_negates_its_memory(cls: Any) -> None:
    """The imaginary part of a conjugate is a view whose memory holds the other sign."""
    values, grad = torch.randn(6, dtype=torch.complex64).conj().imag.detach(), torch.ones(6)
    assert values.is_neg()
    plain, negated = param(values.clone().resolve_neg(), grad), values.requires_grad_()
    negated.grad = grad.clone()
    ours, theirs = cls([negated], lr=0.1), cls([plain], lr=0.1)
    for optimizer in (ours, theirs, ours, theirs):
        optimizer.step()
    torch.testing.assert_close(negated.detach().resolve_neg(), plain.detach())


@pytest.mark.parametrize("cls", CLASSES)
def test_tensors_that_are_replaced_between_steps_are_noticed(cls: Any) -> None:
    kwargs = {"lr": 0.1, **({"momentum": 0.9} if cls in (optim.SGD, optim.RMSprop) else {})}
    p, q = (param(torch.ones(70), torch.ones(70)) for _ in range(2))
    a, b = cls([p], **kwargs), cls([q], **kwargs)
    for step in range(6):
        p.grad, q.grad = torch.full((70,), step + 1.0), torch.full((70,), step + 1.0)
        a.step()
        b.step()
        if step == 0:
            p.data = p.data.clone()
        elif step == 1:
            for key, value in a.state[p].items():
                a.state[p][key] = value.clone()
        elif step == 2:
            a.state[p] = {key: value.clone() for key, value in a.state[p].items()}
        elif step == 3:
            for value in a.state[p].values():
                value.data = value.data.clone()
    assert torch.equal(p, q)


def test_a_new_group_and_a_changed_group_are_noticed() -> None:
    p, q = param(torch.ones(5), torch.ones(5)), param(torch.ones(5), torch.ones(5))
    optimizer = optim.SGD([p], lr=0.5)
    optimizer.step()
    optimizer.add_param_group({"params": [q], "lr": 0.25})
    optimizer.step()
    assert (p == 0).all() and (q == 0.75).all()
    optimizer.param_groups[0]["params"][0] = q
    optimizer.param_groups.pop()
    optimizer.step()
    assert (p == 0).all() and (q == 0.25).all()


def test_another_parameter_in_the_same_place_is_noticed() -> None:
    p, q = param(torch.ones(5), torch.ones(5)), param(torch.ones(5), torch.full((5,), 2.0))
    optimizer = optim.SGD([p], lr=0.5)
    optimizer.step()
    optimizer.param_groups[0]["params"][0] = q
    optimizer.step()
    assert (p == 0.5).all() and (q == 0).all()


def test_inference_parameters_and_empty_ones() -> None:
    with torch.inference_mode():
        p = param(torch.ones(3), torch.ones(3))
        optim.SGD([p], lr=1.0).step()
    assert (p == 0).all()
    empty = param(torch.ones(0), torch.ones(0))
    optimizer = optim.Adam([empty])
    optimizer.step()
    assert optimizer.state[empty]["step"] == 1
