"""Drop-in modules."""

from fastnorm.nn.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, LessonBatchNorm
from fastnorm.nn.general_relu import GeneralRelu
from fastnorm.nn.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from fastnorm.nn.row_norm import GroupNorm, LayerNorm, LayerNorm2d, LessonLayerNorm, RMSNorm
from fastnorm.nn.sync_batch_norm import SyncBatchNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GeneralRelu",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LayerNorm2d",
    "LessonBatchNorm",
    "LessonLayerNorm",
    "RMSNorm",
    "SyncBatchNorm",
]
