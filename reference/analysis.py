"""Bounds, natural scales and predictions of one problem, in one walk over the blocks that they are made of."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .arrangements import PRECISIONS, Arrangement
from .attention import Forward, Gradients, check_gradients
from .blocks import blocks, clean
from .bounds import Bounds, Certification
from .directions import Directions, DirectionSums
from .masks import Mask
from .moments import Keys, Moments
from .predictors import Predicted, VarianceSums
from .scalars import at_once
from .scales import Scales, ScaleSums


class Analysis(NamedTuple):
    """`certify`, `natural_scales`, `predict` for each arrangement, directions of systematic errors, largest |logit|."""

    bounds: Bounds
    scales: Scales
    predicted: tuple[Predicted, ...]
    directions: Directions
    max_logit: float  # of a visible key


def analyse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor | None,
    mask: Mask,
    scale: float,
    truth: Forward,
    gradients: Gradients | None,
    certified: Arrangement,
    predicted: Sequence[Arrangement],
) -> Analysis:
    """What may be known of a kernel's errors without running it; arguments and errors as in `certify`.

    The bounds are for the arrangement `certified`.
    """
    check_gradients(do, gradients)
    p, keys = PRECISIONS[q.dtype], Keys(clean(k), clean(v))
    bounds = Certification(q, keys.k, keys.v, scale, certified, truth, gradients)
    scales = ScaleSums(keys.k, keys.v, scale, truth, gradients=do is not None)
    directions = DirectionSums(keys.k, keys.v, scale, truth, gradients=do is not None)
    variances = [VarianceSums(a, p, scale, keys, truth, gradients) for a in predicted]
    largest = []
    for b in blocks(q, keys.k, keys.v, do, mask, scale, truth):
        bounds.add(b)
        scales.add(b)
        moments = Moments(b, keys, p)
        for sums in variances:
            sums.add(moments)
        directions.add(b, moments)
        largest.append(b.s.abs().max())
    predictions = tuple(s.result() for s in variances)
    return Analysis(bounds.result(), scales.result(), predictions, directions.result(), max([0.0, *at_once(*largest)]))
