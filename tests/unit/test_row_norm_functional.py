"""The row family's functions: signatures, one op behind many names, dtypes, layouts, statistics in odd places."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from fastnorm import functional
from fastnorm.functional import group_norm, instance_norm, layer_norm, layer_norm_2d, rms_norm, row

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "group_norm", "instance_norm"])
def test_signatures(name: str) -> None:
    own, reference = (inspect.signature(getattr(m, name)).parameters for m in (functional, F))
    assert list(own)[: len(reference)] == list(reference)
    for parameter in reference.values():
        mine = own[parameter.name]
        assert mine.default == parameter.default and mine.kind == parameter.kind
    assert all(own[more].kind is inspect.Parameter.KEYWORD_ONLY for more in list(own)[len(reference) :])
    assert {"act", "residual", "backend"} <= set(own)


def test_positional_calls_are_torchs(cpu_backend: str) -> None:
    x, w, b, v = torch.randn(4, 6, 5), torch.randn(5), torch.randn(5), torch.randn(6)
    assert_close(layer_norm(x, [5], w, b, 1e-3), F.layer_norm(x, [5], w, b, 1e-3))
    assert_close(rms_norm(x, (5,), w, 1e-3), F.rms_norm(x, (5,), w, 1e-3))
    assert_close(group_norm(x, 3, v, -v, 1e-3), F.group_norm(x, 3, v, -v, 1e-3))
    states = [(torch.zeros(6), torch.ones(6)) for _ in range(2)]
    arguments = (v, -v, True, 0.3, 1e-3)
    assert_close(instance_norm(x, *states[0], *arguments), F.instance_norm(x, *states[1], *arguments))
    assert_close(*states)


def test_one_op_behind_many_names(cpu_backend: str) -> None:
    """The same sets under two names: the same bits."""
    x, v, dy = torch.randn(4, 6, 5, 3, requires_grad=True), torch.randn(6, requires_grad=True), torch.randn(4, 6, 5, 3)
    first, second = instance_norm(x, weight=v), group_norm(x, 6, v)
    assert torch.equal(first, second)
    for a, b in zip(*(torch.autograd.grad(y, (x, v), dy) for y in (first, second)), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(layer_norm(x, torch.Size([5, 3])), layer_norm(x, [5, 3]))
    assert torch.equal(rms_norm(x, (3,), None, None), rms_norm(x, (3,), eps=torch.finfo(torch.float32).eps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_default_eps_of_rms_norm_is_torchs(cpu_backend: str, dtype: torch.dtype) -> None:
    """So small an x that eps is all of the denominator."""
    x = (torch.randn(4, 5) * 1e-4).to(dtype)
    finfo = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    want = x.double() / (x.double().square().mean(1, keepdim=True) + finfo.eps).sqrt()
    assert_close(rms_norm(x, (5,)), want.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
    assert_close(F.rms_norm(x, (5,)), want.to(dtype))


@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_every_mix_of_dtypes(cpu_backend: str, x_dtype: torch.dtype, other: torch.dtype) -> None:
    """B14, and the mixes that torch refuses. What comes back has the dtype of what it belongs to."""
    x, dy = torch.randn(4, 6, 5).to(x_dtype).requires_grad_(), torch.randn(4, 6, 5).to(x_dtype)
    for size, call in (
        (5, lambda w, b: layer_norm(x, (5,), w, b, act=nn.LeakyReLU(0.1))),
        (6, lambda w, b: group_norm(x, 3, w, b, act=nn.LeakyReLU(0.1))),
        (6, lambda w, b: layer_norm_2d(x, w, b, act=nn.LeakyReLU(0.1))),
    ):
        w, b = (torch.rand(size).add(0.5).to(d).requires_grad_() for d in (other, torch.float32))
        y = call(w, b)
        grads = torch.autograd.grad(y, (x, w, b), dy)
        assert [t.dtype for t in (y, *grads)] == [x_dtype, x_dtype, other, torch.float32]
        assert all(bool(t.isfinite().all()) for t in (y, *grads))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_residual_of_another_dtype_gets_its_gradient_back_in_it(cpu_backend: str, dtype: torch.dtype) -> None:
    x, residual = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5, dtype=dtype, requires_grad=True)
    for act in (nn.ReLU(), None):
        y = layer_norm(x, (5,), act=act, residual=residual)
        (grad,) = torch.autograd.grad(y, residual, torch.ones(4, 5))
        assert y.dtype == torch.float32 and grad.dtype == dtype


FUNCTIONS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "layer": (5, lambda x, w, b, **k: layer_norm(x, (5,), w, b, **k)),
    "group": (6, lambda x, w, b, **k: group_norm(x, 3, w, b, **k)),
    "instance": (6, lambda x, w, b, **k: instance_norm(x, weight=w, bias=b, **k)),
    "position": (6, layer_norm_2d),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


@every_function
def test_parameters_inside_larger_tensors(cpu_backend: str, name: str) -> None:
    """M9: strided and at an offset; what lies between is not looked at."""
    size, call = FUNCTIONS[name]
    store = torch.full((2, 2 * size + 2), float("nan"))
    store[:, 1 : 2 * size : 2] = torch.randn(2, size)
    w, b = (store[i, 1 : 2 * size : 2] for i in range(2))
    x, before = torch.randn(4, 6, 5), store.clone()
    assert torch.equal(call(x, w, b), call(x, w.clone(), b.clone()))
    assert_close(store, before, equal_nan=True, rtol=0, atol=0)


@every_function
def test_expanded_parameters(cpu_backend: str, name: str) -> None:
    """A stride of 0 is fine to read, and its gradient sums up."""
    size, call = FUNCTIONS[name]
    x, dy = torch.randn(4, 6, 5), torch.randn(4, 6, 5)
    one = torch.tensor(1.5, requires_grad=True)
    many = torch.full((size,), 1.5, requires_grad=True)
    y, want = call(x, one.expand(size), None), call(x, many, None)
    assert torch.equal(y, want)
    assert_close(torch.autograd.grad(y, one, dy)[0], torch.autograd.grad(want, many, dy)[0].sum())


@every_function
def test_results_do_not_alias_the_input(cpu_backend: str, name: str) -> None:
    _, call = FUNCTIONS[name]
    x = torch.randn(4, 6, 5)
    before = x.clone()
    call(x, None, None).zero_()
    call(x, None, None, residual=x).zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_instance_momentum_as_a_tensor(cpu_backend: str, dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, 5)
    states = [(torch.zeros(6), torch.ones(6)) for _ in range(2)]
    instance_norm(x, *states[0], momentum=torch.tensor(0.25, dtype=dtype))
    instance_norm(x, *states[1], momentum=0.25)
    assert_close(*states)


@pytest.mark.parametrize("act", [None, nn.ReLU()], ids=["linear", "act"])
def test_instance_norm_by_running_statistics_is_batch_norm(cpu_backend: str, act: nn.Module | None) -> None:
    x, mean, var = torch.randn(4, 6, 5, 3), torch.randn(6), torch.rand(6) + 0.5
    y = instance_norm(x, mean, var, use_input_stats=False, act=act, residual=x)
    want = F.instance_norm(x, mean, var, use_input_stats=False) + x
    assert_close(y, want if act is None else act(want))


def test_moved_instance_statistics_tell_autograd(cpu_backend: str) -> None:
    """Who saved the buffers for a backward is told that they changed."""
    mean, var, scale = torch.zeros(6), torch.ones(6), torch.ones(6, requires_grad=True)
    waiting = (scale * mean).sum() + (scale * var).sum()
    instance_norm(torch.randn(4, 6, 5), mean, var)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        waiting.backward()


def test_negative_eps_passes_as_in_torch(cpu_backend: str) -> None:
    x = torch.randn(4, 5)
    assert_close(layer_norm(x, (5,), eps=-0.01), F.layer_norm(x, (5,), eps=-0.01))


def test_who_goes_to_fp32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's CUDA autocast computes layer, group and RMS norm of 16-bit inputs in fp32; its CPU autocast nothing."""
    assert not any(row.autocast_takes_fp32(device, torch.bfloat16) for device in ("cpu", "cuda"))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
    assert [row.autocast_takes_fp32("cuda", dtype) for dtype in DTYPES] == [False, False, True, True]
    assert not any(row.autocast_takes_fp32("cpu", dtype) for dtype in DTYPES)


@pytest.mark.parametrize("dtype", DTYPES)
def test_result_under_cuda_autocast(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Without a GPU on the meta device. Instance norm stays in its input's dtype, as batch norm does."""
    monkeypatch.setattr(row, "autocast_takes_fp32", lambda device, dtype: dtype in (torch.float16, torch.bfloat16))
    x, residual = (torch.empty(4, 6, 5, dtype=dtype, device="meta", requires_grad=True) for _ in range(2))
    wide = torch.promote_types(dtype, torch.float32)
    for call, want in (
        (lambda: layer_norm(x, (5,), residual=residual), wide),
        (lambda: rms_norm(x, (5,), residual=residual), wide),
        (lambda: group_norm(x, 3, residual=residual), wide),
        (lambda: layer_norm_2d(x, residual=residual), wide),
        (lambda: instance_norm(x, residual=residual), dtype),
    ):
        y = call()
        assert y.dtype == want
        assert {grad.dtype for grad in torch.autograd.grad(y, (x, residual), torch.empty_like(y))} == {dtype}
