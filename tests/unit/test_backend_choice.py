"""The backend of a call: argument, then use_backend, then FASTNORM_BACKEND, then preference; explain()."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastnorm
from fastnorm.autograd import route
from fastnorm.functional import batch_norm, general_relu
from fastnorm.ops import OPS
from fastnorm.ops.backend import resolve

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _automatic() -> Iterator[None]:
    with fastnorm.use_backend("auto"):
        yield


class Calls:
    """The ops that were called, as "backend.op", in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        monkeypatch.setattr(route, "CALLS", None)  # they call no op
        for backend, ops in OPS.items():
            for name, op in vars(ops).items():
                monkeypatch.setattr(ops, name, self._recording(f"{backend}.{name}", op))

    def _recording(self, name: str, op: Any) -> Any:
        def recorded(*args: Any) -> Any:
            self.seen.append(name)
            return op(*args)

        return recorded

    def taken(self) -> list[str]:
        seen, self.seen = self.seen, []
        return seen


class Dispatched(TorchDispatchMode):
    """The same, as torch's dispatcher sees them: also those that compiled autograd nodes call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace.startswith("fastnorm_"):
            self.seen.append(f"{func.namespace.removeprefix('fastnorm_')}.{func.__name__.partition('.')[0]}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def norm(x: Tensor, backend: str | None = None) -> Tensor:
    return batch_norm(x, None, None, training=True, backend=backend)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FASTNORM_") and k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_compiled_kernels_come_first(calls: Calls) -> None:
    x = torch.randn(4, 3)
    norm(x), general_relu(x, 0.1)
    assert calls.taken() == ["native.batch_norm_fwd", "native.general_relu_fwd"]


def test_setter_and_context_manager(calls: Calls) -> None:
    x = torch.randn(4, 3)
    fastnorm.use_backend("eager")
    norm(x)
    with fastnorm.use_backend("native"):
        norm(x)
        with fastnorm.use_backend("eager"):
            norm(x)
        norm(x)
    norm(x)
    fastnorm.use_backend("auto")
    norm(x)
    order = ["eager", "native", "eager", "native", "eager", "native"]
    assert calls.taken() == [f"{backend}.batch_norm_fwd" for backend in order]


def test_the_block_ends_with_an_exception_too() -> None:
    with pytest.raises(KeyError), fastnorm.use_backend("eager"):
        raise KeyError
    assert resolve(torch.randn(3)) == "native"


def test_an_argument_wins(calls: Calls) -> None:
    x = torch.randn(4, 3)
    with fastnorm.use_backend("eager"):
        norm(x, "native"), general_relu(x, backend="native")
        norm(x, "auto")
    with fastnorm.use_backend("native"):
        norm(x, "eager")
    order = [
        "native.batch_norm_fwd",
        "native.general_relu_fwd",
        "native.batch_norm_fwd",
        "eager.batch_norm_fwd",
    ]
    assert calls.taken() == order


@pytest.mark.parametrize("first, second", [("eager", "native"), ("native", "eager")])
def test_backward_uses_the_backend_of_its_forward(first: str, second: str) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    with Dispatched() as dispatched:
        with fastnorm.use_backend(first):
            layer = fastnorm.BatchNorm1d(3, act=fastnorm.GeneralRelu(0.1))
            y = general_relu(layer(x), 0.2)
        with fastnorm.use_backend(second):
            y.sum().backward()
    order = ["batch_norm_fwd", "general_relu_fwd", "general_relu_bwd", "batch_norm_bwd"]
    assert dispatched.seen == [f"{first}.{name}" for name in order]


def test_no_backward_op_without_need(calls: Calls) -> None:
    x = torch.randn(4, 3)
    with torch.no_grad():
        fastnorm.BatchNorm1d(3)(x)
    norm(x)
    assert calls.taken() == ["native.batch_norm_fwd"] * 2


@pytest.mark.parametrize("name", ["cuda", "Eager", "", "cpu"])
def test_unknown_names(name: str) -> None:
    expected = "must be one of 'auto', 'eager', 'native', 'triton'; got "
    with pytest.raises(ValueError, match=f"backend {expected}{name!r}"):
        fastnorm.use_backend(name)
    with pytest.raises(ValueError, match=f"backend {expected}{name!r}"):
        norm(torch.randn(4, 3), name)
    with pytest.raises(ValueError, match=expected):
        general_relu(torch.randn(3), backend=name)
    assert resolve(torch.randn(3)) == "native"


def test_a_chosen_backend_that_cannot_serve_says_why() -> None:
    meta = torch.randn(4, 3, device="meta")
    with pytest.raises(RuntimeError, match=r"backend 'native' cannot serve this call: .*CPU, not on meta"):
        norm(meta, "native")
    with fastnorm.use_backend("native"), pytest.raises(RuntimeError, match="cannot serve this call"):
        norm(meta)
    assert norm(meta).is_meta  # the automatic choice falls through


def test_triton_cannot_serve_the_cpu() -> None:
    """In a process of its own: here Triton's interpreter may be on."""
    code = (
        "import torch, fastnorm; print(fastnorm.explain(), fastnorm.available_backends())\n"
        "fastnorm.functional.general_relu(torch.randn(3), backend='triton')"
    )
    result = python(code)
    assert "triton: not: Triton kernels run on CUDA" in result.stdout
    assert result.stdout.strip().endswith("['native', 'eager']")
    assert "RuntimeError: backend 'triton' cannot serve this call: Triton kernels run on CUDA" in result.stderr


