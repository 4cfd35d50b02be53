"""The one table of cases. Every backend has to pass all of them."""

from __future__ import annotations

from fastnorm.testing.cases import (
    ACTS,
    DTYPES,
    LARGE_SHAPES,
    LAYOUTS,
    PLAIN_LAYOUTS,
    SHAPES,
    NormCase,
    ReluCase,
    fits,
)


def layout_cases() -> list[NormCase]:
    """Every shape in every layout, bare and with everything fused."""
    cases = []
    for shape in (*SHAPES, *LARGE_SHAPES):
        for layout in LAYOUTS:
            if fits(shape, layout) and (shape in SHAPES or layout in LAYOUTS[:8]):
                cases.append(NormCase(shape, layout))
                cases.append(NormCase(shape, layout, act="full", residual="same"))
    return cases


def dtype_cases() -> list[NormCase]:
    """x, weight, bias, and the running statistics each of every dtype, in the two main layouts."""
    cases = []
    for layout in PLAIN_LAYOUTS:
        for dtype in DTYPES:
            base = NormCase((5, 7, 3, 11), layout, dtype, act="full", residual="same")
            for other in DTYPES:
                cases += [base.but(weight=other, bias=other), base.but(weight=other, bias=dtype, stats=other)]
                cases += [base.but(training=False, stats=other)]
            cases += [base.but(shape=(5, 33, 13, 11), weight=dtype, bias=dtype, act=act) for act in (None, "leaky")]
    return list(dict.fromkeys(cases))


def option_cases() -> list[NormCase]:
    """Missing parameters, activations, residuals, modes: combined where the kernels combine them."""
    base = NormCase((5, 7, 3, 11))
    cases = []
    for layout in PLAIN_LAYOUTS:
        for weight, bias in (("fp32", None), (None, "fp32"), (None, None)):
            for act, residual in ((None, None), (None, "same"), ("leaky_sub", None), ("full", "same")):
                for training in (True, False):
                    changes = {
                        "layout": layout,
                        "weight": weight,
                        "bias": bias,
                        "act": act,
                        "residual": residual,
                    }
                    cases.append(base.but(training=training, **changes))
        for act in ACTS:
            cases += [base.but(layout=layout, act=act), base.but(layout=layout, act=act, residual="same")]
            cases.append(base.but(layout=layout, act=act, training=False))
        for residual in ("contiguous", "channels_last", "every_second", "transposed", "offset", "expanded"):
            cases += [base.but(layout=layout, residual=residual, act=act) for act in (None, "full")]
        for mode in (
            {"stats": None},
            {"unbiased": True},
            {"unbiased": True, "detach_stats": True},
            {"training": False, "unbiased": True},
            {"detach_stats": True, "act": "full"},
            {"eps": 0.1},
            {"eps": 1e-12},
        ):
            cases += [
                base.but(layout=layout, **mode),
                base.but(layout=layout, weight=None, bias=None, **mode),
            ]
        for momentum in (0.0, 0.1, 0.9, 1.0):
            cases += [base.but(layout=layout, momentum=momentum, stats=stats) for stats in DTYPES]
        cases.append(base.but(layout=layout, vectors="every_second", act="full"))
        cases.append(base.but(layout=layout, vectors="offset", dtype="bf16", weight="bf16", bias="bf16"))
        cases.append(base.but(layout=layout, vectors="every_second", training=False))
    return list(dict.fromkeys(cases))


