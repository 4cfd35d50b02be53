"""RMS norms that models carry along: Llama's and Olmo's forms are known by their forward, others are left."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fastnorm
from tests.unit.convert_models import check_graphs, check_same, copies, spread, tree

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class _Weighted(nn.Module):
    def __init__(self, width: int = 8, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = eps


class LlamaRMSNorm(_Weighted):
    def forward(self, hidden_states: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


class OlmoRMSNorm(nn.Module):
    def __init__(self, width: int = 8, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return (self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps))).type_as(x)


class GemmaRMSNorm(_Weighted):
    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (y * (1.0 + self.weight.float())).type_as(x)


class CentredRMSNorm(_Weighted):
    def forward(self, x: Tensor) -> Tensor:
        y = x.float() - x.float().mean(-1, keepdim=True)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * y.to(x.dtype)


class EpsOutsideRMSNorm(_Weighted):
    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return self.weight * (y / (y.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon)).to(x.dtype)


class SwitchedRMSNorm(LlamaRMSNorm):
    gain = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


class BranchingRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.dtype == torch.float32 else x


class GatedRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return super().forward(x) * gate


@pytest.mark.parametrize("make", [LlamaRMSNorm, OlmoRMSNorm])
def test_known_forms_compute_as_before(make: type[nn.Module]) -> None:
    original = spread(make())
    model = nn.ModuleList([copy.deepcopy(original)])
    before = tree(model)
    report = fastnorm.convert(model)
    assert [record.name for record in report.replaced] == ["0"], report.left
    assert report.replaced[0].to_class == f"fastnorm's {make.__module__}.{make.__name__}"
    assert isinstance(model[0], make)
    assert type(model[0]).__name__ == make.__name__
    check_same(original, model[0], torch.randn(5, 3, 8))
    fastnorm.revert(model)
    assert tree(model) == before


@pytest.mark.parametrize("make", [LlamaRMSNorm, OlmoRMSNorm])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_the_result_has_the_originals_dtype(
    make: type[nn.Module], dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    original = spread(make()).to(weight_dtype)
    converted = copy.deepcopy(original)
    fastnorm.convert(converted)
    x = torch.randn(5, 8).to(dtype)
    assert converted(x).dtype == original(x).dtype


REASONS = [
    (GemmaRMSNorm, "an RMS norm whose forward computes something else than weight * x / rms(x)"),
    (CentredRMSNorm, "an RMS norm whose forward computes something else than weight * x / rms(x)"),
    (EpsOutsideRMSNorm, "an RMS norm whose forward computes something else than weight * x / rms(x)"),
    (SwitchedRMSNorm, "an RMS norm whose forward reads more than its weight and eps"),
    (BranchingRMSNorm, "its forward cannot be traced"),
    (GatedRMSNorm, "an RMS norm that takes more than its input"),
]


@pytest.mark.parametrize(("make", "reason"), REASONS, ids=[make.__name__ for make, _ in REASONS])
def test_other_forms_are_left(make: type[nn.Module], reason: str) -> None:
    model = nn.ModuleList([make(), make()])
    report = fastnorm.convert(model)
    assert report.replaced == ()
    assert [record.name for record in report.left] == ["0", "1"]
    assert all(record.reason.startswith(reason) for record in report.left)


def test_a_class_inside_a_function_is_left() -> None:
    class LocalRMSNorm(LlamaRMSNorm):
        pass

    report = fastnorm.convert(LocalRMSNorm())
    assert [record.reason for record in report.left] == ["its class cannot be imported by name"]


def test_a_module_with_more_inside_is_no_rms_norm() -> None:
    norm = LlamaRMSNorm()
    norm.register_buffer("extra", torch.ones(1))
    assert [record.reason for record in fastnorm.convert(norm).left] == ["no layer that fastnorm knows"]


def test_eps_is_read_when_it_is_used() -> None:
    original = spread(LlamaRMSNorm())
    converted = copy.deepcopy(original)
    fastnorm.convert(converted)
    original.variance_epsilon = converted.variance_epsilon = 0.5
    check_same(original, converted, torch.randn(5, 8))


def test_twins_are_copied_pickled_compiled_and_traced() -> None:
    model = nn.Sequential(nn.Linear(8, 8), spread(LlamaRMSNorm()), nn.ReLU())
    x = torch.randn(5, 8)
    expected = model(x)
    report = fastnorm.convert(model)
    assert [record.name for record in report.fused] == ["1"]
    for twin in copies(model):
        torch.testing.assert_close(twin(x), expected)
    check_graphs(model, x, expected)
