"""No input crashes the process: wrong arguments straight at the native ops, past every check above.

A child process makes the calls (this file as a script), so that a crash is a failed test; each call is
written to its output before it is made, so that the last line names the culprit.
"""

from __future__ import annotations

import faulthandler
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastnorm

ROOT = Path(__file__).parents[2]
ACT = (0.1, 0.4, 1.0, None)

Arguments = dict[str, Any]


def forward() -> Arguments:
    return {
        "x": torch.randn(4, 3, 5),
        "weight": torch.ones(3),
        "bias": torch.zeros(3),
        "residual": torch.randn(4, 3, 5),
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
        "factor": torch.tensor(0.1),
        "training": True,
        "momentum": 0.1,
        "eps": 1e-5,
        "unbiased": False,
        "detach_stats": False,
        "act": True,
        **dict(zip(("leak", "sub", "maxv", "max_leak"), ACT, strict=True)),
    }


def evaluation() -> Arguments:
    return forward() | {"training": False, "factor": None}


def backward() -> Arguments:
    given = forward()
    kept = ("x", "weight", "bias", "residual", "unbiased", "act", "leak", "sub", "maxv", "max_leak")
    return {
        "dy": torch.randn(4, 3, 5),
        **{name: given[name] for name in kept},
        "mean": torch.zeros(3),
        "rstd": torch.ones(3),
        "batch_stats": True,
        "need_dx": True,
    }


def relu() -> Arguments:
    return {"x": torch.randn(4, 3, 5), **dict(zip(("leak", "sub", "maxv", "max_leak"), ACT, strict=True))}


def relu_backward() -> Arguments:
    return {"dy": torch.randn(4, 3, 5)} | relu()


OPS: dict[str, tuple[str, Callable[[], Arguments]]] = {
    "forward": ("batch_norm_fwd", forward),
    "evaluation": ("batch_norm_fwd", evaluation),
    "backward": ("batch_norm_bwd", backward),
    "relu": ("general_relu_fwd", relu),
    "relu_backward": ("general_relu_bwd", relu_backward),
}

WRONG_X: dict[str, Callable[[], Any]] = {
    "int": lambda: torch.ones(4, 3, 5, dtype=torch.int64),
    "bool": lambda: torch.ones(4, 3, 5, dtype=torch.bool),
    "complex": lambda: torch.ones(4, 3, 5, dtype=torch.complex64),
    "float8": lambda: torch.ones(4, 3, 5).to(torch.float8_e4m3fn),
    "sparse": lambda: torch.ones(4, 3, 5).to_sparse(),
    "none": lambda: None,
    "number": lambda: 1.0,
}
WRONG_RANK: dict[str, Callable[[], Any]] = {"0-d": lambda: torch.randn(()), "1-d": lambda: torch.randn(3)}
WRONG_LIKE_X: dict[str, Callable[[], Any]] = {
    "smaller": lambda: torch.randn(4, 3, 4),
    "larger": lambda: torch.randn(4, 3, 6),
    "fewer channels": lambda: torch.randn(4, 2, 5),
    "lower rank": lambda: torch.randn(4, 3),
    "empty": lambda: torch.randn(0),
    "0-d": lambda: torch.randn(()),
    "int": lambda: torch.ones(4, 3, 5, dtype=torch.int64),
    "double": lambda: torch.randn(4, 3, 5, dtype=torch.float64),
    "half": lambda: torch.randn(4, 3, 5).half(),
    "meta": lambda: torch.empty(4, 3, 5, device="meta"),
    "sparse": lambda: torch.randn(4, 3, 5).to_sparse(),
}
WRONG_VECTOR: dict[str, Callable[[], Any]] = {
    "smaller": lambda: torch.ones(2),
    "larger": lambda: torch.ones(4),
    "empty": lambda: torch.ones(0),
    "0-d": lambda: torch.ones(()),
    "int": lambda: torch.ones(3, dtype=torch.int32),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "meta": lambda: torch.ones(3, device="meta"),
    "sparse": lambda: torch.ones(3).to_sparse(),
    "number": lambda: 1.0,
}
WRONG_STATISTIC = WRONG_VECTOR | {
    "half": lambda: torch.ones(3).half(),
    "double": lambda: torch.ones(3, dtype=torch.float64),
    "none": lambda: None,
}
WRONG_FACTOR: dict[str, Callable[[], Any]] = {
    "two": lambda: torch.ones(2),
    "empty": lambda: torch.ones(0),
    "int": lambda: torch.ones((), dtype=torch.int64),
    "meta": lambda: torch.ones((), device="meta"),
}
VECTORS = ("weight", "bias", "running_mean", "running_var")

