"""The tensors of a case, drawn from its seed: the same on every machine and for every backend."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fastnorm.testing.cases import DTYPES, Case, Named, NormCase, ReluCase, RowCase
from fastnorm.testing.layouts import lay_out, place, to_device
from fastnorm.testing.sets import sets_of


@dataclass(frozen=True)
class Problem:
    """x, residual, dy: the case's shape; weight, bias: its parameters'; the others [C]; None where it has none."""

    x: Tensor
    dy: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: t for name, t in every.items() if t is not None}

    def copy(self, device: str = "cpu") -> Problem:
        """The same tensors in storage of their own, same strides and surroundings."""
        return Problem(**{name: to_device(t, device) for name, t in self.tensors().items()})


class Draw:
    """Random numbers that depend on the case alone."""

    def __init__(self, case: Named) -> None:
        self.generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()) + case.seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator, dtype=torch.float64)


def over_channels(v: Tensor, dims: int) -> Tensor:
    """[C] shaped to broadcast over [N, C, *]."""
    return v.reshape(-1, *([1] * (dims - 2)))


def _normal(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    x = draw.normal(*shape)
    if len(shape) < 2:
        return x
    scale, shift = draw.uniform(0.5, 2.0, shape[1]), draw.normal(shape[1])
    return x * over_channels(scale, len(shape)) + over_channels(shift, len(shape))


def _affine(scale: float, offset: float) -> Callable[[Draw, tuple[int, ...], torch.dtype], Tensor]:
    return lambda draw, shape, dtype: draw.normal(*shape) * scale + offset


def _constant(value: float) -> Callable[[Draw, tuple[int, ...], torch.dtype], Tensor]:
    return lambda draw, shape, dtype: torch.full(shape, value, dtype=torch.float64)


def _uniform(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return draw.uniform(0, 1, *shape)


def _denormal(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return draw.normal(*shape) * (torch.finfo(dtype).tiny / 16)


def _two_values(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.where(draw.normal(*shape) > 0.5, 3.0, 100.1)


def _drift(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Blocks of very different means: what merging partial statistics must not lose."""
    return draw.normal(*shape) + torch.linspace(-1e3, 2e3, math.prod(shape), dtype=torch.float64).reshape(shape)


def _outlier(index: int) -> Callable[[Draw, tuple[int, ...], torch.dtype], Tensor]:
    def build(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        x = draw.normal(*shape)
        columns = x.transpose(0, 1).reshape(shape[1], -1)  # [C, N * S]
        columns[:, index % columns.shape[1]] = 1e4
        return columns.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1)

    return build


def _planted(*values: float) -> Callable[[Draw, tuple[int, ...], torch.dtype], Tensor]:
    """Normal values with these planted in the second channel, if there are channels."""

    def build(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        x = _normal(draw, shape, dtype)
        if len(shape) < 2:
            x[torch.arange(len(values)) * 5 + 3] = torch.tensor(values, dtype=x.dtype)
            return x
        for i, value in enumerate(values):
            x.select(1, 1 % shape[1]).select(0, i % shape[0]).view(-1)[(3 * i + 2) % math.prod(shape[2:])] = value
        return x

    return build


DATA: dict[str, Callable[[Draw, tuple[int, ...], torch.dtype], Tensor]] = {
    "normal": _normal,
    "offset_1e2": _affine(1, 1e2),
    "offset_1e4": _affine(1, 1e4),
    "offset_1e6": _affine(1, 1e6),
    "narrow_100": _affine(0.01, 100),
    "near_200": _affine(10, 200),
    "uniform": _uniform,
    "tiny": _affine(1e-5, 0),
    "scale_1e18": _affine(1e18, 0),
    "scale_1e19": _affine(1e19, 0),
    "scale_1e20": _affine(1e20, 0),
    "constant": _constant(100.1),
    "zeros": _constant(0.0),
    "minus_zeros": _constant(-0.0),
    "denormal": _denormal,
    "two_values": _two_values,
    "drift": _drift,
    "outlier_first": _outlier(0),
    "outlier": _outlier(61),
    "nan": _planted(math.nan),
    "inf": _planted(math.inf),
    "minus_inf": _planted(-math.inf),
    "both_infs": _planted(math.inf, -math.inf),
    "nan_and_inf": _planted(math.nan, math.inf),
}
LOOSE_UPSTREAM = ("ones", "per_sample")  # one element of memory serves many of the tensor


def build(case: Case) -> Problem:
    """The problem of a case. dy is not yet steered around kinks: oracle.prepare does that."""
    draw, dtype = Draw(case), DTYPES[case.dtype]
    x = lay_out(DATA[case.data](draw, case.shape, dtype).to(dtype), case.layout)
    dy = _upstream(draw, case, dtype)
    if isinstance(case, ReluCase):
        return Problem(x, lay_out_upstream(dy, case))

    def vector(values: Tensor, name: str | None) -> Tensor | None:
        return None if name is None else lay_out(values.to(DTYPES[name]), case.vectors)

    parameters = (case.shape[1],) if isinstance(case, NormCase) else case.parameter_shape
    weight = vector(draw.normal(*parameters) * 0.5 + 1, case.weight)
    bias = vector(draw.normal(*parameters) * 0.5 + 0.25, case.bias)
    residual = None
    if case.residual is not None:
        layout = case.layout if case.residual == "same" else case.residual
        residual = lay_out(draw.normal(*case.shape).to(dtype), layout)
    if not isinstance(case, NormCase):
        return Problem(x, lay_out_upstream(dy, case), weight, bias, residual)
    channels = case.shape[1]
    running_mean = vector(draw.normal(channels), case.stats)
    running_var = vector(draw.uniform(0.5, 2, channels), case.stats)
    return Problem(x, lay_out_upstream(dy, case), weight, bias, residual, running_mean, running_var)


def _upstream(draw: Draw, case: Case, dtype: torch.dtype) -> Tensor:
    if case.dy == "ones":
        return torch.ones(case.shape, dtype=dtype)
    if case.dy == "per_sample":
        kept = [size if d < 2 else 1 for d, size in enumerate(case.shape)]
        return draw.normal(*kept).expand(case.shape).to(dtype)
    dy = draw.normal(*case.shape)
    if case.dy == "centred" and not isinstance(case, ReluCase):
        dy = _centred(dy, case)
    return dy.to(dtype)


def _centred(dy: Tensor, case: NormCase | RowCase) -> Tensor:
    """Without a sum over what shares both statistics and weight: a dweight computed without centring x shows."""
    sets = sets_of(case)
    dims = tuple(d for d in sets.shared if d in sets.inside) or sets.shared
    dy = sets.view(dy)
    return (dy - dy.mean(dims, keepdim=True)).reshape(case.shape)


def lay_out_upstream(values: Tensor, case: Case) -> Tensor:
    """dy's values in the memory layout that the case asks of it."""
    shape = values.shape
    if case.dy in ("same", "centred"):
        dense = {"expanded": "contiguous", "expanded_channel": "contiguous"}
        return lay_out(values, dense.get(case.layout, case.layout))
    if case.dy == "ones":
        return place(values, [0] * values.dim())
    if case.dy == "per_sample":
        return place(values, [shape[1], 1, *([0] * (values.dim() - 2))])
    if case.dy == "cat":  # as the gradient of one operand of torch.cat along the channels: a view of the whole
        return lay_out(values, "channel_slice")
    return lay_out(values, case.dy)
