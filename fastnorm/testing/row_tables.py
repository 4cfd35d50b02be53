"""The table of the row family's cases: layer, RMS, group, instance and positional layer norm."""

from __future__ import annotations

from fastnorm.testing.cases import ACTS, DTYPES, LAYOUTS, PLAIN_LAYOUTS, RowCase, fits


def rms(shape: tuple[int, ...], size: int = 1) -> RowCase:
    return RowCase(shape, "rms", size, bias=None)


# One of each kind, over one shape of odd primes where it can be.
LAYER, IMAGES = RowCase((5, 7, 3, 11), "layer"), RowCase((5, 7, 3, 11), "layer", 3)
RMS, POSITION = rms((5, 7, 3, 11)), RowCase((5, 7, 3, 11), "position")
GROUP, INSTANCE = RowCase((5, 6, 3, 11), "group", 2), RowCase((5, 7, 3, 11), "instance")
KINDS = (LAYER, IMAGES, RMS, GROUP, INSTANCE, POSITION)

FORMS: dict[RowCase, str] = {
    RowCase((37,), "layer"): "rank 1, one set",
    RowCase((5, 13), "layer"): "rank 2",
    RowCase((7, 1), "layer"): "one element in a set",
    RowCase((67, 3), "layer"): "three columns",
    RowCase((3, 2, 64), "layer"): "whole vectors",
    RowCase((5, 7, 3, 11), "layer", 2): "two dims of four",
    RowCase((2, 17, 8, 8), "layer", 3): "images",
    RowCase((2, 3, 5, 7, 3), "layer", 4): "volumes",
    RowCase((3, 5, 29), "layer", 3): "every dim: one set",
    rms((5, 13)): "rank 2",
    rms((7, 1)): "one element in a set",
    rms((5, 7, 3, 11), 3): "three dims",
    RowCase((5, 7, 3, 11), "group", 1): "one group",
    RowCase((5, 6, 3, 11), "group", 6): "as many groups as channels",
    RowCase((5, 6, 3, 11), "group", 3): "odd rows, C / G = 2",
    RowCase((2, 15, 8, 8), "group", 5): "C / G = 3: no power of two",
    RowCase((11, 12), "group", 4): "rank 2: no positions",
    RowCase((3, 6, 29), "group", 2): "rank 3",
    RowCase((2, 6, 2, 3, 5), "group", 3): "rank 5",
    RowCase((7, 20, 1, 1), "group", 5): "one position",
    RowCase((1, 64, 4, 4), "group", 32): "one sample, whole vectors",
    RowCase((3, 34, 2, 2), "group", 2): "groups past a vector of 16",
    RowCase((3, 5, 29), "instance"): "rank 3",
    RowCase((2, 3, 5, 7, 3), "instance"): "rank 5",
    RowCase((4, 1, 7, 5), "instance"): "one channel",
    RowCase((2, 17, 8, 8), "instance"): "a vector and one channel",
    RowCase((11, 13), "position"): "rank 2",
    RowCase((3, 5, 29), "position"): "rank 3",
    RowCase((2, 3, 5, 7, 3), "position"): "rank 5",
    RowCase((4, 1, 7, 5), "position"): "one element in a set",
    RowCase((2, 17, 8, 8), "position"): "a vector and one channel",
}
LARGE_FORMS: dict[RowCase, str] = {
    RowCase((131, 67), "layer"): "many rows",
    RowCase((1021, 2), "layer"): "two columns, many rows",
    RowCase((33, 1031), "layer"): "rows of several blocks",
    RowCase((2, 40_009), "layer"): "few long rows",
    RowCase((17, 33, 13, 11), "layer", 3): "images, odd everything",
    RowCase((5, 64, 28, 28), "layer", 3): "images, whole vectors",
    rms((33, 1031)): "rows of several blocks",
    rms((5, 64, 28, 28), 3): "images",
    RowCase((3, 66, 13, 11), "group", 11): "C / G = 6",
    RowCase((5, 64, 28, 28), "group", 32): "C / G = 2, whole vectors",
    RowCase((2, 6, 101, 103), "group", 2): "large images, few groups",
    RowCase((3, 256, 3, 3), "group", 64): "many groups, few values",
    RowCase((2, 6, 7, 31, 17), "group", 3): "rank 5",
    RowCase((17, 33, 13, 11), "instance"): "more than one block in every direction",
    RowCase((2, 3, 101, 103), "instance"): "large images, few channels",
    RowCase((3, 257, 3, 3), "instance"): "many channels, few values",
    RowCase((17, 33, 13, 11), "position"): "odd everything",
    RowCase((2, 3, 101, 103), "position"): "many positions, three channels",
    RowCase((3, 257, 3, 3), "position"): "many channels, few positions",
}
FUSED = {"act": "full", "residual": "same"}


