"""What a kernel is asked once more: the case without gradients, and problems related to it (`invariances`).

Each answer is held to the truth and bound of the case, and to what the kernel said the first time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from . import guards, single
from .accuracy import within
from .case import Case
from .check import Check
from .draws import Draws
from .errors import same_bits
from .expected import Posed, with_lse_gradient
from .implementation import Implementation
from .inputs import Inputs
from .invariances import twins
from .outputs import CompilerGaveUpError, Outputs, RefusedError, describe
from .regimes import REGIMES
from .twin import Twin, refill, refillable

#: a sum as large as this has no bit that depends on terms below the normal numbers of fp32
_SUBNORMAL_COUNTS = 2.0**-96


@dataclass(frozen=True, slots=True, eq=False)
class Again:
    """Calls a kernel once more; whatever it does to the inputs is undone, and kept in `wrote`.

    It runs on the device of `inputs`, wherever the tensors of the call are, and its results are where these are.
    """

    implementation: Implementation
    inputs: Inputs
    before: dict[str, Tensor]
    given: Inputs  # the same ones, where results are judged
    wrote: list[Check] = field(default_factory=list)  # what it did to the inputs of the first call, if anything

    def __call__(
        self, case: Case, inputs: Inputs, *args: Any, dlse: Tensor | None = None, between: Inputs | None = None,
        twice: bool = False, lse: bool = True, in_place: bool = False,
    ) -> Outputs:  # fmt: skip
        """`in_place`: what `inputs` hold is written into the tensors of the first call, and these are given."""
        there, here = self.inputs.q.device, inputs.q.device
        dlse = None if dlse is None else dlse.to(there)
        between = None if between is None else between.to(there)
        try:
            placed = self.inputs if inputs is self.given else inputs.to(there)
            if in_place:
                refill(self.inputs, placed)
                placed = self.inputs
            outputs = self.implementation(case, placed, *args, dlse=dlse, between=between, twice=twice, lse=lse)
            return outputs.to(here)
        finally:
            unchanged = guards.inputs_unchanged(self.before, self.inputs)
            if not in_place and not unchanged.passed:
                self.wrote.append(unchanged)


def inference(again: Again, posed: Posed, first: dict[str, Tensor]) -> list[Check]:
    """Without gradients many functions take another path; it must be as right as the first."""
    case, known = posed.case, posed.known
    try:
        with guards.known_memory():
            result = again(case.with_(backward=False), posed.inputs).tensors()
    except CompilerGaveUpError:
        return []
    except Exception as e:  # noqa: BLE001  (whatever a kernel does is a result)
        return [Check("inference", "out", False, 1.0, 0.0, f"without gradients it raised {describe(e)}")]
    checks = []
    for name, value in result.items():
        if name not in first:
            continue
        before = first[name]
        worst = within("inference", name, value, known.truth[name], known.bound[name], case)
        if worst.passed:
            worst = _no_worse("inference", name, value, before, posed) or worst
        detail = f"without gradients {worst.detail}" if not worst.passed else ""
        checks.append(replace(worst, detail=detail))
    return checks


def invariances(again: Again, posed: Posed, first: dict[str, Tensor], count: int) -> list[Check]:
    """So many of the relations that apply."""
    implementation = again.implementation
    possible = (
        (name, twin)
        for name, twin in twins(posed.case, posed.inputs)
        if implementation.lacks(twin.case) is None
        and ((twin.dlse is None and twin.lse) or implementation.lse_option is not None)
    )
    return [c for name, twin in islice(possible, count) for c in _related(name, twin, again, posed, first)]


def _related(name: str, twin: Twin, again: Again, posed: Posed, first: dict[str, Tensor]) -> list[Check]:
    """Whether a twin's results are the original's.

    Half of those that only hold other values lie where the original's lay: whoever refills buffers calls so, and
    an address says nothing of what is there.
    """
    in_place = refillable(twin, posed.case, posed.inputs) and Draws(posed.case.seed, "in place").uniform(1)[0] < 0.5
    name += ", in the same memory" if in_place else ""
    try:
        with guards.known_memory():
            results = again(
                twin.case, twin.inputs, twin.gradients, dlse=twin.dlse, between=twin.between, twice=twin.twice,
                lse=twin.lse, in_place=in_place,
            ).tensors()  # fmt: skip
    except RefusedError:
        return []
    except Exception as e:  # noqa: BLE001  (whatever a kernel does is a result)
        return [Check("invariance", "out", False, 1.0, 0.0, f"{name}: it raised {describe(e)}")]
    checks, known = [], posed.known
    truths, bounds = known.truth, known.bound
    if twin.dlse is not None:
        truths, bounds = with_lse_gradient(twin.case, twin.inputs, twin.dlse, known)
    for tensor, read in twin.read.items():
        if tensor not in results or tensor not in first:
            continue
        value, truth = read(results[tensor]), twin.part(truths[tensor])
        worst = within("invariance", tensor, value, truth, twin.part(bounds[tensor]), posed.case)
        if worst.passed and tensor in twin.bits:
            worst = _equal(tensor, value, twin.part(first[tensor]))
        elif worst.passed and tensor == "out" and truth.shape == known.truth["out"].shape:
            worst = _no_worse("invariance", tensor, value, first[tensor], posed) or worst
        checks.append(worst if worst.passed else replace(worst, detail=f"{name}: {worst.detail}"))
    return checks


def _no_worse(check: str, name: str, value: Tensor, before: Tensor, posed: Posed) -> Check | None:
    """Another computation of a tensor has no larger error than roundings predict, or than the first had."""
    if not REGIMES[posed.case.regime].independent or bool(same_bits(value, before).all()):
        return None
    target = posed.known.target[name]
    return single.no_worse(check, name, target.errors(value), posed.known, target.errors(before).rms)


def _equal(name: str, value: Tensor, first: Tensor) -> Check:
    """Equality of numbers: subnormal ones, and sums in which those of fp32 count, round differently in other units."""
    smallest = max(4 * torch.finfo(first.dtype).tiny, _SUBNORMAL_COUNTS)
    a, b = value.double(), first.double()
    normal = torch.maximum(a.abs(), b.abs()) >= smallest
    n = int(((a != b) & normal & torch.isfinite(b)).count_nonzero())
    detail = f"{n} of {first.numel()} elements of {name} are not the same bits" if n else ""
    return Check("invariance", name, n == 0, float(n), 0.0, detail)
