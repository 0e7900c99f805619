"""Would a project's own test have accepted a kernel?  Runs it on that project's problems and applies its rule."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ...reference.masks import Mask
from ..draws import Draws
from ..guards import known_memory
from ..implementation import Implementation
from ..inputs import DTYPES, arranged, rounded
from ..outputs import Outputs, describe
from .arithmetic import attend, gradients_from
from .peer import Peer, Problem


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a project would have accepted the kernel, and what decided it."""

    accepted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class _Known:
    """What does not depend on the kernel: its inputs, and the results that it is compared with."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor
    mask: Mask
    golden: dict[str, Tensor]
    low: dict[str, Tensor]


def accepts(peer: Peer, implementation: Implementation, seed: int = 0) -> Decision:
    """Run `implementation` on the peer's problems; the first tensor that its rule rejects decides.

    A kernel that raises is rejected.  A problem that its signature does not offer is skipped, gradients that it lacks
    likewise; one that takes none of the problems is not accepted.
    """
    compared: set[str] = set()
    for index, problem in enumerate(peer.shapes):
        reduced = _within(problem, implementation)
        if reduced is None:
            continue
        known = _known(peer, index, seed)
        try:
            outputs = _run(peer, reduced, known, implementation, seed)
        except Exception as e:  # noqa: BLE001  (whatever a kernel does is a result)
            return Decision(False, f"raised {describe(e)} ({problem})")
        expected = known.golden
        if peer.from_output and reduced.backward:
            scale = problem.case(seed).softmax_scale
            own = gradients_from(outputs.out, known.q, known.k, known.v, known.do, known.mask, scale)
            expected = expected | own
        for name, value in outputs.tensors().items():
            rule = peer.criterion.get(name)
            if rule is None:
                continue
            compared.add(name)
            golden, low = expected[name], known.low[name]
            if not rule(problem, golden, low, value):
                error = float((golden.double() - value.double()).abs().max())
                return Decision(False, f"{name} is off by up to {error:.3g} ({problem})")
    if not compared:
        return Decision(False, "it takes none of the problems")
    return Decision(True, f"{', '.join(n for n in peer.criterion if n in compared)} within the rule")


def _within(problem: Problem, implementation: Implementation) -> Problem | None:
    """The problem as far as the implementation's signature takes it."""
    for candidate in (problem, replace(problem, backward=False)):
        if implementation.lacks(candidate.case(0)) is None:
            return candidate
    return None


def _run(peer: Peer, problem: Problem, known: _Known, implementation: Implementation, seed: int) -> Outputs:
    case = problem.case(seed)
    if implementation.layout == "bshd" and case.layout in ("contiguous", "bshd"):  # contiguous in its own order
        case = case.with_(layout="bshd" if case.layout == "contiguous" else "contiguous")
    # fresh copies: a faulty kernel may write into its inputs, and the next one is to have the same
    q, k, v, do = (x.clone() for x in (known.q, known.k, known.v, known.do))
    inputs = arranged(case, q, k, v, do, known.mask)
    with known_memory() if peer.poisoned else nullcontext():
        return implementation(case, inputs)


@lru_cache(maxsize=256)
def _known(peer: Peer, index: int, seed: int) -> _Known:
    """Computed once for all the kernels that are judged: it costs as much as running one of them."""
    problem = peer.shapes[index]
    case, dtype = problem.case(seed), DTYPES[problem.dtype]
    query = (problem.B, problem.H, problem.M, problem.D)
    key = (problem.B, problem.HK, problem.N, problem.D)
    drawn = {
        n: rounded(peer.distribution[n].draw(Draws(seed, peer.name, index, n), s), dtype)
        for n, s in (("q", query), ("k", key), ("v", key), ("do", query))
    }
    mask = Mask(causal=problem.causal, window=problem.window or (None, None), alignment=problem.alignment,
                bias=_bias(problem, Draws(seed, peer.name, index, "bias")) if problem.bias else None)  # fmt: skip
    q, k, v, do = drawn["q"], drawn["k"], drawn["v"], drawn["do"]
    grad = do if problem.backward else None
    golden = attend(peer.reference, q, k, v, grad, mask, case.softmax_scale)
    low = golden if peer.low is None else attend(peer.low, q, k, v, grad, mask, case.softmax_scale)
    if peer.quantised is not None:
        q, k, v = (_quantised(x, peer.quantised) for x in (q, k, v))
    return _Known(q, k, v, do, mask, golden, low)


def _bias(problem: Problem, draws: Draws) -> Tensor:
    """[B, 1, M, N]: U[-1, 1) with one block of 64 x 128 hidden and one of zeros (`init_tensor_kq_mask`)."""
    values = -1.0 + 2.0 * draws.uniform(problem.B, 1, problem.M, problem.N)
    for fill in (-np.inf, 0.0):
        row, column = int(draws.integers(0, problem.M, 1)[0]), int(draws.integers(0, problem.N, 1)[0])
        values[:, :, row : row + 64, column : column + 128] = fill
    return torch.from_numpy(values.astype(np.float32)).to(DTYPES[problem.dtype])


def _quantised(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to `dtype` with one scale per head (the largest element becomes the largest number), and back."""
    scale = x.float().abs().amax((0, 2, 3), keepdim=True) / torch.finfo(dtype).max
    return ((x.float() / scale).to(dtype).float() * scale).to(x.dtype)
