"""What attention is: masks, the float64 truth, standard attention, and what rounding error a kernel may make.

Nothing here depends on the rest of the project; it needs torch, and python-flint and mpmath for the certified
truth. Standard attention has the names of the truth, so it is used as a module: `standard.forward(...)`.
"""

from . import standard
from .arrangements import ANY, ANY_FLASH, FLASH, STANDARD, STANDARD_FP32, Arrangement
from .attention import Forward, Gradients, backward, forward
from .bounds import Bounds, certify
from .masks import Alignment, Mask
from .predictors import Predicted, predict
from .scales import Scales, natural_scales

__all__ = [
    "ANY",
    "ANY_FLASH",
    "FLASH",
    "STANDARD",
    "STANDARD_FP32",
    "Alignment",
    "Arrangement",
    "Bounds",
    "Forward",
    "Gradients",
    "Mask",
    "Predicted",
    "Scales",
    "backward",
    "certify",
    "forward",
    "natural_scales",
    "predict",
    "standard",
]
