"""One case, start to finish: inputs, truth, standard attention, the kernel, its errors, and the checks of this case.

This is the only place where a kernel is run.  It never raises for what a kernel does: a kernel that raises or returns
the wrong thing is a result.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels.interpreter import KernelError
from ..reference.directions import slope
from ..reports.record import Row
from . import guards, single
from .case import Case
from .check import Check
from .errors import Errors, bound_ratio, floored_log_ratio, same_bits
from .expected import Reference, dtype_of, reference, with_lse_gradient
from .implementation import Implementation, Outputs, RefusedError, WrongResultError, describe
from .inputs import Inputs, build
from .invariances import Twin, twins
from .regimes import REGIMES
from .storing import stores_scores

#: a sum as large as this has no bit that depends on terms below the normal numbers of fp32
_SUBNORMAL_COUNTS = 2.0**-96
_HERE = str(Path(__file__).parent)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a case: rows for the record, checks, and `status` (ok, raised, wrong-result, unsupported, ...)."""

    case: Case
    status: str
    rows: tuple[Row, ...]
    checks: tuple[Check, ...]
    seconds: float

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(c for c in self.checks if not c.passed)


@dataclass(frozen=True, slots=True, eq=False)
class Posed:
    """A case, its tensors, and all that is known of it without running a kernel: the same for every kernel."""

    case: Case
    inputs: Inputs
    known: Reference


def pose(case: Case, implementation: Implementation, device: str, *, stores_scores: bool) -> Posed:
    """The case as it is put to an implementation of this layout, and to any other that stores scores or does not."""
    inputs = build(in_its_own_layout(case, implementation)).to(torch.device(device))
    return Posed(case, inputs, reference(case, inputs, stores_scores=stores_scores))


