"""Two models trained beside each other, and how far apart rounding may bring them.

Nobody can say in advance what rounding does to a deep net: its gradients jump where a pre-activation changes sign, and
training multiplies every difference. So the bound is measured. The oracle is the original in float64. A copy of it is
trained in the same way, with noise: every parameter, and what each layer gives and (backward) receives, is changed by a
relative
    NOISE_ROUNDINGS * u, u the rounding of the arithmetic under test, 2^-24 or 2^-53:
the few roundings that a layer makes, and far less than a wrong formula. For each tensor (by its Euclidean norm) the
bound is
    what the noise moved in it
  + the noise's median relative effect on the tensors of its kind: a single number may have stayed by chance.

In float64 the comparison is sharp over several steps. In float32 it is made over one: later the differences are the
net's own chaos. And there, in a net whose activations have corners, one or two of its pre-activations change sign by
chance, each of which moves a late layer's gradient by a per cent, and noise as small need not move the same ones. So
such a net's gradients are compared in float32 as one vector, with coarse noise, which moves many.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from fastnorm.testing.zoo import Batch, call, logits_of, loss_of
from fastnorm.verify.question import Disturbance

NOISE_ROUNDINGS = 64.0
COARSE = 2.0**-14
UNITS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
STEPS = {torch.float32: 1, torch.float64: 3}
KINDS = ("output", "gradient", "parameter", "buffer")
PEER_FACTOR = 2.0  # under autocast; errors of so many roundings agree much closer
Findings = dict[str, dict[str, Tensor]]  # kind -> name -> float64 tensor


@dataclass(frozen=True)
class Distance:
    """Of one tensor after one step: how far from the oracle's, how far it may be, how large the oracle's is."""

    step: int
    kind: str
    name: str
    error: float
    bound: float
    size: float

    @property
    def excess(self) -> float:
        """The error in units of what is allowed."""
        if not self.error <= self.bound:  # a NaN as well
            return self.error / self.bound if self.bound > 0 and self.error < torch.inf else torch.inf
        return self.error / self.bound if self.bound else 0.0

    def __str__(self) -> str:
        where = f"step {self.step}, {self.kind} {self.name}"
        return f"{where}: off by {self.error:.3g} of {self.size:.3g}, {self.excess:.3g} times what is allowed"


class Trial:
    """What the oracle and its perturbed copies found over some steps, against which candidates are measured.

    smooth: no activation of the original has a corner.
    """

    def __init__(self, original: nn.Module, batch: Batch, *, smooth: bool, lr: float = 1e-3) -> None:
        self.batch, self.smooth, self.lr = batch, smooth, lr
        oracle = copy.deepcopy(original).double()
        noises = {dtype: NOISE_ROUNDINGS * unit for dtype, unit in UNITS.items()}
        self.moved = {dtype: self._moved(oracle, noise, STEPS[dtype]) for dtype, noise in noises.items()}
        self.moved_far = [] if smooth else self._moved(oracle, COARSE, STEPS[torch.float32])
        self.exact = self._found(oracle, torch.float64, max(STEPS.values()))

    def _moved(self, oracle: nn.Module, noise: float, steps: int) -> list[Findings]:
        model = perturbed(oracle, noise)
        with Disturbance(noise, seed=0).watching(model):
            return self._found(model, torch.float64, steps)

    def _found(self, model: nn.Module, dtype: torch.dtype, steps: int) -> list[Findings]:
        return list(training(model, cast(self.batch, dtype), steps=steps, lr=self.lr))

    def distances(
        self, candidate: nn.Module, dtype: torch.dtype, judged_as: torch.dtype | None = None
    ) -> list[Distance]:
        """Trains the candidate, whose parameters are of that dtype, and measures what it found at each step.

        judged_as: the arithmetic of which the bound is, where a model computes in less than its parameters' dtype.
        Raises: AssertionError where its tensors do not have the original's names, in the original's order.
        """
        judged_as = judged_as or dtype
        found = []
        for step, got in enumerate(self._found(candidate, dtype, STEPS[judged_as])):
            for kind in KINDS:
                exact, moved = self.exact[step][kind], self.moved[judged_as][step][kind]
                assert list(got[kind]) == list(exact), f"step {step}: other names of {kind}s than the original's"
                if judged_as == torch.float32 and kind in ("gradient", "parameter") and not self.smooth:
                    far = _together(self.moved_far[step][kind])
                    found += _distances(step, kind, _together(exact), _together(got[kind]), far)
                else:
                    found += _distances(step, kind, exact, got[kind], moved)
        return found


def training(model: nn.Module, batch: Batch, *, steps: int, lr: float) -> Iterator[Findings]:
    """What each step of SGD with momentum finds and leaves; random numbers are drawn anew from the step's number."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        output = call(model, batch)
        loss = loss_of(output)
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        before = {"output": {"logits": logits_of(output), "loss": loss}, "gradient": gradients}
        found = {kind: {name: _wide(t) for name, t in tensors.items()} for kind, tensors in before.items()}
        optimizer.step()
        after = {"parameter": model.named_parameters(), "buffer": model.named_buffers()}
        yield found | {kind: {name: _wide(t) for name, t in tensors} for kind, tensors in after.items()}