def data_cases() -> list[NormCase]:
    """Values at which statistics go wrong: offsets, constants, outliers, extremes of the range."""
    cases = []
    kinds = (
        "offset_1e2", "offset_1e4", "offset_1e6", "narrow_100", "constant", "outlier_first", "outlier",
        "two_values", "tiny", "denormal", "zeros", "minus_zeros", "drift",
        "scale_1e18", "scale_1e19", "scale_1e20",
    )  # fmt: skip
    for shape in ((5, 7, 3, 11), (17, 33, 13, 11), (131, 3), (2, 3, 101, 103)):
        for layout in PLAIN_LAYOUTS:
            if fits(shape, layout):
                for data in kinds:
                    cases += [NormCase(shape, layout, data=data, act=act) for act in (None, "full")]
                cases += [NormCase(shape, layout, data=data, dy="centred") for data in ("offset_1e2", "offset_1e4")]
                cases += [NormCase(shape, layout, "fp64", data=d) for d in ("offset_1e4", "offset_1e6", "constant")]
                cases += [NormCase(shape, layout, "bf16", data=d) for d in ("offset_1e2", "scale_1e18", "constant")]
                cases += [NormCase(shape, layout, "fp16", data=d) for d in ("near_200", "denormal", "constant")]
    return cases


NON_FINITE = ("nan", "inf", "minus_inf", "both_infs", "nan_and_inf")


def non_finite_cases() -> list[NormCase]:
    """One bad value in one channel; the others must not notice."""
    cases = []
    for layout in PLAIN_LAYOUTS:
        for data in NON_FINITE:
            for dtype in ("fp32", "bf16"):
                base = NormCase((5, 7, 3, 11), layout, dtype, data=data)
                cases += [base.but(act=act, training=t) for act in (None, *ACTS) for t in (True, False)]
            cases += [base.but(shape=(5, 33, 13, 11), act="full", residual="same")]
    return cases


def upstream_cases() -> list[NormCase]:
    """Upstream gradients of every layout against inputs of every layout."""
    cases = []
    kinds = (
        "contiguous",
        "channels_last",
        "offset",
        "every_second",
        "transposed",
        "cat",
        "ones",
        "per_sample",
    )
    for layout in ("contiguous", "channels_last", "every_second"):
        for dy in kinds:
            for act, residual in ((None, None), (None, "same"), ("full", None), ("max_leak", "same")):
                cases.append(NormCase((5, 7, 3, 11), layout, act=act, residual=residual, dy=dy))
            cases.append(NormCase((5, 17, 8, 8), layout, "bf16", act="full", dy=dy))
            cases.append(NormCase((5, 7, 3, 11), layout, training=False, act="full", residual="same", dy=dy))
    return cases


def relu_cases() -> list[ReluCase]:
    cases = []
    for shape in (*SHAPES, *LARGE_SHAPES, (), (1,), (7,), (4099,), (3, 1, 0, 2), (40961,)):
        cases += [ReluCase(shape, layout) for layout in LAYOUTS if len(shape) >= 2 and fits(shape, layout)]
        cases += [ReluCase(shape, "contiguous", dtype) for dtype in DTYPES]
    for act in ACTS:
        for dtype in DTYPES:
            cases += [ReluCase((5, 7, 3, 11), layout, dtype, act) for layout in ("contiguous", "every_second")]
            cases += [ReluCase((67,), "contiguous", dtype, act, data) for data in (*NON_FINITE, "denormal", "zeros")]
        cases.append(ReluCase((67,), "contiguous", "fp32", act, "scale_1e20"))
    for dy in ("channels_last", "offset", "every_second", "transposed", "cat", "ones", "per_sample"):
        cases += [ReluCase((5, 7, 3, 11), layout, dy=dy) for layout in LAYOUTS]
        cases += [ReluCase((5, 7, 3, 11), layout, "bf16", "max_leak", dy=dy) for layout in PLAIN_LAYOUTS]
    return list(dict.fromkeys(cases))


def long_cases() -> list[NormCase]:
    """Millions of values in a channel: a single fp32 accumulator is not enough."""
    shapes = (
        (2_000_003, 1),
        (1_000_003, 2),
        (2, 1, 1009, 1013),
        (131_071, 17),
        (7, 2, 521, 523),
        (263, 3, 89, 83),
    )
    cases = []
    for shape in shapes:
        for layout in PLAIN_LAYOUTS:
            if fits(shape, layout):
                cases += [NormCase(shape, layout, data="uniform", act=act) for act in (None, "full")]
                cases += [
                    NormCase(shape, layout, "bf16", data="uniform"),
                    NormCase(shape, layout, data="drift"),
                ]
    return cases