def evaluate(
    case: Case, implementation: Implementation, phase: str, *, device: str = "cpu", thorough: bool = True,
    relations: int = 1, statistical: bool = False, stores: bool | None = None,
) -> Result:  # fmt: skip
    """Run the kernel on a case and judge it.

    `thorough` repeats the run (from other memory contents), runs a batch element alone, and so many `relations` of the
    case to twins of it; without it, as in a search for the worst case, the kernel runs once.  `statistical` adds the
    checks of `single`: what a survey asks of a distribution, asked of this case alone, as when a survey's finding is
    shrunk and replayed.  `stores` says whether the kernel stores its scores, if that is known (`storing`).
    """
    start = time.perf_counter()
    lacking = implementation.lacks(case)
    if lacking is not None:
        return without_result(case, phase, "unsupported", f"has no option for {lacking}", time.perf_counter() - start)
    # a process's first call is one of those that are judged: how scores are stored is found out after it
    inputs = build(in_its_own_layout(case, implementation)).to(torch.device(device))
    outcome = attempt(case, inputs, implementation, phase, start)
    if isinstance(outcome, Result):
        return outcome
    stores = stores_scores(implementation, device) if stores is None else stores
    known = reference(case, inputs, stores_scores=stores)
    return judged(
        Posed(case, inputs, known), outcome, implementation, phase, start, thorough=thorough, relations=relations,
        statistical=statistical,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a kernel returned, whether it left its inputs alone, and what these were."""

    outputs: Outputs
    unchanged: Check
    before: dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class _Again:
    """Calls a kernel once more; whatever it does to the inputs is undone, for one check has said so already."""

    implementation: Implementation
    inputs: Inputs
    before: dict[str, Tensor]

    def __call__(self, *args: Any, **options: Any) -> Outputs:
        try:
            return self.implementation(*args, **options)
        finally:
            guards.inputs_unchanged(self.before, self.inputs)


def attempt(case: Case, inputs: Inputs, implementation: Implementation, phase: str, start: float) -> Attempt | Result:
    """Run the kernel once; the inputs are afterwards what they were.  A result if it gave nothing to judge."""
    before = guards.checksums(inputs)
    try:
        outputs = guards.run(implementation, case, inputs)
    except RefusedError as e:
        return without_result(case, phase, "unsupported", str(e), time.perf_counter() - start)
    except WrongResultError as e:
        return without_result(case, phase, "wrong-result", str(e), time.perf_counter() - start)
    except Exception as e:  # noqa: BLE001  (whatever a kernel does is a result)
        return without_result(case, phase, "raised", describe(e) + _where(e), time.perf_counter() - start)
    finally:
        unchanged = guards.inputs_unchanged(before, inputs)
    return Attempt(outputs, unchanged, before)


def judged(
    posed: Posed, attempt: Attempt, implementation: Implementation, phase: str, start: float, *, thorough: bool = True,
    relations: int = 1, statistical: bool = False,
) -> Result:  # fmt: skip
    """What is said of an attempt; arguments as in `evaluate`."""
    case, inputs, known, outputs = posed.case, posed.inputs, posed.known, attempt.outputs
    checks = [attempt.unchanged]
    rows, identity = [], _identity(case, phase)
    values = outputs.tensors()
    copies = {name: value.clone() for name, value in values.items()}
    for name, value in values.items():
        errors = known.target[name].errors(value)
        row, tensor_checks = _judge(case, identity, name, value, errors, known)
        rows.append(row)
        checks += tensor_checks
        if statistical and REGIMES[case.regime].independent:
            checks += single.checks(row, value, errors, known)
    if thorough:
        again = _Again(implementation, inputs, attempt.before)
        wrong = {c.tensor for c in checks if not c.passed}
        right = {n: x for n, x in copies.items() if not wrong & {n, "out"}}  # what is wrong already need not be twice
        checks += guards.repeated(again, case, inputs, copies)
        if case.B > 1:
            checks += guards.alone(again, case, inputs, copies)
        if case.backward:
            checks += _inference(again, posed, right)
        checks += _invariances(again, posed, right, relations)
        checks += guards.kept(copies, outputs)
    seconds = time.perf_counter() - start
    noted = [replace(r, seconds=seconds, **_failures(checks, r.tensor)) for r in rows]
    return Result(case, "ok", tuple(noted), tuple(checks), seconds)


def _failures(checks: list[Check], tensor: str | None) -> dict[str, Any]:
    """What a row says of the checks that failed for its tensor; those of no tensor are noted with the output."""
    failed = [c for c in checks if not c.passed and (c.tensor or "out") == tensor]
    names = ",".join(dict.fromkeys(c.name for c in failed))
    return {"failed": names or None, "message": "; ".join(c.detail for c in failed) or None}


# ---------------------------------------------------------------------------------------------------------------------
# running


def in_its_own_layout(case: Case, implementation: Implementation) -> Case:
    """`contiguous` means contiguous in the implementation's own order, `bshd` the other order."""
    if implementation.layout == "bhsd" or case.layout not in ("contiguous", "bshd"):
        return case
    return case.with_(layout="bshd" if case.layout == "contiguous" else "contiguous")


def _where(e: BaseException) -> str:
    """The innermost frame of user code, for the message; a kernel's own error names its line already."""
    if isinstance(e, KernelError):
        return ""
    frames = [
        f
        for f in traceback.extract_tb(e.__traceback__)
        if not f.filename.startswith(_HERE) and "site-packages" not in f.filename
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def without_result(case: Case, phase: str, status: str, message: str, seconds: float) -> Result:
    """The result of a case that gave none: refused (`unsupported`), or raised, wrong, hung or dead, which all fail."""
    failed = status != "unsupported"
    row = Row(
        status=status, message=message, seconds=seconds, failed="returns" if failed else None, **_identity(case, phase)
    )
    checks = (Check("returns", None, False, 1.0, 0.0, f"{status}: {message}"),) if failed else ()
    return Result(case, status, (row,), checks, seconds)


def _identity(case: Case, phase: str) -> dict[str, Any]:
    return dict(
        case_id=case.id, phase=phase, dtype=case.dtype, regime=case.regime, mask=str(case.mask), B=case.B, H=case.H,
        HK=case.HK, M=case.M, N=case.N, D=case.D, scale=case.softmax_scale, layout=case.layout, seed=case.seed,
        case_json=case.to_json(),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# judging


def _judge(
    case: Case, identity: dict[str, Any], name: str, value: Tensor, errors: Errors, known: Reference
) -> tuple[Row, list[Check]]:
    truth, dtype = known.truth[name], dtype_of(name, case)
    usual, best = known.usual[name], known.best[name]
    ratio, index = bound_ratio(value, truth, known.bound[name], dtype)
    natural, predicted = known.natural_scale[name], known.predicted[name]
    usual_rms = float("nan") if usual.nonfinite else usual.rms
    row = Row(
        status="ok", **identity, max_logit=known.max_logit, tensor=name, elements=truth.numel(),
        nonfinite=errors.nonfinite,
        kernel_max=errors.max, kernel_rms=errors.rms,
        standard_max=None if usual.nonfinite else usual.max, standard_rms=None if usual.nonfinite else usual.rms,
        rounded_max=best.max, rounded_rms=best.rms, natural_scale=natural,
        log_ratio=floored_log_ratio(errors.rms, usual_rms, best.rms, natural)
        if not errors.nonfinite else None,
        bound_ratio=ratio, predictor_ratio=errors.rms / predicted if predicted else None,
        envelope_ratio=errors.rms / envelope if (envelope := known.envelope[name]) else None,
        kernel_bias=errors.bias, standard_bias=usual.bias, rounded_bias=best.bias,
        kernel_ulp=errors.ulp_histogram, standard_ulp=usual.ulp_histogram, rounded_ulp=best.ulp_histogram,
        bitwise_standard=_share_of_same_bits(value, known.standard[name]),
        **_slope(name, value, known),
    )  # fmt: skip
    bound = known.bound[name]
    return row, [_finite(name, value, truth, bound), _bounded(name, value, truth, bound, ratio, index)]


def _slope(name: str, value: Tensor, known: Reference) -> dict[str, Any]:
    """The component of the error along the direction of a systematic one, in units that make cases comparable."""
    if name not in known.direction or not known.natural_scale[name]:
        return {}
    along, square = slope(value.double() - known.truth[name], known.direction[name])
    unit = known.natural_scale[name] ** 2 * value.numel()
    return {"slope": along / unit, "slope_weight": square / unit}


def _share_of_same_bits(value: Tensor, usual: Tensor) -> float | None:
    if value.numel() == 0 or value.dtype != usual.dtype:
        return None
    return int(same_bits(value, usual).count_nonzero()) / value.numel()


def _finite(name: str, value: Tensor, truth: Tensor, bound: Tensor) -> Check:
    """No NaN or infinity where the truth is finite; where the bound is inf, a kernel may overflow, to infinity."""
    if bool(torch.isfinite(value - truth).all()):
        return Check("finite", name, True, 0.0, 0.0, "")
    may_overflow = torch.isinf(bound) & ~torch.isnan(value.double())
    wrong = _wrong_nonfinite(value, truth) & ~may_overflow
    where = tuple(int(i) for i in wrong.nonzero()[0]) if wrong.any() else None
    detail = f"{name}{list(where)} is {float(value[where]):g}, the truth is {float(truth[where]):g}" if where else ""
    return Check("finite", name, where is None, float(wrong.sum()), 0.0, detail)


def _bounded(
    name: str, value: Tensor, truth: Tensor, bound: Tensor, ratio: float, index: tuple[int, ...]
) -> Check:  # fmt: skip
    """No error beyond the a priori bound."""
    detail = ""
    if index:
        detail = (
            f"{name}{list(index)} = {float(value[index]):.9g}, the truth is {float(truth[index]):.9g}, "
            f"the bound on the error {float(bound[index]):.3g}"
        )
    return Check("bound", name, ratio <= 1.0, ratio, 1.0, detail)


def _inference(again: _Again, posed: Posed, first: dict[str, Tensor]) -> list[Check]:
    """Without gradients many functions take another path; it must be as right as the first."""
    case, known = posed.case, posed.known
    try:
        with guards.known_memory():
            result = again(case.with_(backward=False), posed.inputs).tensors()
    except Exception as e:  # noqa: BLE001  (whatever a kernel does is a result)
        return [Check("inference", "out", False, 1.0, 0.0, f"without gradients it raised {describe(e)}")]
    checks = []
    for name, value in result.items():
        if name not in first:
            continue
        before = first[name]
        worst = _right("inference", name, value, known.truth[name], known.bound[name], case)
        if worst.passed:
            worst = _no_worse("inference", name, value, before, posed) or worst
        detail = f"without gradients {worst.detail}" if not worst.passed else ""
        checks.append(replace(worst, detail=detail))
    return checks


def _no_worse(check: str, name: str, value: Tensor, before: Tensor, posed: Posed) -> Check | None:
    """Another computation of a tensor has no larger error than roundings predict, or than the first had."""
    if not REGIMES[posed.case.regime].independent or bool(same_bits(value, before).all()):
        return None
    target = posed.known.target[name]
    return single.no_worse(check, name, target.errors(value), posed.known, target.errors(before).rms)


def _right(check: str, name: str, value: Tensor, truth: Tensor, bound: Tensor, case: Case) -> Check:
    """Finite where the truth is, and within the bound: the worse of the two, under another check's name."""
    ratio, index = bound_ratio(value, truth, bound, dtype_of(name, case))
    both = (_finite(name, value, truth, bound), _bounded(name, value, truth, bound, ratio, index))
    return replace(next((c for c in both if not c.passed), both[1]), name=check)


def _invariances(
    again: _Again, posed: Posed, first: dict[str, Tensor], count: int
) -> list[Check]:  # fmt: skip
    """So many of the relations that apply."""
    implementation = again.implementation
    possible = (
        (name, twin)
        for name, twin in twins(posed.case, posed.inputs)
        if implementation.lacks(twin.case) is None and (twin.dlse is None or implementation.lse_option is not None)
    )
    return [c for name, twin in islice(possible, count) for c in _related(name, twin, again, posed, first)]


def _related(
    name: str, twin: Twin, again: _Again, posed: Posed, first: dict[str, Tensor]
) -> list[Check]:  # fmt: skip
    """Whether a twin's results are the original's."""
    try:
        with guards.known_memory():
            results = again(twin.case, twin.inputs, twin.gradients, dlse=twin.dlse, between=twin.between).tensors()
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
        worst = _right("invariance", tensor, value, truth, twin.part(bounds[tensor]), posed.case)
        if worst.passed and tensor in twin.bits:
            worst = _equal(tensor, value, twin.part(first[tensor]))
        elif worst.passed and tensor == "out" and truth.shape == known.truth["out"].shape:
            worst = _no_worse("invariance", tensor, value, first[tensor], posed) or worst
        checks.append(worst if worst.passed else replace(worst, detail=f"{name}: {worst.detail}"))
    return checks


def _equal(name: str, value: Tensor, first: Tensor) -> Check:
    """Equality of numbers: subnormal ones, and sums in which those of fp32 count, round differently in other units."""
    smallest = max(4 * torch.finfo(first.dtype).tiny, _SUBNORMAL_COUNTS)
    a, b = value.double(), first.double()
    normal = torch.maximum(a.abs(), b.abs()) >= smallest
    n = int(((a != b) & normal & torch.isfinite(b)).count_nonzero())
    detail = f"{n} of {first.numel()} elements of {name} are not the same bits" if n else ""
    return Check("invariance", name, n == 0, float(n), 0.0, detail)


def _wrong_nonfinite(value: Tensor, truth: Tensor) -> Tensor:
    value = value.double()
    expected = torch.isfinite(truth)
    return (expected & ~torch.isfinite(value)) | (~expected & (value != truth))
