"""What was promised: the least ratios to eager PyTorch and to torch.compile, as data, and who keeps them.

A shape that has a row of its own (tiny tensors, the forward of three-channel images in channels_last, fresh
pages) is judged in that row and not in the general ones: the first matching row takes a case.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

from benchmarks.cases import FEW_CHANNELS, FRESH_PAGES, IMAGES, TINY
from benchmarks.measure import Row
from benchmarks.ratios import Ratios


@dataclasses.dataclass(frozen=True)
class Target:
    """A row of the table: which cases it judges (None: any) and the ratios they must reach."""

    name: str
    ops: tuple[str, ...] = ()
    direction: str | None = None
    layout: str | None = None
    dtype: str | None = "fp32"
    shape: tuple[int, ...] | None = None
    eager: float | None = None  # at least so many times as fast as eager PyTorch
    aim: float | None = None
    compile: float | None = None  # ... as torch.compile
    floor: float | None = None  # at most so many times the floor's time
    fused: float | None = None  # at least so many times as fast as torch.optim's fused step
    parameters: str = ""  # of an optimizer: its list of parameters
    extra: float | None = None  # at most so many microseconds more than eager
    host: float | None = None  # at most so many microseconds
    launches: int | None = None  # at most so many kernels

    def judges(self, row: Row) -> bool:
        return (
            (not self.ops or row["op"] in self.ops)
            and self.direction in (None, row["direction"])
            and self.layout in (None, row["layout"])
            and self.dtype in (None, row["dtype"])
            and (self.shape is None or list(self.shape) == row["shape"])
            and (not self.parameters or f"/{self.parameters}/" in row["case"])
        )


NORM, ACT, RESIDUAL, RELU = (
    ("batch_norm",),
    ("batch_norm_act",),
    ("batch_norm_residual_act",),
    ("general_relu",),
)
TRAINING = NORM + ACT + RESIDUAL + RELU
MODULES = ("batch_norm_module", "batch_norm_act_module", "general_relu_module")
ROW_MODULES = ("layer_norm_module", "group_norm_act_module")
LAYER, FUSED_LAYER, RMS = ("layer_norm",), ("layer_norm_residual_act",), ("rms_norm",)
STATS = ("activation_stats",)
GROUP, FUSED_GROUP, INSTANCE, POSITION = ("group_norm",), ("group_norm_act",), ("instance_norm",), ("layer_norm_2d",)
NCHW, NHWC = "contiguous", "channels_last"

RMSPROP, RMSPROP_ALL = ("rmsprop",), ("rmsprop_centered_momentum",)
ADAM, MOMENTUM_SGD, CLIPPED = ("adam", "adamw"), ("sgd_momentum",), ("adam_clip",)
OPTIMIZERS = ("sgd", *MOMENTUM_SGD, *RMSPROP, *RMSPROP_ALL, *ADAM)

OPTIM_TARGETS = (
    Target("optimizers, bf16 parameters (no target)", (*OPTIMIZERS, *CLIPPED), dtype="bf16"),
    Target("Adam + unscale + clip", CLIPPED, fused=1.4),
    Target("optimizers, 1000 tensors of 64", OPTIMIZERS, parameters="1000x64", fused=20, aim=40),
    Target("optimizers, 400 groups", OPTIMIZERS, parameters="400groups", eager=10),
    Target("RMSprop, ResNet-18 list", RMSPROP, parameters="resnet18", eager=3, aim=3.2),
    Target("RMSprop, 50 M", RMSPROP, parameters="50m", eager=6, aim=7, floor=1.1),
    Target("RMSprop centered, momentum", RMSPROP_ALL, eager=3),
    Target("Adam, ResNet-18 list", ADAM, parameters="resnet18", eager=7, aim=8, fused=1.1),
    Target("Adam, SGD momentum, 50 M", ADAM + MOMENTUM_SGD, parameters="50m", fused=1.0, floor=1.1),
    Target("optimizers, other lists (no target)", OPTIMIZERS),
)
CPU_TARGETS = (
    *OPTIM_TARGETS,
    Target("tiny tensor, module call, fwd + bwd", MODULES, eager=1.0, aim=1.5, compile=1.5),
    Target("eval mode", ("batch_norm_eval",), eager=1.0, compile=1.0),
    Target("row norms, tiny tensor, module call", ROW_MODULES, eager=1.0),
    Target("bf16 tiny tensor, module call (no target)", MODULES + ROW_MODULES, dtype="bf16"),
    Target("bf16 eval mode (no target)", ("batch_norm_eval",), dtype="bf16"),
    Target("activation statistics", STATS, dtype=None, eager=3, aim=8, compile=2),
    Target("tiny tensor, function alone (no target)", dtype=None, shape=TINY),
    Target("100 MB, fresh pages", TRAINING, shape=FRESH_PAGES, eager=2.5, aim=4),
    Target("C = 3 images NHWC, BN fwd", NORM, "fwd", NHWC, shape=IMAGES, eager=6, aim=15, compile=4),
    Target("BN fwd NCHW", NORM, "fwd", NCHW, eager=6, aim=10, compile=2.2),
    Target("BN fwd NHWC", NORM, "fwd", NHWC, eager=1.8, aim=2.5, compile=3),
    Target("BN bwd NCHW", NORM, "bwd", NCHW, eager=1.6, aim=2, compile=1.4),
    Target("BN bwd NHWC", NORM, "bwd", NHWC, eager=1.2, aim=1.7, compile=1.4),
    Target("BN + GeneralRelu fwd NCHW", ACT, "fwd", NCHW, eager=6, aim=12, compile=2.3),
    Target("BN + GeneralRelu fwd NHWC", ACT, "fwd", NHWC, eager=5, aim=8, compile=2.3),
    Target("BN + GeneralRelu bwd NCHW", ACT, "bwd", NCHW, eager=4, aim=8, compile=2),
    Target("BN + GeneralRelu bwd NHWC", ACT, "bwd", NHWC, eager=3.2, aim=6, compile=2),
    Target("BN + residual + GeneralRelu fwd", RESIDUAL, "fwd", eager=4, aim=6, compile=4),
    Target("BN + residual + GeneralRelu bwd", RESIDUAL, "bwd", eager=1.5, aim=3, compile=4),
    Target("GeneralRelu fwd", RELU, "fwd", eager=4.5, aim=5, compile=10, floor=1.1),
    Target("GeneralRelu bwd", RELU, "bwd", eager=4, aim=8, compile=10, floor=1.1),
    Target("bf16 BN fwd", NORM, "fwd", dtype="bf16", eager=2, aim=4, compile=2),
    Target("bf16 BN bwd", NORM, "bwd", dtype="bf16", eager=1.7, aim=4, compile=2),
    Target("bf16 with GeneralRelu", ACT + RESIDUAL, dtype="bf16", eager=4, aim=6, compile=2),
    Target("bf16 GeneralRelu alone (no target)", RELU, dtype="bf16"),
    Target("LN fwd", LAYER, "fwd", eager=1.8, aim=2.5, compile=2.5),
    Target("LN bwd", LAYER, "bwd", eager=1.6, aim=3, compile=1.6),
    Target("bf16 LN fwd", LAYER, "fwd", dtype="bf16", eager=2, aim=4, compile=2),
    Target("bf16 LN bwd", LAYER, "bwd", dtype="bf16", eager=2.5, aim=6, compile=2),
    Target("LN + residual + GeneralRelu fwd + bwd", FUSED_LAYER, dtype=None, eager=3, aim=5, compile=2),
    Target("GN fwd NCHW", GROUP, "fwd", NCHW, dtype=None, eager=1.4, aim=2, compile=2),
    Target("GN bwd NCHW", GROUP, "bwd", NCHW, dtype=None, eager=1.7, aim=2, compile=2),
    Target("GN fwd NHWC", GROUP, "fwd", NHWC, eager=1.6, aim=2.5, compile=6),
    Target("GN bwd NHWC", GROUP, "bwd", NHWC, eager=2.4, aim=6, compile=6),
    Target("bf16 GN fwd NHWC", GROUP, "fwd", NHWC, dtype="bf16", eager=1.0),
    Target("bf16 GN bwd NHWC", GROUP, "bwd", NHWC, dtype="bf16", eager=18, aim=40, compile=7),
    Target("IN fwd", INSTANCE, "fwd", eager=15, aim=18, compile=5),
    Target("IN bwd", INSTANCE, "bwd", eager=2.6, aim=6, compile=3),
    Target("bf16 IN", INSTANCE, dtype="bf16", eager=1.0),
    Target("GN + GeneralRelu fwd + bwd", FUSED_GROUP, dtype=None, eager=3, aim=6, compile=2),
    Target("RMS norm fwd + bwd", RMS, dtype=None, eager=2, compile=1.0),
    Target("LN over channels (ConvNeXt)", POSITION, dtype=None, eager=1.0),
)

# In bf16 parameters and gradients are narrower, the states are not: torch's are as narrow as the parameters.
OPTIM_CUDA_TARGETS = (
    Target(
        "1000 tensors of 64: one launch, host time", OPTIMIZERS, "call", dtype=None, parameters="1000x64", host=60,
        launches=1,
    ),
    Target("1000 tensors of 64: the step", OPTIMIZERS, "step", dtype=None, parameters="1000x64", eager=20, compile=5),
    Target("Adam 50 M", ADAM, "step", parameters="50m", eager=2.6, compile=1.0, floor=1 / 0.92, fused=1.05),
    Target("RMSprop 50 M", RMSPROP, "step", parameters="50m", eager=2.6, compile=1.0, floor=1 / 0.92),
    Target("SGD momentum 50 M", MOMENTUM_SGD, "step", parameters="50m", eager=1.6, compile=1.0, floor=1 / 0.92),
    Target("optimizers, other lists and bf16 (no target)", (*OPTIMIZERS, *CLIPPED), dtype=None),
)  # fmt: skip

# On a GPU the floor is a device copy of the same bytes: "0.85 of copy" is at most 1 / 0.85 times its time.
# Batch norm in channels_last beyond the L2 cache takes two passes: 12 and 20 bytes an element, not 8 and 12.
CUDA_TARGETS = (
    Target("host time of a module call", MODULES + ROW_MODULES, "call", dtype=None, extra=5.0),
    Target("activation statistics", STATS, dtype=None, eager=2, compile=2),
    Target("tiny tensor (no target)", dtype=None, shape=TINY),
    Target("eval mode (no target)", ("batch_norm_eval",), dtype=None),
    Target("BN few channels", NORM, dtype=None, shape=FEW_CHANNELS, eager=4, compile=1.3, floor=1 / 0.80),
    Target("BN <= 40 MB", NORM, dtype=None, shape=(32, 64, 56, 56), eager=1.5, compile=1.5, floor=1 / 0.80),
    Target("BN NCHW fwd", NORM, "fwd", NCHW, dtype=None, eager=2, compile=1.4, floor=1 / 0.85),
    Target("BN NCHW bwd", NORM, "bwd", NCHW, dtype=None, eager=2, compile=1.4, floor=1 / 0.80),
    Target("BN NHWC fwd", NORM, "fwd", NHWC, dtype=None, eager=1.2, compile=1.1, floor=12 / 8 / 0.90),
    Target("BN NHWC bwd", NORM, "bwd", NHWC, dtype=None, eager=1.2, compile=1.1, floor=20 / 12 / 0.90),
    Target("BN + GeneralRelu (+ residual) fwd", ACT + RESIDUAL, "fwd", dtype=None, eager=3, compile=1.4),
    Target("BN + GeneralRelu (+ residual) bwd", ACT + RESIDUAL, "bwd", dtype=None, eager=2.3, compile=1.4),
    Target("GeneralRelu fwd", RELU, "fwd", dtype=None, eager=2.9, compile=1.0, floor=1 / 0.95),
    Target("GeneralRelu bwd", RELU, "bwd", dtype=None, eager=2.2, compile=1.0, floor=1 / 0.93),
    Target("row norms, tiny tensor (no target)", ROW_MODULES, dtype=None),
    Target("LN fwd", LAYER, "fwd", dtype=None, eager=1.1, compile=1.0, floor=1 / 0.92),
    Target("LN bwd", LAYER, "bwd", dtype=None, eager=1.6, compile=1.2, floor=1 / 0.88),
    Target("LN + residual + GeneralRelu fwd + bwd", FUSED_LAYER, dtype=None, eager=2, compile=1.0),
    Target("RMS norm fwd + bwd", RMS, dtype=None, eager=1.1, compile=1.0),
    Target("GN, IN fwd", GROUP + INSTANCE, "fwd", dtype=None, eager=2.5, compile=1.5, floor=1 / 0.85),
    Target("GN, IN bwd", GROUP + INSTANCE, "bwd", dtype=None, eager=3, compile=1.5, floor=1 / 0.85),
    Target("GN + GeneralRelu fwd + bwd", FUSED_GROUP, dtype=None, eager=2.5, compile=1.5),
    Target("LN over channels (ConvNeXt)", POSITION, dtype=None, eager=1.0),
    *OPTIM_CUDA_TARGETS,
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A target and the ratios its cases reached; `passed` is None where there is no target or no time."""

    target: Target
    cases: int
    eager: tuple[float, ...]
    compile: tuple[float, ...]
    floor: tuple[float, ...]
    failed: int
    uncompared: int
    fused: tuple[float, ...] = ()
    extra: tuple[float, ...] = ()
    host: tuple[float, ...] = ()
    launches: tuple[int, ...] = ()

    @property
    def passed(self) -> bool | None:
        if self.failed:
            return False
        held = [
            reached
            for reached in (
                kept(self.eager, self.target.eager),
                kept(self.compile, self.target.compile),
                kept([1 / x for x in self.floor], self.target.floor and 1 / self.target.floor),
                kept(self.fused, self.target.fused),
                kept_below(self.extra, self.target.extra),
                kept_below(self.host, self.target.host),
                kept_below(self.launches, self.target.launches),
            )
            if reached is not None
        ]
        return all(held) if held else None


