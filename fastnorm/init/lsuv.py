"""Layer-wise sequential unit variance: weights are scaled, biases shifted, until each output has mean 0 and std 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastnorm.init.probe import Probe, Reading, layers_of, unchanged_state

PATIENCE = 25  # tries without getting nearer, after which a layer is given up


@dataclasses.dataclass(frozen=True)
class LsuvRow:
    """One layer: what was measured before anything was changed and after all was, and why it is not where it should be.

    Attributes:
        name: the module's name in the model.
        kind: its class.
        before: mean, std, lowest and highest value at first; None where nothing was measured.
        after: the same at the end.
        tries: how often it was adjusted.
        reason: empty where |mean| and |std - 1| came below the tolerance.
    """

    name: str
    kind: str
    before: Reading | None
    after: Reading | None
    tries: int
    reason: str

    @property
    def converged(self) -> bool:
        """Whether there is no reason."""
        return not self.reason


@dataclasses.dataclass(frozen=True)
class LsuvReport:
    """The rows of all layers in the order in which they ran; `str` makes a table of them."""

    rows: Sequence[LsuvRow]

    @property
    def converged(self) -> bool:
        """Whether every layer did."""
        return all(row.converged for row in self.rows)

    def __str__(self) -> str:
        width = max([len(row.name) for row in self.rows] + [5])
        head = f"{'layer':{width}}  {'':15}  {'before: mean':>12} {'std':>9}  {'after: mean':>12} {'std':>9}  tries"
        lines = [head]
        for row in self.rows:
            numbers = "  ".join(
                f"{'-':>12} {'-':>9}" if r is None else f"{r.mean:12.5f} {r.std:9.5f}" for r in (row.before, row.after)
            )
            lines.append(f"{row.name:{width}}  {row.kind:15}  {numbers}  {row.tries:5d}  {row.reason}".rstrip())
        return "\n".join(lines)


def lsuv_(
    model: nn.Module,
    batch: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    modules: Iterable[nn.Module] | type[nn.Module] | tuple[type[nn.Module], ...] | None = None,
    measure: str = "layer",
    tol: float = 1e-3,
    max_iter: int = 50,
) -> LsuvReport:
    """Layer-wise sequential unit variance, in place: weights and biases until each layer gives mean 0 and std 1.

    Layer after layer, in the order in which they run: bias -= mean, then weight and bias /= std, until |mean| <= tol
    and |std - 1| <= tol for this batch. A layer without bias only gets its std. A module that runs several times is
    measured at its first call. The model stays in the mode that it is in; buffers (running statistics), the state of
    random number generators and gradients are left as they were.

    Args:
        model: any module.
        batch: what the model is called with: a tensor, a sequence of arguments or a mapping of named ones.
        modules: the layers (with `weight`, and `bias` or not), or their types; None: all linear and convolutional ones.
        measure: "layer" looks at the layer's own output, where the goal can be reached whatever follows; "activation"
            looks behind the activation module that follows it. There GeneralRelu with a leak and a sub can reach it,
            ReLU and tanh cannot: such a layer keeps the weights that came nearest (of ReLU: with most values at 0).
        tol: how far mean and std may be off.
        max_iter: the most tries a layer.

    Returns:
        A report with one row a layer, for each that did not converge with the reason.

    Raises:
        ValueError: for another measure, a tol or max_iter that is not positive, or where no layer is found.

    Source: Mishkin and Matas 2016, arXiv:1511.06422 (measure="layer", without their orthogonal start); fast.ai's
    lsuv_init (measure="activation").
    """
    if measure not in ("layer", "activation"):
        raise ValueError(f"measure must be 'layer' or 'activation', got {measure!r}")
    if not tol > 0 or max_iter < 1:
        raise ValueError(f"tol and max_iter must be positive, got {tol} and {max_iter}")
    names = {module: name for name, module in model.named_modules()}
    layers = layers_of(model, modules)
    with unchanged_state(model) as rewind, torch.no_grad():
        probe = Probe(model, batch, rewind)
        order, points = probe.order(layers, behind=measure == "activation")
        before = probe.readings(points.values())
        done: dict[int, str] = {}  # the weights taken care of, and by whom
        outcomes = [
            _settle(layer, points.get(layer), probe, tol, max_iter, done, names.get(layer, "")) for layer in order
        ]
        after = probe.readings(points.values())
    rows = []
    for layer, (tries, reason) in zip(order, outcomes, strict=True):
        point = points.get(layer)
        seen = (None, None) if point is None else (before.get(point), after.get(point))
        rows.append(LsuvRow(names.get(layer, ""), type(layer).__name__, *seen, tries, reason))
    rows += [
        LsuvRow(names.get(layer, ""), type(layer).__name__, None, None, 0, "it does not run for this batch")
        for layer in layers
        if layer not in order
    ]
    return LsuvReport(rows)


def _settle(
    layer: nn.Module, point: nn.Module | None, probe: Probe, tol: float, max_iter: int, done: dict[int, str], name: str
) -> tuple[int, str]:
    """Adjusts one layer; how many tries it took, and the reason why it did not converge, or nothing."""
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    if weight is None:
        return 0, "its weight is no parameter of its own (a parametrization?)"
    if weight.data_ptr() in done:
        return 0, f"its weight is also that of {done[weight.data_ptr()]!r}, which came first"
    done[weight.data_ptr()] = name
    if point is None:
        return 0, "no activation module runs behind it before the next layer"
    tensors = [weight] if bias is None else [weight, bias]
    best, kept, since, tries = float("inf"), [t.clone() for t in tensors], 0, 0
    best_seen = seen = probe.reading(point)
    untouched = False
    while seen is not None and seen.finite:
        distance = seen.distance(has_bias=bias is not None)
        since = 0 if distance < best else since + 1
        if distance < best:
            best, best_seen, kept = distance, seen, [t.clone() for t in tensors]
        if best <= tol:
            break
        if tries == max_iter or since == PATIENCE or seen.std == 0:
            break
        if bias is not None:
            bias.sub_(seen.mean)
        for t in tensors:
            t.div_(seen.std)
        tries += 1
        before, seen = seen, probe.reading(point)
        if tries == 1 and seen is not None and seen.near(before, tol / 10):
            untouched = True
            break
    for t, value in zip(tensors, kept, strict=True):
        t.copy_(value)
    if untouched:
        return tries, "what is measured does not follow the layer's scale and shift: a norm stands between them"
    return tries, "" if best <= tol else _reason(best_seen, tries, has_bias=bias is not None)


def _reason(best: Reading | None, tries: int, *, has_bias: bool) -> str:
    """Why a layer is not there, from the best reading."""
    if best is None:
        return "it gives no floating-point tensor"
    if not best.finite:
        return "what it gives is not finite"
    if best.std == 0:
        return "what it gives is constant: no scale makes its std 1"
    missed = f"best |mean| {abs(best.mean):.2g}, |std - 1| {abs(best.std - 1):.2g} in {tries} tries"
    if has_bias and best.low >= 0:
        return f"nothing behind it is below 0, so the mean cannot be 0; {missed}"
    if has_bias and -best.low * best.high <= 1:
        # Of values within [low, high] with mean 0, the variance is at most -low * high (Bhatia and Davis).
        return f"all behind it lies within [{best.low:.3g}, {best.high:.3g}], too narrow for mean 0 and std 1; {missed}"
    return f"it does not settle; {missed}"
