"""High-precision truth: ball arithmetic beside loops over mpmath numbers, at equal digits: `nox -s bench -- truth`.

Both compute o, lse, dq, dk and dv of the same case, alternately, and the ratio is of their medians.  The digits in
which they agree are counted on every element: a fast answer to another question would not count.
"""

from __future__ import annotations

import argparse
import statistics
import time

import mpmath
from flashproof.reference.certified import Balls, balls
from flashproof.reference.second_opinion import Opinion, second_opinion
from flashproof.verify.case import Case, MaskRecipe
from flashproof.verify.inputs import build
from flint import arb, ctx

_GUARD = 10  # decimal digits that sums over 64 terms may lose


def digits_in_common(ours: Balls, theirs: Opinion, digits: int) -> float:
    """The fewest decimal digits, relative to the tensor's largest element, that any element has in common."""
    worst = mpmath.mpf(0)
    with mpmath.workdps(digits + 10), ctx.workdps(digits + 10):
        for name in ("o", "lse", "dq", "dk", "dv"):
            ball, number = getattr(ours, name), [x for x in getattr(theirs, name).flat if mpmath.isfinite(x)]
            finite = [x for x in ball if x.is_finite()]
            assert len(finite) == len(number)
            largest = max(abs(x) for x in number)
            for a, b in zip(finite, number, strict=True):
                apart = abs(a - arb(mpmath.nstr(b, digits + 10))).upper()
                worst = max(worst, mpmath.mpf(apart.str(8, radius=False)) / largest)
        return float(-mpmath.log10(worst)) if worst else float("inf")


def main() -> None:
    """Time, compare, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bits", type=int, default=192)
    options = parser.parse_args()
    digits = int(options.bits * 0.30103)
    print("| N | D | mask | mpmath loops | balls | ratio | digits in common |\n|---|---|---|---|---|---|---|")
    for mask in (MaskRecipe(), MaskRecipe(causal=True)):
        case = Case(B=1, H=1, HK=1, M=64, N=64, D=64, dtype="bf16", regime="normal", seed=0, mask=mask)
        x = build(case)
        arguments = (x.q, x.k, x.v, x.do, x.mask, case.softmax_scale)
        slow, fast = [], []
        for _ in range(options.rounds):
            start = time.perf_counter()
            theirs = second_opinion(*arguments, digits=digits)
            middle = time.perf_counter()
            ours = balls(*arguments, bits=options.bits)
            slow.append(middle - start)
            fast.append(time.perf_counter() - middle)
        a, b = statistics.median(slow), statistics.median(fast)
        common = digits_in_common(ours, theirs, digits)
        assert common > digits - _GUARD, f"they agree to {common:.1f} digits only"
        print(f"| 64 | 64 | {mask} | {a:.2f} s | {b:.3f} s | **{a / b:.0f}** | {common:.0f} of {digits} |")
    print(f"\nmpmath {mpmath.__version__} with its {mpmath.libmp.BACKEND} backend, medians of {options.rounds} rounds")


if __name__ == "__main__":
    main()
