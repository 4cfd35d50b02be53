"""What the activations of a net look like while it trains."""

from fastnorm.stats.recorder import ActivationStats, LayerStats

__all__ = ["ActivationStats", "LayerStats"]