def test_available_backends() -> None:
    assert fastnorm.available_backends()[:2] == ["native", "eager"]
    assert fastnorm.available_backends("cpu") == fastnorm.available_backends()
    assert fastnorm.available_backends("meta") == ["eager"]
    assert "native" not in fastnorm.available_backends("cuda")


def test_explain() -> None:
    text = fastnorm.explain()
    assert f"fastnorm {fastnorm.__version__}, torch {torch.__version__}" in text
    assert "native (compiled CPU kernels): loaded" in text
    assert "on cpu, activation_stats, batch_norm, general_relu, row_norm: served by 'native'" in text
    assert "native: can serve" in text and "eager: can serve" in text


SHOW = "import torch, fastnorm; from fastnorm.ops.backend import resolve; print(resolve(torch.randn(3)))"


@pytest.mark.parametrize("name, served", [("eager", "eager"), ("native", "native"), ("auto", "native")])
def test_environment_variable(name: str, served: str) -> None:
    result = python(SHOW, FASTNORM_BACKEND=name)
    assert result.stdout.strip() == served, result.stderr


def test_environment_variable_is_overruled() -> None:
    code = (
        "import torch, fastnorm; from fastnorm.ops.backend import resolve; x = torch.randn(3)\n"
        "with fastnorm.use_backend('native'): print(resolve(x))\n"
        "print(resolve(x, 'native'), resolve(x))\n"
        "fastnorm.use_backend('auto'); print(resolve(x))"
    )
    assert python(code, FASTNORM_BACKEND="eager").stdout.split() == ["native", "native", "eager", "native"]


def test_environment_variable_with_an_unknown_name() -> None:
    result = python(SHOW, FASTNORM_BACKEND="fast")
    assert result.returncode != 0
    assert "FASTNORM_BACKEND must be one of 'auto', 'eager', 'native', 'triton'; got 'fast'" in result.stderr


def test_without_the_extension() -> None:
    """Everything works through eager; the choice of native says what is missing and how to mend it."""
    code = (
        "import torch, fastnorm\n"
        "layer = fastnorm.BatchNorm1d(3)\n"
        "layer(torch.randn(4, 3)).sum().backward()\n"
        "print(fastnorm.available_backends(), fastnorm.explain())\n"
        "fastnorm.use_backend('native')\n"
        "layer(torch.randn(4, 3))"
    )
    result = python(code, FASTNORM_DISABLE_NATIVE="1")
    assert "['eager']" in result.stdout
    assert "served by 'eager'" in result.stdout
    assert "RuntimeError: backend 'native' cannot serve this call" in result.stderr
    assert "FASTNORM_DISABLE_NATIVE=1; unset it" in result.stderr and "FASTNORM_DISABLE_NATIVE=1" in result.stdout


def test_info_command_prints_the_report() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "fastnorm", "info"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "on cpu, activation_stats, batch_norm, general_relu, row_norm: served by" in result.stdout
