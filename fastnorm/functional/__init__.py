"""The functional interface: torch.nn.functional's arguments in its order, plus keyword-only extras."""

from fastnorm.functional.batch import batch_norm, synchronized_batch_norm
from fastnorm.functional.relu import general_relu
from fastnorm.functional.row import group_norm, instance_norm, layer_norm, layer_norm_2d, rms_norm
from fastnorm.functional.stats import activation_stats

__all__ = [
    "activation_stats",
    "batch_norm",
    "general_relu",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "layer_norm_2d",
    "rms_norm",
    "synchronized_batch_norm",
]
