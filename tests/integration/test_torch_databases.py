"""PyTorch's own sample and error inputs of modules (ModuleInfo), replayed against ours and torch's."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.testing._internal.common_modules import ModuleInfo, ModuleInput, module_db
from torch.testing._internal.common_utils import noncontiguous_like

import fastnorm

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NAMES = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LayerNorm", "GroupNorm", "RMSNorm")
NAMES += ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")
OURS = {getattr(nn, name): getattr(fastnorm, name) for name in NAMES}
MODULE_INFOS = [info for info in module_db if info.module_cls in OURS]
BATCH_INFOS = [info for info in MODULE_INFOS if "BatchNorm" in info.module_cls.__name__]
ERROR_INFOS = [info for info in MODULE_INFOS if info.module_error_inputs_func is not None]


def over_modules(infos: list[ModuleInfo]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("info", infos, ids=[info.module_cls.__name__ for info in infos])


every_module = over_modules(MODULE_INFOS)
# The row family's numbers are compared in test_row_databases.py.
every_batch_norm = over_modules(BATCH_INFOS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=[str(d).removeprefix("torch.") for d in DTYPES])
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def module_samples(info: ModuleInfo, dtype: torch.dtype, training: bool) -> list[ModuleInput]:
    samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)
    assert len(samples) >= 6
    return samples


def twins(sample: ModuleInput, info: ModuleInfo, dtype: torch.dtype, training: bool) -> tuple[nn.Module, nn.Module]:
    """torch's layer and ours from the same arguments, with the same random parameters and buffers."""
    args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
    theirs = info.module_cls(*args, **kwargs, dtype=dtype)
    ours = OURS[info.module_cls](*args, **kwargs, dtype=dtype)
    with torch.no_grad():
        for tensor in theirs.parameters():  # module_db leaves them at 1 and 0, which hides them
            tensor.uniform_(0.5, 1.5)
        for name, tensor in theirs.named_buffers():
            if name != "num_batches_tracked":
                tensor.uniform_(0.5, 1.5)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs.train(training), ours.train(training)


def outcome(module: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor | None]:
    """Result, every gradient and every buffer of one forward and backward pass."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    module.zero_grad()
    y = module(x)
    y.backward(dy)
    found: dict[str, Tensor | None] = {"y": y.detach(), "dx": x.grad}
    found.update((f"d{name}", p.grad) for name, p in module.named_parameters())
    found.update((name, buffer.clone()) for name, buffer in module.named_buffers())
    return found


def assert_no_worse(ours: dict[str, Any], theirs: dict[str, Any], exact: dict[str, Any]) -> None:
    """The same entries, dtypes and shapes; as near to the float64 result as torch's own, but for rounding."""
    assert ours.keys() == theirs.keys() == exact.keys()
    for name, reference in theirs.items():
        if reference is None:
            assert ours[name] is None, name
            continue
        ours_value, oracle = ours[name], exact[name]
        assert ours_value.dtype == reference.dtype, name
        assert ours_value.shape == reference.shape, name
        if not reference.numel():
            continue
        allowed = 2 * (reference.double() - oracle).abs().max()
        if reference.dtype.is_floating_point:
            accumulator = torch.float64 if reference.dtype == torch.float64 else torch.float32
            allowed = allowed + torch.finfo(reference.dtype).eps * oracle.abs().max()
            # Samples lie within 10: that is the size at which their sums round.
            allowed = allowed + 8 * torch.finfo(accumulator).eps * (10 + oracle.abs().max())
        error = (ours_value.double() - oracle).abs().max()
        assert error <= allowed, f"{name}: error {error}, allowed {allowed}"


def compare_modules(theirs: nn.Module, ours: nn.Module, x: Tensor) -> None:
    dy = torch.randn_like(x)
    exact = copy.deepcopy(theirs).double()
    assert_no_worse(outcome(ours, x, dy), outcome(theirs, x, dy), outcome(exact, x.detach().double(), dy.double()))


Compare = Callable[[nn.Module, nn.Module, Tensor], None]


def check_layout(theirs: nn.Module, ours: nn.Module, x: Tensor, layout: torch.memory_format, compare: Compare) -> None:
    """Same values over an x in this layout, and y and dx in it too."""
    x = x.to(memory_format=layout).requires_grad_()
    compare(theirs, ours, x)
    y = ours(x)
    assert y.is_contiguous(memory_format=layout)
    (dx,) = torch.autograd.grad(y, x, torch.randn(y.shape))  # a dy in the other layout
    assert dx.is_contiguous(memory_format=layout)


def each_case(info: ModuleInfo, dtype: torch.dtype, training: bool) -> Iterator[tuple[nn.Module, nn.Module, Tensor]]:
    for sample in module_samples(info, dtype, training):
        theirs, ours = twins(sample, info, dtype, training)
        yield theirs, ours, sample.forward_input.args[0].detach()


@every_batch_norm
@every_dtype
@both_modes
def test_module_samples(cpu_backend: str, info: ModuleInfo, dtype: torch.dtype, training: bool) -> None:
    for theirs, ours, x in each_case(info, dtype, training):
        compare_modules(theirs, ours, x)