def perturbed(model: nn.Module, noise: float) -> nn.Module:
    """A copy with every element of its parameters times 1 - noise or 1 + noise, by chance."""
    generator = torch.Generator().manual_seed(0)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + noise * (2 * torch.randint(2, p.shape, generator=generator, dtype=p.dtype) - 1))
    return model


def autocast_errors(original: nn.Module, converted: nn.Module, batch: Batch) -> dict[str, tuple[float, float]]:
    """Under bfloat16 autocast, how far each one's logits and gradients are from the float64 original's.

    kind -> (the original's error, the converted one's), of all tensors of that kind together, relative.
    Raises: AssertionError where dtypes are not the original's.
    """
    oracle = copy.deepcopy(original).double()
    exact = _flat(next(training(oracle, cast(batch, torch.float64), steps=1, lr=0.0)))
    found, dtypes = [], []
    for model in (original, converted):
        kinds: dict[str, torch.dtype] = {}
        handles = [m.register_forward_hook(_noting(kinds, name)) for name, m in model.named_modules() if not m._modules]
        with torch.autocast("cpu", torch.bfloat16):
            found.append(_flat(next(training(model, batch, steps=1, lr=0.0))))
        for handle in handles:
            handle.remove()
        dtypes.append(kinds)
    different = [name for name, dtype in dtypes[1].items() if dtypes[0].get(name, dtype) != dtype]
    assert not different, f"results of another dtype than the original's: {different}"
    return {kind: (_relative(found[0][kind], e), _relative(found[1][kind], e)) for kind, e in exact.items()}


def _noting(kinds: dict[str, torch.dtype], name: str) -> Any:
    def note(module: nn.Module, args: Any, result: Any) -> None:
        if isinstance(result, Tensor):
            kinds[name] = result.dtype

    return note


def _flat(found: Findings) -> dict[str, Tensor]:
    return {kind: _together(found[kind])["(all)"] for kind in ("output", "gradient")}


def _relative(got: Tensor, exact: Tensor) -> float:
    return float((got - exact).norm() / exact.norm())


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with its floating tensors in the dtype."""
    if isinstance(batch, dict):
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in batch.items()}
    return batch.to(dtype)


def _wide(t: Tensor) -> Tensor:
    return t.detach().to(torch.float64, copy=True)


def _together(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"(all)": torch.cat([t.flatten() for t in tensors.values()])}


def _distances(
    step: int, kind: str, exact: dict[str, Tensor], got: dict[str, Tensor], moved: dict[str, Tensor]
) -> list[Distance]:
    sizes = {name: float(e.norm()) for name, e in exact.items()}
    effects = {name: float((moved[name] - e).norm()) for name, e in exact.items()}
    typical = median([effects[name] / size for name, size in sizes.items() if size > 0] or [0.0])
    return [
        Distance(step, kind, name, float((got[name] - e).norm()), effects[name] + typical * sizes[name], sizes[name])
        for name, e in exact.items()
    ]
