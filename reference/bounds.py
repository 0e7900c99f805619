"""A priori bounds: how far a correct kernel's result may lie from the truth, element by element.

The bounds are deterministic, hold for every order of accumulation, and need nothing but the inputs: an error
beyond them is a bug or an arithmetic that the `Arrangement` does not describe, never bad luck.

u and u_p are the unit roundoffs of fp32 and of the working dtype p; g(n) = n u_acc / (1 - n u_acc) bounds an
n-term sum (Higham 2002, sec. 3.1); "floor" is what one rounding loses among the subnormals; bars are moduli.

**Logits** (`forward_bounds.logit_error`). With a = |scale| |q| . |k|, a computed logit is off by at most

    E = a [(1 + u_p)^pre (1 + g(D)) - 1] + |s| [(1 + u)^ks (1 + u_p)^nS - 1] + O(u) (|m| + |s| + m - s) + ..

for operands and accumulation, roundings of the score, and shifts by the running maximum, whose arguments m'
- m telescope. R exponentials multiply by (1 + eps)^R on top: t = E + R log(1 + eps).

**Output** (`forward_bounds.output_error`). Weights P_j (1 + phi_j) in numerator and denominator alike move
O by sum P_j phi_j (v_j - O) / (1 + sum P_j phi_j), exactly: logit errors act on *centred* values. phi = e^t
- 1 and lo = sum P e^-t <= 1 + sum P phi bound this; sum w |x| <= sqrt(sum w) sqrt(sum w x^2) leaves matrix
products:

    B1 = min( sqrt(sum P phi) sqrt(sum P phi (v - O)^2) / lo ,  max |v - O| )    logits
    B2 = psi min( sum P e^t |v| / lo ,  max |v| ) + floor sum |v| / l^           rounding of P, products P V
    B3 = (6 u + chi) / (1 - chi) (|O| + B1 + B2)                                 row sum, division
    B4 = u_p (|O| + B1 + B2 + B3) + floor                                        rounding of the result

with l^ >= max(1, l lo e^-E) the computed row sum, psi = (1 + u_p) (1 + g(N)) (1 + u)^(R + 6) - 1 and chi =
(1 + g(N)) (1 + u)^(R + 1) - 1. The rounding of P meets *uncentred* values, because l sums the unrounded P;
if it sums the rounded P, chi has a factor 1 + u_p. L moves by at most |log sum P e^(+-t)| - log(1 - chi)
and the fp32 roundings of m + log l.

**Backward** (`backward_bounds`). The error of P = exp(S - L) is eP = P (e^t' - 1), t' = t + the error of L;
a normalised P has the error of a weight of O, at most max(P, 1 - P). That of dP = dO V^T is edP = g(D) |dO|
|V|^T. That of delta is ed = sum |dO| (B + g(D) |O|) if formed from the stored O, sum (eP |dP| + P edP) if
from P. Then

    eS = eP |dP - delta| + (P + eP) (edP + 2 u (..)) + eP ed + rounding of dS, and of P dP where that is stored
    dQ: |scale| [ eS |K| + ed |P K| + g(N) |dS| |K| ]        ed is common to a row: it meets |P K|, not P |K|
    dK: |scale| [ (eS + P ed)^T |Q| + g(M) |dS|^T |Q| ]
    dV: (eP + u_p P)^T |dO| + g(M) P^T |dO|

and each is rounded on its way out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .arrangements import PRECISIONS, Arrangement
from .attention import Forward, Gradients, check_gradients, group
from .backward_bounds import KeySums, backward_errors, key_gradient_errors
from .blocks import Block, blocks, clean
from .forward_bounds import logit_error, output_error
from .masks import Mask
from .setting import Setting, or_inf


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """Largest legitimate |kernel - truth| per element; inf where a legitimate kernel may overflow.

    0 for what no key or query takes part in: there the result must be exact (0, and -inf for lse).
    dq, dk, dv are None when no dO was given.
    """

    out: Tensor
    lse: Tensor
    dq: Tensor | None
    dk: Tensor | None
    dv: Tensor | None


def certify(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor | None,
    mask: Mask,
    scale: float,
    arrangement: Arrangement,
    truth: Forward,
    gradients: Gradients | None,
    dlse: Tensor | None = None,
) -> Bounds:
    """Bounds for a kernel that receives q, k, v, do in their dtype and computes as `arrangement` says.

    truth and gradients are the float64 results on the same tensors, those by dlse [B, H, M] included. Shapes
    as in `attention`. Raises KeyError for a dtype other than fp16, bf16 and fp32, ValueError when the shapes
    do not fit or only one of do and gradients is given.
    """
    check_gradients(do, gradients)
    sums = Certification(q, clean(k), clean(v), scale, arrangement, truth, gradients)
    for b in blocks(q, sums.setting.k, sums.setting.v, do, mask, scale, truth, dlse):
        sums.add(b)
    return sums.result()


class Certification:
    """`certify`, block by block; k and v are clean."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        arrangement: Arrangement,
        truth: Forward,
        gradients: Gradients | None,
    ) -> None:
        self._exact = gradients
        groups, queries = q.shape[1] // k.shape[1], q.shape[2]
        self.setting = Setting(arrangement, PRECISIONS[q.dtype], scale, k, v, groups, queries)
        self._out, self._lse, self._dq = (torch.zeros_like(x) for x in (truth.o, truth.lse, truth.o))
        self._sums = KeySums.zeros(k)

    def add(self, b: Block) -> None:
        """Take a block into account."""
        rows, setting = slice(b.start, b.stop), self.setting
        empty = ~b.visible.any(-1, keepdim=True)
        logit = logit_error(b, setting)
        o_error, lse_error = output_error(b, logit, setting)
        self._out[:, :, rows] = o_error.masked_fill(empty, 0.0)
        self._lse[:, :, rows] = lse_error.masked_fill(empty, 0.0).squeeze(-1)
        self._sums.seen.logical_or_(group(b.visible, setting.k).any(-2))
        if self._exact is not None:
            exact = self._exact.dq[:, :, rows]
            dq_error = backward_errors(b, logit, o_error, lse_error, exact, setting, self._sums)
            self._dq[:, :, rows] = dq_error.masked_fill(empty, 0.0)

    def result(self) -> Bounds:
        """After the last block."""
        if self._exact is None:
            return Bounds(or_inf(self._out), or_inf(self._lse), None, None, None)
        dk, dv = key_gradient_errors(self._sums, self._exact, self.setting)
        return Bounds(*(or_inf(x) for x in (self._out, self._lse, self._dq, dk, dv)))