@every_batch_norm
@both_modes
def test_float32_parameters_with_half_input(cpu_backend: str, info: ModuleInfo, training: bool) -> None:
    """The mix that autocast makes, and the one that torch supports."""
    for theirs, ours, x in each_case(info, torch.float32, training):
        if x.numel():
            compare_modules(theirs, ours, x.bfloat16())


@every_batch_norm
@both_modes
def test_noncontiguous(cpu_backend: str, info: ModuleInfo, training: bool) -> None:
    for theirs, ours, x in each_case(info, torch.float32, training):
        compare_modules(theirs, ours, noncontiguous_like(x) if x.numel() else x)
        # Ours only: torch 2.13's backward over [N, C] reads a strided weight as if it were dense.
        for parameter in ours.parameters():
            parameter.data = noncontiguous_like(parameter.data)
        compare_modules(theirs, ours, x)


@every_batch_norm
@both_modes
@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format(cpu_backend: str, info: ModuleInfo, training: bool, channels_last: bool) -> None:
    for theirs, ours, x in each_case(info, torch.float32, training):
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        if not x.numel() or (channels_last and x.dim() not in formats):
            continue
        layout = formats[x.dim()] if channels_last else torch.contiguous_format
        check_layout(theirs, ours, x, layout, compare_modules)


@every_module
@both_modes
def test_gradcheck(cpu_backend: str, info: ModuleInfo, training: bool) -> None:
    for _, ours, x in each_case(info, torch.float64, training):
        if not x.numel():
            continue
        names = [name for name, _ in ours.named_parameters()]
        small = x[:, :2] if x.shape[1] == getattr(ours, "num_features", None) == 2 else x
        frozen = copy.deepcopy(ours)

        def call(x: Tensor, *parameters: Tensor) -> Tensor:
            module = copy.deepcopy(frozen)  # noqa: B023 - gradcheck is over before the loop moves on
            return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))  # noqa: B023

        inputs = [
            small.clone().requires_grad_(),
            *(p.detach().clone().requires_grad_() for p in ours.parameters()),
        ]
        assert torch.autograd.gradcheck(call, inputs, fast_mode=True, check_forward_ad=True, check_batched_grad=False)
        assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@every_module
def test_repr_and_constructor_order(info: ModuleInfo) -> None:
    for sample in module_samples(info, torch.float32, True):
        theirs, ours = twins(sample, info, torch.float32, True)
        assert repr(ours) == repr(theirs)
        assert isinstance(ours, info.module_cls)
        assert list(ours.state_dict()) == list(theirs.state_dict())


@over_modules(ERROR_INFOS)
def test_errors(cpu_backend: str, info: ModuleInfo) -> None:
    errors = info.module_error_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=True)
    assert errors
    for error in errors:
        inputs = error.module_error_input
        with pytest.raises(error.error_type, match=error.error_regex):
            module = OURS[info.module_cls](*inputs.constructor_input.args, **inputs.constructor_input.kwargs)
            module(*inputs.forward_input.args)


@every_module
def test_pickle_and_save(cpu_backend: str, info: ModuleInfo) -> None:
    for _, ours, x in each_case(info, torch.float32, False):
        expected = ours(x)
        assert_close(pickle.loads(pickle.dumps(ours))(x), expected, rtol=0, atol=0)
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        assert_close(torch.load(file, weights_only=False)(x), expected, rtol=0, atol=0)


@every_module
@every_dtype
def test_factory_arguments(info: ModuleInfo, dtype: torch.dtype) -> None:
    for sample in module_samples(info, dtype, True):
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        for device in ("cpu", "meta"):
            ours = OURS[info.module_cls](*args, **kwargs, device=device, dtype=dtype)
            theirs = info.module_cls(*args, **kwargs, device=device, dtype=dtype)
            for name, value in theirs.state_dict(keep_vars=True).items():
                own = ours.state_dict(keep_vars=True)[name]
                assert (own.dtype, own.device, own.shape) == (value.dtype, value.device, value.shape), name
        with torch.device("meta"):
            built = OURS[info.module_cls](*args, **kwargs)
        assert all(t.is_meta for t in built.state_dict().values())


def check_meta_then_to_empty(info: ModuleInfo, compare: Compare) -> None:
    for sample in module_samples(info, torch.float32, True):
        theirs, _ = twins(sample, info, torch.float32, True)
        x = sample.forward_input.args[0].detach()
        built = OURS[info.module_cls](*sample.constructor_input.args, **sample.constructor_input.kwargs, device="meta")
        with fastnorm.use_backend("auto"):  # the kernels do not run there
            y = built(x.to("meta"))
        assert y.is_meta and y.shape == x.shape
        built = built.to_empty(device="cpu")
        built.load_state_dict(theirs.state_dict())
        compare(theirs, built, x)


@every_batch_norm
def test_meta_then_to_empty(cpu_backend: str, info: ModuleInfo) -> None:
    check_meta_then_to_empty(info, compare_modules)


@every_module
def test_train_and_eval_differ(cpu_backend: str, info: ModuleInfo) -> None:
    for _, ours, x in each_case(info, torch.float32, True):
        if not x.numel():
            continue
        trained = ours(x)
        tracked = getattr(ours, "running_mean", None) is not None
        if tracked:
            ours.running_mean.fill_(3.0)
        assert torch.equal(trained, ours.eval()(x)) is not tracked


def test_the_database_was_found() -> None:
    assert len(MODULE_INFOS) == len(OURS)