WRONG: dict[tuple[str, str], dict[str, Callable[[], Any]]] = {
    **{(op, "x"): WRONG_X | WRONG_RANK for op in ("forward", "evaluation", "backward")},
    **{(op, "x"): WRONG_X for op in ("relu", "relu_backward")},
    **{(op, name): WRONG_VECTOR for op in ("forward", "evaluation") for name in VECTORS},
    **{("backward", name): WRONG_VECTOR for name in ("weight", "bias")},
    **{("backward", name): WRONG_STATISTIC for name in ("mean", "rstd")},
    **{(op, "residual"): WRONG_LIKE_X for op in ("forward", "evaluation", "backward")},
    **{(op, "dy"): WRONG_LIKE_X | {"none": lambda: None} for op in ("backward", "relu_backward")},
    ("forward", "factor"): WRONG_FACTOR,
}
# What the schema allows and the meaning does not.
NONE_WHERE_NEEDED = [("evaluation", "running_mean"), ("evaluation", "running_var")]


def attempt(op: str, changed: Arguments) -> BaseException | None:
    name, arguments = OPS[op]
    try:
        getattr(torch.ops.fastnorm_native, name)(**(arguments() | changed))
    except Exception as error:
        return error
    return None


def every_wrong_argument() -> list[str]:
    """The calls that were accepted; none should be."""
    accepted = []
    cases = [(op, name, kind, make) for (op, name), kinds in WRONG.items() for kind, make in kinds.items()]
    cases += [(op, name, "none", lambda: None) for op, name in NONE_WHERE_NEEDED]
    for op, name, kind, make in cases:
        print(f"{op} {name}={kind}", flush=True)
        if attempt(op, {name: make()}) is None:
            accepted.append(f"{op} {name}={kind}")
    return accepted


def odd_tensor(draw: random.Random) -> Any:
    """Some legal and some illegal values for any argument."""
    floats = [torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]
    dtype = draw.choice([*floats, torch.int8])
    small = [(), (0,), (1,), (0, 3, 5), (4, 0, 5), (4, 3, 0), (4, 3), (1, 3, 1), (4, 3, 5, 1), (2, 3, 5)]
    shape = draw.choice([*small, *[(3,), (4, 3, 5)] * 6])
    base = torch.ones(shape).to(dtype)
    kind = draw.randrange(8)
    if kind == 0:
        return torch.ones(1).to(dtype).expand(shape) if shape else base
    if kind == 1 and base.dim() > 1:
        return base.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == 2:
        return torch.ones(base.numel() * 3 + 7).to(dtype)[1:].as_strided(shape, [3 * s for s in base.stride()])
    if kind == 3:
        return torch.ones(base.numel() + 1).to(dtype)[1:].view(shape)
    if kind == 4 and base.dim() == 3:  # overlapping windows
        return torch.ones(64).to(dtype).as_strided(shape, (1, 1, 1))
    if kind == 5:
        return base.requires_grad_() if base.is_floating_point() else base
    if kind == 6:
        return torch.full_like(base, float("nan")) if base.is_floating_point() else base
    return base


def fuzz(seed: int, count: int) -> None:
    """Random changes of up to three arguments: whatever the answer, there must be one."""
    draw = random.Random(seed)
    odd_numbers = [None, 0.0, -1.0, 1e300, float("nan"), float("inf"), True, 2**62]
    raised = 0
    for _ in range(count):
        op = draw.choice(list(OPS))
        names = draw.sample(list(OPS[op][1]()), draw.randint(1, 3))
        changed: Arguments = {}
        for name in names:
            current = OPS[op][1]()[name]
            as_tensor = isinstance(current, torch.Tensor) and draw.random() < 0.85
            changed[name] = odd_tensor(draw) if as_tensor else draw.choice(odd_numbers)
        described = {
            n: (str(v.dtype), tuple(v.shape), v.stride()) if isinstance(v, torch.Tensor) else v
            for n, v in changed.items()
        }
        print(op, described, flush=True)
        raised += attempt(op, changed) is not None
    assert 0 < raised < count, "the fuzz should reach both accepted and refused calls"


def run_child(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, __file__, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def report(result: subprocess.CompletedProcess[str]) -> str:
    last = result.stdout.splitlines()[-1:]
    return f"exit code {result.returncode}, last call: {last}\n{result.stderr[-3000:]}"


def test_correct_calls_are_accepted() -> None:
    """Otherwise the wrong ones would be refused for another reason."""
    assert "native" in fastnorm.available_backends()
    assert [attempt(op, {}) for op in OPS] == [None] * len(OPS)


def test_every_wrong_argument_raises() -> None:
    result = run_child("wrong")
    assert result.returncode == 0, report(result)


@pytest.mark.parametrize("seed", range(2))
def test_fuzz(seed: int) -> None:
    result = run_child("fuzz", str(seed), "2000")
    assert result.returncode == 0, report(result)


if __name__ == "__main__":
    faulthandler.enable()
    torch.manual_seed(0)
    if sys.argv[1] == "wrong":
        not_refused = every_wrong_argument()
        sys.exit("accepted: " + "; ".join(not_refused) if not_refused else 0)
    fuzz(int(sys.argv[2]), int(sys.argv[3]))
