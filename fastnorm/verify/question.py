"""What a model is asked, and all that it answers: outputs, gradients, running statistics."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastnorm.verify.trees import as_double, is_inexact, map_tensors, named_tensors

Loss = Callable[[Any], Tensor]
Key = tuple[str, str]  # (kind, name), a kind of KINDS
Answers = dict[Key, Tensor]
OUTPUTS, GRADIENTS, STATISTICS = KINDS = ("outputs", "gradients", "statistics")


class RandomWeighting:
    """The loss by default: the sum of all floating outputs, each element times a fixed random number.

    A plain sum would not do: its gradient through a norm is zero. The numbers are eighths from -1 to 1, exact in every
    dtype, so that the float64 copy has the same loss.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._weights: dict[Any, Tensor] = {}

    def __call__(self, output: Any) -> Tensor:
        found = [t for _, t in named_tensors(output, "output") if is_inexact(t) and t.requires_grad]
        if not found:
            raise ValueError("no output of the model depends on its parameters or floating inputs: pass loss=")
        terms = [(self._weight(index, t) * t).sum() for index, t in enumerate(found)]
        return functools.reduce(torch.add, [term.abs() if term.is_complex() else term for term in terms])

    def _weight(self, index: int, t: Tensor) -> Tensor:
        key = (index, t.shape, t.dtype, t.device)
        if key not in self._weights:
            generator = torch.Generator().manual_seed(self.seed + index)
            drawn = torch.randint(-8, 9, t.shape, generator=generator, dtype=torch.int8)
            self._weights[key] = drawn.to(device=t.device, dtype=t.dtype) / 8
        return self._weights[key]


@dataclass(frozen=True)
class Question:
    """Arguments, a loss and a seed: with a model and its mode they decide every result."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loss: Loss
    seed: int = 0

    def double(self) -> Question:
        """The same question in float64."""
        return replace(self, args=map_tensors(self.args, as_double), kwargs=map_tensors(self.kwargs, as_double))

    def copied(self) -> Question:
        """The same question with tensors of its own, which want no gradient."""
        args, kwargs = map_tensors((self.args, self.kwargs), lambda t: t.detach().clone())
        return replace(self, args=args, kwargs=kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        return [t for _, t in named_tensors((self.args, self.kwargs), "input")]

    def answers(self, model: nn.Module, *, training: bool, disturb: Disturbance | None = None) -> Answers:
        """One forward and backward. model is the caller's copy: its mode, gradients and statistics change."""
        disturb = disturb or Disturbance(0.0, 0)
        set_mode(model, training)
        model.zero_grad(set_to_none=True)
        leaves: list[Tensor] = []

        def enter(t: Tensor) -> Tensor:
            if not is_inexact(t):
                return t.clone()
            leaf = t.detach().clone().requires_grad_()
            leaves.append(leaf)
            return disturb(leaf)  # not the leaf itself, which nobody may change in place

        args, kwargs = map_tensors((self.args, self.kwargs), enter)
        with seeded(self.seed, self.tensors), disturb.watching(model), torch.enable_grad():
            output = model(*args, **kwargs)
            self.loss(output).backward()
        found: Answers = {(OUTPUTS, name): t for name, t in named_tensors(output, "output") if is_inexact(t)}
        found |= {(GRADIENTS, name): p.grad for name, p in model.named_parameters() if p.grad is not None}
        found |= {(GRADIENTS, f"input {i}"): leaf.grad for i, leaf in enumerate(leaves) if leaf.grad is not None}
        found |= {(STATISTICS, name): buffer for name, buffer in model.named_buffers()}
        return {key: t.detach().clone() for key, t in found.items()}


class Disturbance:
    """Rounds coarsely: t becomes t * (1 + noise * u), u drawn uniformly from -1..1.

    And all of t is shifted by a part of its root mean square: single roundings average out in a mean, but a mean is
    rounded itself, to the spacing of the numbers that it was taken of. Done to the model's floating inputs and to the
    result of every module without children. Their gradients are rounded with draws of their own: with those of the
    forward they would be the gradients of another function, which keeps the original's symmetries.
    """

    SHIFT = 1 / 8  # of the noise: two roundings where that is sixteen

    def __init__(self, noise: float, seed: int) -> None:
        self.noise = noise
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}  # its own: dropout's numbers must not move
        self._sign = 1.0

    def __call__(self, t: Tensor) -> Tensor:
        if not self.noise:
            return t.clone()
        with torch.no_grad():
            rms = torch.nan_to_num(t, 0.0, 0.0, 0.0).abs().square().mean().sqrt()
            self._sign = -self._sign
            off = t * self._drawn(t) + self._sign * self.SHIFT * self.noise * rms
            off = torch.where(t.isfinite(), off, 0.0)  # infinities stay: a mask's, before a softmax
        moved = t + off
        if moved.requires_grad:
            moved.register_hook(lambda g: g + g * self._drawn(g))
        return moved

    def _drawn(self, t: Tensor) -> Tensor:
        if t.device not in self._generators:
            self._generators[t.device] = torch.Generator(t.device).manual_seed(self._seed)
        drawn = torch.empty(t.shape, dtype=t.real.dtype, device=t.device)
        return drawn.uniform_(-self.noise, self.noise, generator=self._generators[t.device])

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Disturbs the result of every module without children."""

        def hook(module: nn.Module, args: Any, result: Any) -> Any:
            return map_tensors(result, lambda t: self(t) if is_inexact(t) else t)

        leaves = [module for module in model.modules() if not any(module.children())] if self.noise else []
        handles = [module.register_forward_hook(hook) for module in leaves]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def set_mode(model: nn.Module, training: bool) -> None:
    """train() or eval(); a model that is training stays as it is, with the layers that its owner froze in eval."""
    if model.training != training:
        model.train(training)


@contextmanager
def seeded(seed: int, tensors: Iterable[Tensor]) -> Iterator[None]:
    """The same random numbers each time, in torch (on the CPU and the tensors' devices) and in Python's random.

    The caller's own go on as if nothing had been.
    """
    before = random.getstate()
    try:
        with torch.random.fork_rng(devices={t.device for t in tensors if t.is_cuda}):
            torch.manual_seed(seed)
            random.seed(seed)
            yield
    finally:
        random.setstate(before)
