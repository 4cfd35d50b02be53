"""PyTorch's own samples for layer, RMS, group and instance norm, judged by the conformance suite's one rule."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_torch_databases import (
    MODULE_INFOS,
    OURS,
    assert_no_worse,
    check_layout,
    check_meta_then_to_empty,
    each_case,
    every_dtype,
    outcome,
    over_modules,
)
from torch import Tensor, nn
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import ModuleInfo
from torch.testing._internal.common_utils import noncontiguous_like

import fastnorm
from fastnorm.testing import RowCase, check
from fastnorm.testing.cases import DTYPES
from fastnorm.testing.composed import arithmetic
from fastnorm.testing.problems import Problem
from fastnorm.testing.row_oracle import row_answers

NAMES = {dtype: name for name, dtype in DTYPES.items()}
ROW_INFOS = [info for info in MODULE_INFOS if "BatchNorm" not in info.module_cls.__name__]
every_row_module = over_modules(ROW_INFOS)
# Only instance norm knows an evaluation.
MODES = [(info, True) for info in ROW_INFOS] + [(info, False) for info in ROW_INFOS if "Instance" in info.name]
every_mode = pytest.mark.parametrize(
    "info, training", MODES, ids=[f"{i.module_cls.__name__}-{'train' if mode else 'eval'}" for i, mode in MODES]
)


def judged(case: RowCase, p: Problem, found: dict[str, Tensor | None]) -> None:
    """y and every gradient by the rule; of an empty tensor there is nothing to judge but its shape."""
    if not p.x.numel():
        assert found["y"].shape == found["dx"].shape == p.x.shape
        return
    _, wanted = row_answers(case, p)
    for name, want in wanted.items():
        check(found[name], want, f"{case.name}: {name}")


def case_of(module: nn.Module, x: Tensor) -> RowCase | None:
    """What a module does to x, if its statistics are x's own."""
    shape, dtype = tuple(x.shape), NAMES[x.dtype]
    if isinstance(module, nn.LayerNorm):
        return RowCase(shape, "layer", len(module.normalized_shape), dtype=dtype, eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        eps = torch.finfo(arithmetic(x.dtype)).eps if module.eps is None else module.eps
        return RowCase(shape, "rms", len(module.normalized_shape), dtype=dtype, eps=eps)
    if isinstance(module, nn.GroupNorm):
        return RowCase(shape, "group", module.num_groups, dtype=dtype, eps=module.eps)
    if module.track_running_stats and not module.training:
        return None
    return RowCase(shape, "instance", dtype=dtype, eps=module.eps)


def batched(module: nn.Module, t: Tensor) -> Tensor:
    """Instance norm takes a single sample too."""
    single = isinstance(module, nn.modules.instancenorm._InstanceNorm) and t.dim() == module._unbatched_rank
    return t[None] if single else t


def compare(theirs: nn.Module, ours: nn.Module, x: Tensor) -> None:
    """Values by the rule; kinds, shapes, buffers and evaluation by running statistics beside torch's own."""
    dy = torch.randn_like(x)
    found = outcome(ours, x, dy)
    exact = outcome(theirs.double(), x.detach().double(), dy.double())
    assert found.keys() == exact.keys()
    buffers = [name for name, _ in ours.named_buffers() if name != "num_batches_tracked"]
    case = case_of(ours, batched(ours, x))
    compared = buffers if case is not None else list(found)
    peer = outcome(theirs.to(arithmetic(x.dtype)), x.detach().to(arithmetic(x.dtype)), dy.to(arithmetic(x.dtype)))
    peer = {name: t if t is None else t.to(found[name].dtype) for name, t in peer.items()}
    assert_no_worse(*({name: results[name] for name in compared} for results in (found, peer, exact)))
    if case is not None:
        results = {"y": batched(ours, found["y"]), "dx": batched(ours, found["dx"])}
        results |= {name: found[name] for name in found if name in ("dweight", "dbias")}
        parameters = (ours.weight, getattr(ours, "bias", None))
        p = Problem(batched(ours, x.detach()), batched(ours, dy), *(t if t is None else t.detach() for t in parameters))
        judged(case, p, results)


@every_mode
@every_dtype
def test_module_samples(cpu_backend: str, info: ModuleInfo, dtype: torch.dtype, training: bool) -> None:
    for theirs, ours, x in each_case(info, dtype, training):
        compare(theirs, ours, x)


@every_mode
def test_float32_parameters_with_half_input(cpu_backend: str, info: ModuleInfo, training: bool) -> None:
    """The mix that autocast makes."""
    for theirs, ours, x in each_case(info, torch.float32, training):
        compare(theirs, ours, x.bfloat16())


@every_mode
def test_noncontiguous(cpu_backend: str, info: ModuleInfo, training: bool) -> None:
    for theirs, ours, x in each_case(info, torch.float32, training):
        x = noncontiguous_like(x) if x.numel() else x
        compare(theirs, ours, x)
        for parameter in ours.parameters():
            parameter.data = noncontiguous_like(parameter.data)
        compare(theirs, ours, x)


@every_mode
@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format(cpu_backend: str, info: ModuleInfo, training: bool, channels_last: bool) -> None:
    for theirs, ours, x in each_case(info, torch.float32, training):
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        single = batched(ours, x) is not x
        if not x.numel() or (channels_last and (single or x.dim() not in formats)):
            continue
        layout = formats[x.dim()] if channels_last else torch.contiguous_format
        check_layout(theirs, ours, x, layout, compare)


@every_row_module
def test_meta_then_to_empty(cpu_backend: str, info: ModuleInfo) -> None:
    check_meta_then_to_empty(info, compare)


Bound = dict[str, Any]


def bound(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Bound:
    signature = inspect.signature(function).bind(*args, **kwargs)
    signature.apply_defaults()
    return signature.arguments


def layer(input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    return fastnorm.functional.layer_norm(input, normalized_shape, weight, bias, eps)


def rms(input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    return fastnorm.functional.rms_norm(input, normalized_shape, weight, eps)


def group(input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    return fastnorm.functional.group_norm(input, num_groups, weight, bias, eps)


def native_group(
    input: Tensor, weight: Any, bias: Any, n: int, c: int, size: int, num_groups: int, eps: float
) -> Tensor:
    return fastnorm.functional.group_norm(input, num_groups, weight, bias, eps)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "nn.functional.layer_norm": layer,
    "native_layer_norm": layer,
    "nn.functional.rms_norm": rms,
    "nn.functional.group_norm": group,
    "native_group_norm": native_group,
    "nn.functional.instance_norm": fastnorm.functional.instance_norm,
}
OP_INFOS = [op for op in op_db if op.name in FUNCTIONS and not op.variant_test_name]
every_function = pytest.mark.parametrize("op", OP_INFOS, ids=[op.name for op in OP_INFOS])


def case_of_call(given: Bound) -> RowCase | None:
    x: Tensor = given["input"]
    eps = torch.finfo(arithmetic(x.dtype)).eps if given["eps"] is None else given["eps"]
    common = {"dtype": NAMES[x.dtype], "eps": eps}
    if "normalized_shape" in given:
        kind = "layer" if "bias" in given else "rms"
        return RowCase(tuple(x.shape), kind, len(given["normalized_shape"]), **common)
    if "num_groups" in given:
        return RowCase(tuple(x.shape), "group", given["num_groups"], **common)
    return RowCase(tuple(x.shape), "instance", **common) if given["use_input_stats"] else None


@every_function
@every_dtype
@pytest.mark.parametrize("strided", [False, True], ids=["dense", "noncontiguous"])
def test_function_samples(cpu_backend: str, op: Any, dtype: torch.dtype, strided: bool) -> None:
    assert dtype in op.supported_dtypes("cpu")
    judged_samples = 0
    for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
        sample = sample.noncontiguous() if strided else sample
        given = bound(FUNCTIONS[op.name], [sample.input, *sample.args], sample.kwargs)
        case = case_of_call(given)
        if case is None:
            continue
        leaves = {name: t for name, t in given.items() if isinstance(t, Tensor) and t.requires_grad}
        y = FUNCTIONS[op.name](**given)
        dy = torch.randn_like(y)
        grads = torch.autograd.grad(y, list(leaves.values()), dy)
        found = {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
        found = {"y": y.detach(), "dx": found.pop("dinput"), **found}
        parameters = (given.get(name) for name in ("weight", "bias"))
        judged(case, Problem(given["input"].detach(), dy, *(t if t is None else t.detach() for t in parameters)), found)
        judged_samples += 1
    assert judged_samples >= 3


def test_instance_norms_running_statistics(cpu_backend: str) -> None:
    """The samples that have buffers move them as torch's function does."""
    (op,) = (op for op in OP_INFOS if "instance" in op.name)
    moved = 0
    for sample in op.sample_inputs("cpu", torch.float32, requires_grad=False):
        buffers = [sample.kwargs.get(name) for name in ("running_mean", "running_var")]
        if buffers[0] is None or not sample.kwargs.get("use_input_stats", True):
            continue
        mine, theirs = ([t.clone() for t in buffers] for _ in range(2))
        rest = {n: v for n, v in sample.kwargs.items() if not n.startswith("running")}
        fastnorm.functional.instance_norm(sample.input, *mine, **rest)
        F.instance_norm(sample.input, *theirs, **rest)
        torch.testing.assert_close(mine, theirs)
        moved += not torch.equal(mine[0], buffers[0])
    assert moved >= 1


@pytest.mark.parametrize("op", [op for op in OP_INFOS if op.error_inputs_func], ids=lambda op: op.name)
def test_function_errors(cpu_backend: str, op: Any) -> None:
    errors = 0
    for error in op.error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            FUNCTIONS[op.name](sample.input, *sample.args, **sample.kwargs)
        errors += 1
    assert errors


def test_the_databases_were_found() -> None:
    assert len(ROW_INFOS) == 6 and len(MODULE_INFOS) == len(OURS)
    assert {op.name for op in OP_INFOS} == set(FUNCTIONS)
