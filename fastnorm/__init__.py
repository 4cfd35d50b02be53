"""fastnorm: fused normalization layers, activations and optimizers that drop into PyTorch models."""

from fastnorm import functional, init, nn, optim
from fastnorm._version import __version__
from fastnorm.autograd.recompute import recompute
from fastnorm.convert import ConversionReport, convert, patched, revert
from fastnorm.inputs import Normalize
from fastnorm.lr_finder import LrCurve, lr_find
from fastnorm.nn import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GeneralRelu,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    LayerNorm2d,
    LessonBatchNorm,
    LessonLayerNorm,
    RMSNorm,
    SyncBatchNorm,
)
from fastnorm.ops.backend import available_backends, use_backend
from fastnorm.report import explain
from fastnorm.stats import ActivationStats
from fastnorm.verify import Allowed, Verification, verify

__all__ = [
    "ActivationStats",
    "Allowed",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "ConversionReport",
    "GeneralRelu",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LayerNorm2d",
    "LessonBatchNorm",
    "LessonLayerNorm",
    "LrCurve",
    "Normalize",
    "RMSNorm",
    "SyncBatchNorm",
    "Verification",
    "__version__",
    "available_backends",
    "convert",
    "explain",
    "functional",
    "init",
    "lr_find",
    "nn",
    "optim",
    "patched",
    "recompute",
    "revert",
    "use_backend",
    "verify",
]