def layout_cases() -> list[RowCase]:
    """Each kind with everything fused in every layout; every shape in both main layouts and one of the others."""
    cases = [base.but(layout=layout, **FUSED) for base in KINDS for layout in LAYOUTS]
    cases += [base.but(layout=layout) for base in KINDS for layout in (*PLAIN_LAYOUTS, "every_second", "expanded")]
    for index, base in enumerate((*FORMS, *LARGE_FORMS)):
        fitting = [layout for layout in LAYOUTS if fits(base.shape, layout)]
        cases += [base, base.but(layout=fitting[index % len(fitting)], **FUSED)]
        if "channels_last" in fitting:
            last = base.but(layout="channels_last")
            cases += [last, last.but(**FUSED)]
    return list(dict.fromkeys(cases))


def dtype_cases() -> list[RowCase]:
    """x, weight and bias each of every dtype, in the two main layouts by turns."""
    cases = []
    for base in KINDS:
        for i, dtype in enumerate(DTYPES):
            for j, other in enumerate(DTYPES):
                layout = PLAIN_LAYOUTS[(i + j) % 2]
                bias = None if base.rms else (other, dtype)[i % 2]
                cases.append(base.but(layout=layout, dtype=dtype, weight=other, bias=bias, **FUSED))
    for base in LARGE_FORMS:
        if base.shape in ((33, 1031), (3, 66, 13, 11), (17, 33, 13, 11)):
            cases += [base.but(dtype=dtype, act="leaky") for dtype in DTYPES if dtype != "fp32"]
            if fits(base.shape, "channels_last"):
                cases.append(base.but(dtype="bf16", layout="channels_last"))
    return cases


