"""Cases that nobody thought of: drawn by hypothesis, judged by the same rule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastnorm.testing import ACTS, DTYPES, NormCase, ReluCase, RowCase
from fastnorm.testing.cases import LAYOUTS, Case, fits
from fastnorm.testing.problems import DATA

from .backends import Backend, each_backend
from .test_optim_oracle import NAMES, follow

FEW, MANY = 25, 600
TINY_DATA = (
    "normal",
    "offset_1e2",
    "offset_1e4",
    "narrow_100",
    "constant",
    "outlier",
    "two_values",
    "tiny",
    "drift",
)
maybe_dtype = st.none() | st.sampled_from(list(DTYPES))


@st.composite
def shapes(draw: st.DrawFn, largest: int, least_rank: int = 2) -> tuple[int, ...]:
    rank = draw(st.integers(least_rank, 5))
    sizes: list[int] = []
    for _ in range(rank):
        room = max(1, largest // math.prod(sizes))
        sizes.append(draw(st.integers(1, room) if room < 6 else st.integers(1, min(room, 70))))
    return tuple(draw(st.permutations(sizes)))


@st.composite
def norm_cases(draw: st.DrawFn, largest: int) -> NormCase:
    shape = draw(shapes(largest).filter(lambda s: math.prod(s) > s[1]))
    layouts = [layout for layout in LAYOUTS if fits(shape, layout)]
    dtype = draw(st.sampled_from(list(DTYPES)))
    act = draw(st.none() | st.sampled_from(list(ACTS)))
    training = draw(st.booleans())
    mode = draw(st.sampled_from(("plain", "unbiased", "lesson"))) if training else "plain"
    return NormCase(
        shape,
        draw(st.sampled_from(layouts)),
        dtype,
        draw(maybe_dtype),
        draw(maybe_dtype),
        draw(maybe_dtype) if training else draw(st.sampled_from(list(DTYPES))),
        act,
        draw(st.none() | st.sampled_from(layouts)),
        training,
        draw(st.sampled_from((0.0, 0.1, 0.5, 1.0))),
        draw(st.sampled_from((1e-5, 1e-3))),
        mode != "plain",
        mode == "lesson",
        draw(st.sampled_from(TINY_DATA if dtype != "fp16" else ("normal", "near_200", "tiny"))),
        draw(st.sampled_from(("same", "cat", "centred", *layouts[:2], *(() if act else ("ones", "per_sample"))))),
        draw(st.sampled_from(("contiguous", "every_second", "offset"))),
        draw(st.integers(0, 2**16)),
    )


@st.composite
def row_cases(draw: st.DrawFn, largest: int) -> RowCase:
    kind = draw(st.sampled_from(("layer", "rms", "group", "instance", "position")))
    shape = draw(shapes(largest, 3 if kind == "instance" else 1 if kind in ("layer", "rms") else 2))
    size = 1
    if kind in ("layer", "rms"):
        size = draw(st.integers(1, len(shape)))
    elif kind == "group":
        size = draw(st.sampled_from([count for count in range(1, shape[1] + 1) if shape[1] % count == 0]))
        assume(math.prod(shape) > size)  # torch refuses one value in all
    elif kind == "instance":
        assume(math.prod(shape[2:]) > 1)
    layouts = [layout for layout in LAYOUTS if fits(shape, layout)]
    dtype = draw(st.sampled_from(list(DTYPES)))
    act = draw(st.none() | st.sampled_from(list(ACTS)))
    values = math.prod(shape[1:]) // size if kind == "group" else 0
    loose = () if act or len(shape) < 2 else ("ones", "per_sample")
    data = [name for name in TINY_DATA if len(shape) > 1 or name != "outlier"]  # which goes into a dim of channels
    return RowCase(
        shape,
        kind,
        size,
        draw(st.sampled_from(layouts)),
        dtype,
        draw(maybe_dtype),
        None if kind == "rms" else draw(maybe_dtype),
        act,
        draw(st.none() | st.sampled_from(layouts)),
        draw(st.sampled_from((1e-5, 1e-3))),
        values > 1 and draw(st.booleans()),
        draw(st.sampled_from(data if dtype != "fp16" else ("normal", "near_200", "tiny"))),
        draw(st.sampled_from(("same", "centred", *layouts[:2], *(("cat",) if len(shape) > 1 else ()), *loose))),
        draw(st.sampled_from(("contiguous", "every_second", "offset"))),
        draw(st.integers(0, 2**16)),
    )


@st.composite
def relu_cases(draw: st.DrawFn, largest: int) -> ReluCase:
    shape = draw(shapes(largest))
    layouts = [layout for layout in LAYOUTS if fits(shape, layout)]
    dtype = draw(st.sampled_from(list(DTYPES)))
    act = draw(st.sampled_from(list(ACTS)))
    data = [name for name in DATA if name.startswith(("normal", "nan", "denormal", "tiny", "zeros"))]
    return ReluCase(
        shape,
        draw(st.sampled_from(layouts)),
        dtype,
        act,
        draw(st.sampled_from(data)),
        draw(st.sampled_from(("same", "cat", *layouts[:2]))),
        draw(st.integers(0, 2**16)),
    )


def explore(backend: Backend, strategy: st.SearchStrategy, examples: int) -> None:
    @settings(max_examples=examples)
    @given(strategy)
    def conforms(case: Case) -> None:
        assume(backend.takes(case))
        backend.conform(case)

    conforms()


def largest(backend: Backend) -> int:
    return 300 if backend.slow else 6000


@pytest.mark.column("batch_norm")
@each_backend()
def test_batch_norm(backend: Backend) -> None:
    explore(backend, norm_cases(largest(backend)), FEW)


@each_backend()
def test_row_norm(backend: Backend) -> None:
    explore(backend, row_cases(largest(backend)), (2 if backend.slow else 4) * FEW)


@each_backend()
def test_general_relu(backend: Backend) -> None:
    explore(backend, relu_cases(largest(backend)), FEW)


@settings(max_examples=40)
@given(data=st.data())
@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_optimizers(name: str, data: st.DataObject) -> None:
    def number(low: float, high: float) -> float:
        return data.draw(st.floats(low, high, allow_subnormal=False))

    kwargs: dict[str, Any] = {"lr": number(0, 2), "weight_decay": number(0, 1)}
    if name == "SGD":
        kwargs |= {"momentum": number(0, 1), "dampening": number(0, 1)}
    else:
        kwargs["eps"] = number(1e-8, 1)
        average = {"betas": (number(0, 0.999), number(0, 0.999))} if "Adam" in name else {"alpha": number(0, 1)}
        kwargs |= average
    follow(name, kwargs, [(9,), (40,)], torch.float32, steps=2)


@pytest.mark.column("batch_norm")
@pytest.mark.slow
@each_backend()
def test_many_batch_norms(backend: Backend) -> None:
    explore(backend, norm_cases(largest(backend) * 3), MANY // (6 if backend.slow else 1))


@pytest.mark.slow
@each_backend()
def test_many_row_norms(backend: Backend) -> None:
    explore(backend, row_cases(largest(backend) * 3), MANY // (6 if backend.slow else 1))


@pytest.mark.slow
@each_backend()
def test_many_general_relus(backend: Backend) -> None:
    explore(backend, relu_cases(largest(backend) * 3), MANY // (6 if backend.slow else 1))
