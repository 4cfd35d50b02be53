"""What the native ops must refuse: correct arguments of every op, and wrong values of each by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

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


def over_rows(dims: int, groups: int) -> Arguments:
    return {"dims": dims, "groups": groups, "eps": 1e-5, "rms": False, "unbiased": False}


def rows_forward(dims: int, groups: int, *parameter: int) -> Arguments:
    tensors = {"x": torch.randn(4, 3, 5), "weight": torch.ones(parameter), "bias": torch.zeros(parameter)}
    numbers = dict(zip(("leak", "sub", "maxv", "max_leak"), ACT, strict=True))
    return tensors | {"residual": torch.randn(4, 3, 5)} | over_rows(dims, groups) | {"act": True} | numbers


def rows_backward(dims: int, groups: int, *parameter: int) -> Arguments:
    given = {"dy": torch.randn(4, 3, 5)} | rows_forward(dims, groups, *parameter)
    del given["eps"]
    sets = 12 if dims or groups else 20
    return given | {"mean": torch.zeros(sets), "rstd": torch.ones(sets), "need_dx": True}


OPS |= {
    "layer": ("row_norm_fwd", lambda: rows_forward(1, 0, 5)),
    "group": ("row_norm_fwd", lambda: rows_forward(0, 3, 3)),
    "position": ("row_norm_fwd", lambda: rows_forward(0, 0, 3)),
    "layer_backward": ("row_norm_bwd", lambda: rows_backward(1, 0, 5)),
    "group_backward": ("row_norm_bwd", lambda: rows_backward(0, 3, 3)),
    "position_backward": ("row_norm_bwd", lambda: rows_backward(0, 0, 3)),
}
ROWS = ("layer", "group", "position")
ROWS_BACKWARD = tuple(f"{op}_backward" for op in ROWS)
WRONG_SETS = WRONG_STATISTIC | {
    "half of the right size": lambda: torch.ones(12).half(),
    "double of the right size": lambda: torch.ones(12, dtype=torch.float64),
    "of two dims": lambda: torch.ones(4, 3),
}
WRONG_WEIGHT_OF_ROWS = WRONG_VECTOR | {"of two dims": lambda: torch.ones(3, 5), "turned": lambda: torch.ones(5, 3)}
WRONG_DIMS: dict[str, Callable[[], Any]] = {str(n): lambda n=n: n for n in (-1, -(2**62), 4, 2**31, 2**62)}
WRONG_GROUPS: dict[str, Callable[[], Any]] = {str(n): lambda n=n: n for n in (-1, -3, 2, 4, 2**31, -(2**62), 2**62)}

OPS["stats"] = ("activation_stats_fwd", lambda: {"x": torch.randn(4, 3, 5), "bins": 40, "low": 0.0, "high": 10.0})
WRONG_BINS: dict[str, Callable[[], Any]] = {str(n): lambda n=n: n for n in (0, -1, 256, 2**31, 2**62, -(2**62))}
WRONG_ENDS: dict[str, Callable[[], Any]] = {str(n): lambda n=n: n for n in (math.nan, math.inf, -math.inf)}

WRONG: dict[tuple[str, str], dict[str, Callable[[], Any]]] = {
    **{(op, "x"): WRONG_X | WRONG_RANK for op in ("forward", "evaluation", "backward")},
    **{(op, "x"): WRONG_X for op in ("relu", "relu_backward")},
    **{(op, name): WRONG_VECTOR for op in ("forward", "evaluation") for name in VECTORS},
    **{("backward", name): WRONG_VECTOR for name in ("weight", "bias")},
    **{("backward", name): WRONG_STATISTIC for name in ("mean", "rstd")},
    **{(op, "residual"): WRONG_LIKE_X for op in ("forward", "evaluation", "backward")},
    **{(op, "dy"): WRONG_LIKE_X | {"none": lambda: None} for op in ("backward", "relu_backward")},
    ("forward", "factor"): WRONG_FACTOR,
    ("stats", "x"): WRONG_X,
    ("stats", "bins"): WRONG_BINS,
    ("stats", "low"): WRONG_ENDS | {"high": lambda: 10.0, "above": lambda: 11.0},
    ("stats", "high"): WRONG_ENDS | {"low": lambda: 0.0, "below": lambda: -1.0},
    **{(op, "x"): WRONG_X | {"0-d": WRONG_RANK["0-d"]} for op in ("layer", "layer_backward")},
    **{(op, "x"): WRONG_X | WRONG_RANK for op in ("group", "position", "group_backward", "position_backward")},
    **{(op, name): WRONG_WEIGHT_OF_ROWS for op in (*ROWS, *ROWS_BACKWARD) for name in ("weight", "bias")},
    **{(op, "residual"): WRONG_LIKE_X for op in (*ROWS, *ROWS_BACKWARD)},
    **{(op, "dy"): WRONG_LIKE_X | {"none": lambda: None} for op in ROWS_BACKWARD},
    **{(op, name): WRONG_SETS for op in ROWS_BACKWARD for name in ("mean", "rstd")},
    **{(op, "dims"): WRONG_DIMS for op in (*ROWS, *ROWS_BACKWARD)},
    **{(op, "groups"): WRONG_GROUPS for op in (*ROWS, *ROWS_BACKWARD)},
}
# What the schema allows and the meaning does not.
NONE_WHERE_NEEDED = [("evaluation", "running_mean"), ("evaluation", "running_var")]