def option_cases() -> list[RowCase]:
    """Missing parameters, activations, residuals, eps and unbiased: combined where the kernels combine them."""
    cases = []
    for base in KINDS:
        for weight in ("fp32", None):
            for bias in (None,) if base.rms else ("fp32", None):
                cases += [base.but(weight=weight, bias=bias, **fused) for fused in ({}, FUSED)]
                cases.append(base.but(weight=weight, bias=bias, layout="channels_last", act="leaky_sub"))
        cases.append(base.but(residual="same"))
        for index, act in enumerate(ACTS):
            if base in (LAYER, GROUP, INSTANCE) or index % 4 == 0:
                layout, residual = PLAIN_LAYOUTS[index % 2], ("same", None)[index // 2 % 2]
                cases.append(base.but(layout=layout, act=act, residual=residual))
        for residual in ("channels_last", "every_second", "expanded"):
            cases.append(base.but(residual=residual, act="full"))
        cases += [base.but(eps=0.1), base.but(eps=1e-12, layout="channels_last")]
        cases.append(base.but(vectors="every_second", act="full"))
        cases.append(base.but(vectors="offset", dtype="bf16", weight="bf16", bias=base.bias and "bf16"))
    cases += [IMAGES.but(vectors="transposed", act=act) for act in (None, "full")]
    for layout in PLAIN_LAYOUTS:
        for groups in (1, 2):  # one group: the lessons' layer norm
            unbiased = GROUP.but(size=groups, layout=layout, unbiased=True)
            cases += [unbiased, unbiased.but(**FUSED), unbiased.but(shape=(5, 64, 28, 28))]
    return list(dict.fromkeys(cases))


DATA = (
    "offset_1e2", "offset_1e4", "offset_1e6", "constant", "outlier_first", "drift", "scale_1e20", "denormal",
    "narrow_100", "outlier", "two_values", "tiny", "zeros", "minus_zeros", "scale_1e18",
)  # fmt: skip


def data_cases() -> list[RowCase]:
    """Values at which statistics go wrong: offsets, constants, outliers, extremes of the range."""
    large = [base for base in LARGE_FORMS if base.shape in ((33, 1031), (2, 6, 101, 103), (17, 33, 13, 11))]
    cases = []
    for base in (*KINDS, *large):
        layouts = [layout for layout in PLAIN_LAYOUTS if fits(base.shape, layout)]
        for index, data in enumerate(DATA if base in KINDS else DATA[:7]):
            layout, act = layouts[index % len(layouts)], (None, "full")[index // 2 % 2]
            cases.append(base.but(layout=layout, data=data, act=act))
        cases += [base.but(layout=layout, data="offset_1e4", dy="centred") for layout in layouts]
    for base in KINDS:
        cases += [base.but(dtype="fp64", data=data) for data in ("offset_1e4", "constant")]
        cases += [base.but(dtype="bf16", data=data) for data in ("offset_1e2", "scale_1e18")]
        cases += [base.but(dtype="fp16", data=data) for data in ("near_200", "denormal")]
    return cases


def non_finite_cases() -> list[RowCase]:
    """Bad values in a few sets; the others must not notice."""
    cases = []
    for base in KINDS:
        for index, data in enumerate(("nan", "inf", "minus_inf", "both_infs", "nan_and_inf")):
            layout = PLAIN_LAYOUTS[index % 2]
            cases += [
                base.but(layout=layout, data=data, act=act) for act in (None, ("relu", "full", "max_leak")[index % 3])
            ]
            cases.append(base.but(layout=layout, data=data, dtype="bf16", **FUSED))
    return cases


UPSTREAM = ("contiguous", "channels_last", "offset", "every_second", "transposed", "cat", "ones", "per_sample")


def upstream_cases() -> list[RowCase]:
    """Upstream gradients of every layout against both main layouts of x, with and without what reads dy twice."""
    cases = []
    for base in KINDS:
        for index, dy in enumerate(UPSTREAM):
            cases.append(base.but(layout=PLAIN_LAYOUTS[index % 2], dy=dy))
            cases.append(base.but(layout=PLAIN_LAYOUTS[1 - index % 2], dy=dy, act="max_leak", residual="same"))
        cases += [base.but(layout="every_second", dy=dy, dtype="bf16", act="full") for dy in ("cat", "ones")]
    return cases


def long_cases() -> list[RowCase]:
    """Hundreds of thousands of values in a set, or of sets that share a weight: one fp32 accumulator is not enough."""
    forms = (
        RowCase((2, 400_009), "layer"),
        RowCase((300_007, 3), "layer"),
        rms((2, 400_009)),
        RowCase((2, 3, 367, 373), "layer", 3),
        RowCase((2, 4, 367, 373), "group", 2),
        RowCase((65_537, 12), "group", 4),
        RowCase((2, 1, 601, 607), "instance"),
        RowCase((3, 5, 211, 223), "position"),
    )
    cases = []
    for base in forms:
        for layout in PLAIN_LAYOUTS:
            if fits(base.shape, layout):
                case = base.but(layout=layout, data="uniform")
                cases += [case, case.but(dtype="bf16", act="full"), case.but(data="drift")]
    return cases
