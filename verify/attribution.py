"""Where a kernel's rounding error arises: one rounding site at a time, all else in float64.

The kernel's own source runs in float64 with the roundings of a single site left on (what leads to an exponential, P,
the accumulators, the output...); the mean squared error that this makes is that site's part of the whole.  Roundings
at different sites are nearly independent, so the parts add up to the error of the kernel as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..kernels.interpreter import KernelError, arithmetics
from ..reference import attention
from ..reports.record import Share
from ..reports.record import Tensor as TensorName
from .case import Case, DType
from .exact import run_in
from .implementation import Implementation
from .inputs import build
from .outputs import RefusedError
from .pool import Pool
from .problems import LostError

WHOLE = "whole"  # the kernel as it is
REST = "sum of the parts"


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one case: how much error each site alone makes, and where it is in the source."""

    squares: dict[tuple[str, str], float]  # (tensor, site): mean squared error
    lines: dict[str, set[str]]  # of the source, by site


def attribution(
    pool: Pool, implementation: Implementation, dtypes: Sequence[DType], seed: int, samples: int
) -> list[Share]:
    """The shares of all sites on the normal regime, for each dtype, measured in the pool's workers.

    Raises:
        LostError: the function hung or killed a worker.
    """
    cases = [sample_case(implementation, dtype, seed + n) for dtype in dtypes for n in range(samples)]
    found: dict[DType, list[Sample | None]] = defaultdict(list)
    for case, answer in pool.calls(sample, cases):
        if isinstance(answer, LostError):
            raise answer
        found[case.dtype].append(answer)
    return [share for dtype, answers in found.items() for share in shares(dtype, answers)]


def sample(implementation: Implementation, device: str, case: Case) -> Sample | None:
    """What one case shows; of what has no other arithmetic, nothing."""
    del device  # the interpreter is the same everywhere
    lines: dict[str, set[str]] = defaultdict(set)
    try:
        return Sample(dict(_squares(implementation, case, lines)), lines)
    except (KernelError, RefusedError):
        return None


def shares(dtype: DType, samples: Sequence[Sample | None]) -> list[Share]:
    """The shares of all sites, largest first, with the whole and the sum of the parts per tensor.

    An empty list for what has no Triton kernel, or does what no other arithmetic can.
    """
    squares: dict[tuple[str, str], list[float]] = defaultdict(list)
    lines: dict[str, set[str]] = defaultdict(set)
    for one in samples:
        if one is None:
            return []
        for key, value in one.squares.items():
            squares[key].append(value)
        for site, places in one.lines.items():
            lines[site] |= places
    return _shares(squares, lines, dtype)


def sample_case(implementation: Implementation, dtype: DType, seed: int) -> Case:
    """Long enough for several tiles, plain enough for every kernel."""
    case = Case(B=1, H=2, HK=1, M=128, N=128, D=64, dtype=dtype, regime="normal", seed=seed,
                backward=implementation.has_backward)  # fmt: skip
    return case if implementation.lacks(case) is None else case.with_(HK=2)


def _squares(
    implementation: Implementation, case: Case, lines: dict[str, set[str]]
) -> Iterable[tuple[tuple[str, str], float]]:
    """((tensor, site), mean squared error) of one case."""
    inputs = build(case)
    fwd = attention.forward(inputs.q, inputs.k, inputs.v, inputs.mask, case.softmax_scale)
    truth = {"out": fwd.o, "lse": fwd.lse}
    if case.backward:
        g = attention.backward(inputs.q, inputs.k, inputs.v, inputs.do, inputs.mask, case.softmax_scale)
        truth |= {"dq": g.dq, "dk": g.dk, "dv": g.dv}
    wanted = {name: x.numpy() for name, x in truth.items()}
    whole, sites = _run(implementation, case, arithmetics.ieee())
    for name, got in whole.items():
        yield (name, WHOLE), _square(got - wanted[name])
    if not sites:
        return
    for s in sites:
        lines[f"{s.kernel}:{s.kind}"].add(s.line)
    clean, _ = _run(implementation, case, arithmetics.float64())
    for site in sorted({f"{s.kernel}:{s.kind}" for s in sites} | {"constants", "torch:host"}):
        alone, _ = _run(implementation, case, arithmetics.only(site))
        for name, value in alone.items():
            yield (name, site), _square(value - clean[name])


def _run(implementation: Implementation, case: Case, arithmetic: Any) -> tuple[dict[str, NDArray[Any]], frozenset[Any]]:
    session, outputs = run_in(arithmetic, implementation, case)
    values = {name: np.asarray(session.values(t), np.float64) for name, t in outputs.tensors().items()}
    return values, session.sites


def _square(x: NDArray[Any]) -> float:
    return float(np.mean(np.square(x[np.isfinite(x)])))


def _shares(squares: dict[tuple[str, str], list[float]], lines: dict[str, set[str]], dtype: str) -> list[Share]:
    mean = {key: float(np.mean(values)) for key, values in squares.items()}
    shares = []
    for tensor in dict.fromkeys(name for name, _ in mean):
        whole = mean[tensor, WHOLE]
        parts = {site: value for (name, site), value in mean.items() if name == tensor and site != WHOLE}
        ordered = sorted(((v, s) for s, v in parts.items() if v > 1e-6 * whole), reverse=True)
        n = len(squares[tensor, WHOLE])
        for value, site in [(whole, WHOLE), (sum(parts.values()), REST), *ordered]:
            part = value / whole if whole else 0.0
            shares.append(Share(dtype=dtype, tensor=cast(TensorName, tensor), site=site, rms=value**0.5, part=part,
                                lines=', '.join(sorted(lines[site])), n=n))  # fmt: skip
    return shares if any(s.site not in (WHOLE, REST) for s in shares) else []
