"""What an optimizer would ask Python's objects at every step, asked by the compiled nodes in one call (csrc/nodes)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from fastnorm.ops import native
from fastnorm.ops.optim import STEP, Plan, TensorMoved

MOVED, OTHER, LONG_WAY, REFORMED, TAKEN = range(5)  # as OptimAnswer in csrc/nodes/optim_watch.h


class Watch:
    """A plan whose tensors, groups and states are looked after: a step is one question and one call.

    It stands in for its plan in everything that a step needs. `take` has to come first.
    """

    def __init__(
        self,
        plan: Plan,
        params: list[Tensor],
        groups: list[dict[str, Any]],
        snapshot: list[dict[str, Any]],
        states: list[dict[str, Any]],
        hyper_keys: tuple[str, ...],
        form_keys: tuple[str, ...],
        words: dict[str, float],
    ) -> None:
        """params: of all groups; groups and states as the plan was made from; snapshot: all states there are.

        Raises TensorMoved where the plan's tensors have.
        """
        module = _nodes()
        assert module is not None
        rows: list[tuple[list[Tensor], bool] | None] = [None] * len(params)
        for row in plan.rows:
            rows[row.parameter] = row.tensors, bool(row.parts & STEP)
        self._take, self._step, self._norm = module.take_optim, module.step_optim, module.norm_optim
        self._reads = module.reads_optim
        self._watch = module.watch_optim(
            plan.shared(),
            Tensor,
            params,
            rows,
            groups,
            snapshot,
            [s for s in states if s],
            hyper_keys,
            form_keys,
            words,
        )
        if self._watch is None:
            raise TensorMoved

    def take(self, groups: list[dict[str, Any]], states: Any) -> int:
        """One of the answers above."""
        return self._take(self._watch, groups, states)

    def take_hyper(self, groups: list[dict[str, Any]], keys: tuple[str, ...], words: dict[str, float]) -> bool:
        """As Plan's: whether the hyper-parameters were read when the gradients were taken."""
        return self._reads(self._watch)

    def step(self, grads: list[Tensor], hyper: list[float], multiplier: float, seed: int) -> None:
        """Updates everything in place, and counts the tensors' versions up. grads: none, they were taken."""
        self._step(self._watch, hyper, multiplier, seed)

    def grad_norm(self, grads: list[Tensor]) -> float:
        """The norm of all gradients together. grads: none, they were taken."""
        return self._norm(self._watch)


def _nodes() -> ModuleType | None:
    """The compiled nodes; None without them, or where their build is older than the watch."""
    module = native.nodes()
    return module if hasattr(module, "watch_optim") else None


def can_watch(plan: Plan | None) -> bool:
    """Whether there are compiled nodes, and a plan that they can look after."""
    return plan is not None and _nodes() is not None and plan.shared() is not None


def profiled() -> bool:
    """Whether a profiler wants to see calls. Without compiled nodes nobody knows: then yes."""
    module = _nodes()
    return module is None or module.profiled()