def kept(reached: Sequence[float], least: float | None) -> bool | None:
    """Whether the worst case reaches the target; None without a target or without a measurement."""
    return min(reached) >= least if reached and least is not None else None


def kept_below(reached: Sequence[float], most: float | None) -> bool | None:
    """The same for what should be small."""
    return max(reached) <= most if reached and most is not None else None


def judge(ratios: Iterable[Ratios], targets: Sequence[Target]) -> list[Verdict]:
    """One verdict a target that has cases; each case goes to the first target that takes it."""
    taken: dict[Target, list[Ratios]] = {target: [] for target in targets}
    for one in ratios:
        target = next((t for t in targets if t.judges(one.row)), None)
        if target is not None:
            taken[target].append(one)
    return [
        Verdict(
            target=target,
            cases=len(found),
            eager=tuple(one.eager for one in found if one.eager is not None),
            compile=tuple(one.compile for one in found if one.compile is not None),
            floor=tuple(one.floor for one in found if one.floor is not None),
            failed=sum(one.row["status"] in ("FAIL", "ERROR") for one in found),
            uncompared=sum(one.eager is None and one.row["status"] in ("ok", "noisy") for one in found),
            fused=tuple(one.fused for one in found if one.fused is not None),
            extra=tuple(one.extra for one in found if one.extra is not None and target.extra is not None),
            host=tuple(one.own for one in found if one.own is not None and target.host is not None),
            launches=tuple(one.row["launches"] for one in found if "launches" in one.row),
        )
        for target, found in taken.items()
        if found
    ]


def spread(values: Sequence[float]) -> str:
    """`worst / median` of some ratios."""
    return f"{min(values):.2f} / {statistics.median(values):.2f}" if values else "-"
