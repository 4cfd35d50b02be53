"""The one table of op schemas: every backend namespace gets exactly these signatures."""

from __future__ import annotations

ACTIVATION = "float? leak, float? sub, float? maxv, float? max_leak"

SCHEMAS: dict[str, str] = {
    "general_relu_fwd": f"(Tensor x, {ACTIVATION}) -> Tensor",
    "general_relu_bwd": f"(Tensor dy, Tensor x, {ACTIVATION}) -> Tensor",
    "batch_norm_fwd": (
        "(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, "
        "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? factor, "
        f"bool training, float momentum, float eps, bool unbiased, bool detach_stats, bool act, {ACTIVATION}) "
        "-> (Tensor y, Tensor mean, Tensor rstd)"
    ),
    "batch_norm_bwd": (
        "(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor mean, Tensor rstd, "
        f"bool batch_stats, bool unbiased, bool need_dx, bool act, {ACTIVATION}) "
        "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dresidual)"
    ),
    "row_norm_fwd": (
        "(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, int dims, int groups, float eps, bool rms, "
        f"bool unbiased, bool act, {ACTIVATION}) -> (Tensor y, Tensor mean, Tensor rstd)"
    ),
    "row_norm_bwd": (
        "(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor mean, Tensor rstd, "
        f"int dims, int groups, bool rms, bool unbiased, bool need_dx, bool act, {ACTIVATION}) "
        "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dresidual)"
    ),
    "activation_stats_fwd": "(Tensor x, int bins, float low, float high) -> (Tensor mean, Tensor std, Tensor hist)",
}
