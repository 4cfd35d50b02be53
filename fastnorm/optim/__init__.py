"""Fused optimizers with torch.optim's interface."""

from fastnorm.optim import functional
from fastnorm.optim.adam import Adam, AdamW
from fastnorm.optim.rmsprop import RMSprop
from fastnorm.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "RMSprop", "functional"]
