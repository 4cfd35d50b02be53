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
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_arguments import NONE_WHERE_NEEDED, OPS, WRONG, Arguments

import fastnorm

ROOT = Path(__file__).parents[2]


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
