"""What one optimizer step should give: torch.optim's plain path in float64, from the state that ours is in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastnorm.testing.compare import Expectation, check
from fastnorm.testing.rounding import unit_of

Make: TypeAlias = Callable[[list[Tensor]], torch.optim.Optimizer]
HALF = (torch.bfloat16, torch.float16)

# Around every vector and chunk edge.
SIZES = (0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 65535, 65536, 65537)


def arithmetic_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in HALF else dtype


def expectation(
    before: Tensor, exact: Tensor, peer: Tensor, dtype: torch.dtype, nudged: Tensor | None = None
) -> Expectation:
    """Of a parameter or state after one step; before: in float64, what it was. nudged: exact, from a rounded gradient.

    Floor: old and new value and the way between them round a few times; the way is as long as the longest of the
    tensor, for what it is made of may cancel. And the rounding of the gradient, weight decay added, goes as far as
    the step carries it: where the gradient is small, an average's root may magnify it.
    """
    unit = unit_of(arithmetic_of(dtype))
    way = torch.nan_to_num((exact - before).abs(), 0.0, 0.0, 0.0)
    longest = way.max() if way.numel() else way.sum()
    floor = unit * (before.abs() + exact.abs() + 4 * longest)
    if nudged is not None:
        floor = floor + torch.nan_to_num((nudged - exact).abs(), 0.0, 0.0, 0.0)
    return Expectation(exact, peer.double(), floor, dtype)


def real(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t


def wide_dtype(dtype: torch.dtype, real_dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128 if real_dtype == torch.float64 else torch.complex64
    return real_dtype


def twin(
    ours: torch.optim.Optimizer, params: Sequence[Tensor], make: Make, dtype: torch.dtype, nudge: float = 0.0
) -> list[Tensor]:
    """Parameters and states, in a fixed order, after torch's step in this dtype from where ours stands.

    nudge: gradients are off by so much of themselves and of the weight decay that is added to them.
    """
    copies = [p.detach().to(wide_dtype(p.dtype, dtype), copy=True).requires_grad_() for p in params]
    for p, source in zip(copies, params, strict=True):
        p.grad = None if source.grad is None else source.grad.detach().to(p.dtype, copy=True)  # a hook may clip it
    other = make(copies)
    saved = copy.deepcopy(ours.state_dict())
    for group, own in zip(saved["param_groups"], other.param_groups, strict=True):
        group.update(foreach=False, fused=False, differentiable=False)
        own.update(group, params=own["params"])
    other.load_state_dict(saved)
    for p in copies:
        for name, value in other.state.get(p, {}).items():
            if name != "step":  # torch leaves complex states as they are
                other.state[p][name] = value.to(p.dtype)
    if nudge:
        for group in other.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad = p.grad + nudge * (p.grad.abs() + float(group["weight_decay"]) * p.detach().abs())
    other.step()
    return flat(other, copies)


def flat(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> list[Tensor]:
    """Parameters, then of each one its states by name."""
    states = [optimizer.state.get(p, {}) for p in params]
    found = [value for state in states for _, value in sorted(state.items()) if isinstance(value, Tensor)]
    return [t.detach().clone() for t in (*params, *found)]


def check_step(ours: torch.optim.Optimizer, params: Sequence[Tensor], make: Make, label: str) -> None:
    """One step of `ours`, judged against torch's class (`make`) in float64 from the same state."""
    dtypes = {p.dtype for p in params}
    arithmetic = torch.float64 if dtypes & {torch.float64, torch.complex128} else torch.float32
    before = {id(p): (p.detach().clone(), {k: v.clone() for k, v in ours.state.get(p, {}).items()}) for p in params}
    exact, peer = twin(ours, params, make, torch.float64), twin(ours, params, make, arithmetic)
    nudged = twin(ours, params, make, torch.float64, nudge=unit_of(arithmetic))
    ours.step()
    got = flat(ours, params)
    assert len(got) == len(exact), f"{label}: {len(got)} tensors, torch has {len(exact)}"
    old = [before[id(p)][0] for p in params]
    for p in params:
        names = sorted(name for name, value in ours.state.get(p, {}).items() if isinstance(value, Tensor))
        old += [before[id(p)][1].get(name, torch.zeros_like(ours.state[p][name])) for name in names]
    for index, (a, b, c, d, e) in enumerate(zip(old, exact, peer, got, nudged, strict=True)):
        want = expectation(real(a).double(), real(b).double(), real(c).double(), real(d).dtype, real(e).double())
        check(real(d), want, f"{label}, tensor {index} {tuple(d.shape)}")


def set_grads(params: Sequence[Tensor], seed: int, scale: float = 1.0) -> None:
    """New random gradients, in the parameters' dtypes and on their devices."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        values = torch.randn(real(p).shape, generator=generator, dtype=torch.float64) * scale
        p.grad = (torch.view_as_complex(values) if p.is_complex() else values).to(p.device, p.dtype)


def make_params(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape in shapes:
        pair = (2,) if dtype.is_complex else ()
        values = torch.randn((*shape, *pair), generator=generator, dtype=torch.float64)
        made.append(torch.nn.Parameter((torch.view_as_complex(values) if pair else values).to(dtype)))
    return made
