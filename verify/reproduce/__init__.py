"""What publications say of attention's numerics, measured again: `flashproof reproduce`.

A part is a module with `reproduce(seeds)`, which gives the settings, the claims, their figures and what follows from
these: no outcome is written down.  Whether a figure agrees is decided by `reports.published`, or by a function of the
part that a test feeds with figures for every outcome.  Kernels are not judged here, papers are.

Parts: `golden` (deviation from the baseline, in one pass and, in `training`, in trained weights), `fa3` (outliers and
FP8), `fa4` (polynomials and rescaling that is put off), `bias` (why training in low precision fails), `tiling` (the
order of the sums, and, in `accuracy`, whether accuracy is lost), `predictors` (what this project says itself: that the
roundings of a kernel predict its error).  What they share: `algorithms` (attention with every
result rounded) and `common` (inputs, the bundled kernel, figures).
"""

from collections.abc import Callable

from ...reports.published import Reproduction
from . import bias, fa3, fa4, golden, predictors, tiling

#: by name: from a number of seeds to what was measured
PARTS: dict[str, Callable[[int], Reproduction]] = {
    "golden": golden.reproduce,
    "fa3": fa3.reproduce,
    "fa4": fa4.reproduce,
    "bias": bias.reproduce,
    "tiling": tiling.reproduce,
    "predictors": predictors.reproduce,
}

__all__ = ["PARTS"]
