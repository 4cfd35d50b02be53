"""Whether a converted model does what the original does, and what it gains."""

from fastnorm.verify.api import verify
from fastnorm.verify.result import Allowed, Verification
from fastnorm.verify.rule import Comparison
from fastnorm.verify.speed import Speed

__all__ = ["Allowed", "Comparison", "Speed", "Verification", "verify"]
