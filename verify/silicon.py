"""The same kernel on a GPU and interpreted: how far apart, and what only hardware shows (`flashproof silicon`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import Tensor

from ..kernels.interpreter import arithmetics
from ..reference import attention as truth_of
from ..reference.masks import Mask
from ..reports.hardware import ULP_BINS, Bias, Distance, Exact
from .case import UNIT_ROUNDOFF, Case, DType
from .draws import Draws
from .errors import ulps_between
from .evaluate import inputs_for
from .exact import run_in
from .implementation import Implementation, parameters_of
from .inputs import DTYPES, Inputs
from .outputs import RefusedError
from .profiles import PROFILES
from .survey import survey
from .truth import Truth, dtype_of

ARITHMETICS = {"ieee": arithmetics.ieee, "tensor_core": arithmetics.tensor_core}
SAME, OWN = "the same", "its own"  # tiles
INTERPRETED_TILES = (32, 32)


@dataclass(frozen=True, slots=True)
class Apart:
    """One tensor of one case: elements by distance, and the RMS of the difference over the RMS error on the GPU."""

    arithmetic: str
    tiles: str
    tensor: str
    dtype: str
    counts: tuple[int, ...]
    beside_error: float | None


def distances_of(implementation: Implementation, device: str, case: Case) -> list[Apart]:
    """One case on the GPU, in the interpreter's tiles and in its own, and interpreted in each arithmetic."""
    inputs = inputs_for(case, implementation, device)
    try:
        compiled = {OWN: implementation(case, inputs).tensors()}
        if "tiles" in parameters_of(implementation.function):
            tiled = replace(implementation, function=partial(implementation.function, tiles=INTERPRETED_TILES))
            compiled[SAME] = tiled(case, inputs).tensors()
        truth = Truth.of(case, inputs_for(case, implementation, device)).tensors()
        found = []
        for name, arithmetic in ARITHMETICS.items():
            _, outputs = run_in(arithmetic(), implementation, case)
            for tiles, tensors in compiled.items():
                for tensor, x in tensors.items():
                    y = outputs.tensors()[tensor].to(x.device)
                    found.append(_apart(name, tiles, tensor, case, x, y, truth[tensor]))
    except RefusedError:
        return []
    return found


def _apart(arithmetic: str, tiles: str, tensor: str, case: Case, x: Tensor, y: Tensor, truth: Tensor) -> Apart:
    apart = ulps_between(x, y)
    edges = [int((apart <= bound).sum()) for bound in ULP_BINS]
    counts = tuple(b - a for a, b in zip([0, *edges], edges, strict=False))
    difference, error = (_rms(x.double() - other.double()) for other in (y, truth))
    beside = difference / error if error > 0 and math.isfinite(difference) else None
    name = "fp32" if dtype_of(tensor, case) == torch.float32 else case.dtype
    return Apart(arithmetic, tiles, tensor, name, counts, beside)


def _rms(x: Tensor) -> float:
    x = x[torch.isfinite(x)]
    return float(x.square().mean().sqrt()) if x.numel() else 0.0


def summed(found: list[Apart]) -> tuple[Distance, ...]:
    """Over cases, by arithmetic, tiles, tensor and dtype."""
    groups: dict[tuple[str, str, str, str], list[Apart]] = {}
    for a in found:
        groups.setdefault((a.arithmetic, a.tiles, a.tensor, a.dtype), []).append(a)
    distances = []
    for (arithmetic, tiles, tensor, dtype), members in sorted(groups.items()):
        totals = [sum(c) for c in zip(*(m.counts for m in members), strict=True)]
        elements = max(1, sum(totals))
        ratios = [m.beside_error for m in members if m.beside_error is not None]
        distances.append(Distance(
            arithmetic=arithmetic, tiles=tiles, tensor=tensor, dtype=dtype, cases=len(members), elements=elements,
            shares=tuple(t / elements for t in totals), beside_error=median(ratios) if ratios else None,
        ))  # fmt: skip
    return tuple(distances)


# -- what only hardware shows ------------------------------------------------------------------------------------------


def bias_of(implementation: Implementation, device: str, dtype: DType, N: int) -> Bias:
    """Values in [1, 2): what is lost when a tensor core's sums are truncated has a sign.  64 queries of 8 heads."""
    case = Case(B=1, H=8, HK=8, M=64, N=N, D=64, dtype=dtype, regime="normal", seed=N, backward=False)
    draws = Draws(N, "silicon", "bias")
    q, k = (torch.from_numpy(draws.normal(1, case.H, n, case.D)) for n in (case.M, N))
    v = torch.from_numpy(1.0 + draws.uniform(1, case.H, N, case.D))
    inputs = _inputs(case, q, k, v, device)
    out = implementation(case, inputs).out
    truth = truth_of.forward(inputs.q, inputs.k, inputs.v, inputs.mask, case.softmax_scale).o
    relative = ((out.double() - truth) / truth).mean((0, 2, 3))  # [H]
    return Bias(implementation=implementation.name, dtype=dtype, N=N, elements=out.numel(),
                mean=float(relative.mean()), spread=float(relative.std()) / case.H**0.5,
                rounding=UNIT_ROUNDOFF[dtype])  # fmt: skip


def exact_of(implementation: Implementation, device: str, dtype: DType) -> Exact:
    """Logits are integers in base 2, so P is a power of two, and sums of P and of P V are exact in fp32.

    What is left is one correctly rounded division, and the rounding of its result: both are known.
    """
    mismatches = elements = 0
    for seed in range(8):
        case = Case(B=2, H=4, HK=4, M=100, N=130, D=32, dtype=dtype, regime="normal", seed=seed, scale=math.log(2.0),
                    backward=False)  # fmt: skip
        draws = Draws(seed, "silicon", "exact")
        shapes = [(case.B, case.H, n, case.D) for n in (case.M, case.N, case.N)]
        q, k, v = (torch.from_numpy(draws.integers(-1, 2, math.prod(s)).reshape(s)).double() for s in shapes)
        k[..., 4:] = 0  # logits of -4 to 4: what lies below them stays exact
        s = torch.einsum("bhid,bhjd->bhij", q, k)
        p = torch.exp2(s - s.amax(-1, keepdim=True))
        want = (torch.einsum("bhij,bhjd->bhid", p, v) / p.sum(-1, keepdim=True)).float().to(DTYPES[dtype])
        out = implementation(case, _inputs(case, q, k, v, device)).out
        mismatches += int((out.cpu() != want).sum())
        elements += want.numel()
    return Exact(dtype=dtype, elements=elements, mismatches=mismatches)


def _inputs(case: Case, q: Tensor, k: Tensor, v: Tensor, device: str) -> Inputs:
    """The given values in the case's dtype, without a mask."""
    q, k, v = (x.to(DTYPES[case.dtype]) for x in (q, k, v))
    return Inputs(q, k, v, torch.zeros_like(q), Mask()).to(torch.device(device))


def cases_of(implementation: Implementation, seed: int, count: int) -> Iterator[Case]:
    """The survey's cases in the sizes of `ci`."""
    return survey(implementation, PROFILES["ci"], seed, count=count)
