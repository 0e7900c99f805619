"""One case, start to finish: inputs, truth, standard attention, the kernel, its errors, and the checks of this case.

This is the only place where a kernel is run.  It never raises for what a kernel does: a kernel that raises or returns
the wrong thing is a result.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels.interpreter import KernelError
from ..reports.record import Row
from . import guards, single
from .case import Case
from .check import Check
from .errors import Errors, Target, bound_ratio, floored_log_ratio, rounded, same_bits
from .expected import Reference, dtype_of, reference
from .implementation import Implementation, RefusedError, WrongResultError, describe
from .inputs import Inputs, build
from .regimes import REGIMES

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


def evaluate(
    case: Case, implementation: Implementation, phase: str, *, device: str = "cpu", thorough: bool = True,
    statistical: bool = False,
) -> Result:  # fmt: skip
    """Run the kernel on a case and judge it.

    `thorough` repeats the run (from other memory contents) and runs a batch element alone; without it, as in a
    search for the worst case, the kernel runs once.  `statistical` adds the checks of `single`: what a survey asks of a
    distribution, asked of this case alone, as when a survey's finding is shrunk and replayed.
    """
    start = time.perf_counter()
    lacking = implementation.lacks(case)
    if lacking is not None:
        return without_result(case, phase, "unsupported", f"has no option for {lacking}", time.perf_counter() - start)
    inputs = build(in_its_own_layout(case, implementation)).to(torch.device(device))
    known = reference(case, inputs)  # before the kernel has had a chance to change the inputs
    before = guards.checksums(inputs)
    try:
        outputs = guards.poisoned(implementation, case, inputs)
    except RefusedError as e:
        return without_result(case, phase, "unsupported", str(e), time.perf_counter() - start)
    except WrongResultError as e:
        return without_result(case, phase, "wrong-result", str(e), time.perf_counter() - start)
    except Exception as e:  # noqa: BLE001  (whatever a kernel does is a result)
        return without_result(case, phase, "raised", describe(e) + _where(e), time.perf_counter() - start)
    checks = [guards.inputs_unchanged(before, inputs)]
    rows, identity = [], _identity(case, phase)
    for name, value in outputs.tensors().items():
        target = Target.of(known.truth[name], dtype_of(name, case))
        errors = target.errors(value)
        row, tensor_checks = _judge(case, identity, name, value, errors, target, known)
        rows.append(row)
        checks += tensor_checks
        if statistical and REGIMES[case.regime].independent:
            checks += single.checks(row, errors, known.truth[name])
    if thorough:
        checks += guards.invariances(implementation, case, inputs, outputs)
        if case.backward:
            checks += _inference(case, implementation, inputs, known)
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
    case: Case, identity: dict[str, Any], name: str, value: Tensor, errors: Errors, target: Target, known: Reference
) -> tuple[Row, list[Check]]:
    truth, dtype = target.truth, dtype_of(name, case)
    usual = target.errors(known.standard[name])
    best = target.errors(rounded(truth, dtype))
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
    )  # fmt: skip
    return row, [_finite(name, value, known), _bounded(name, value, known, ratio, index)]


def _share_of_same_bits(value: Tensor, usual: Tensor) -> float | None:
    if value.numel() == 0 or value.dtype != usual.dtype:
        return None
    return int(same_bits(value, usual).count_nonzero()) / value.numel()


def _finite(name: str, value: Tensor, known: Reference) -> Check:
    """No NaN or infinity where the truth is finite; where the bound is inf, a kernel may overflow, to infinity."""
    truth = known.truth[name]
    if bool(torch.isfinite(value - truth).all()):
        return Check("finite", name, True, 0.0, 0.0, "")
    may_overflow = torch.isinf(known.bound[name]) & ~torch.isnan(value.double())
    wrong = _wrong_nonfinite(value, truth) & ~may_overflow
    where = tuple(int(i) for i in wrong.nonzero()[0]) if wrong.any() else None
    detail = f"{name}{list(where)} is {float(value[where]):g}, the truth is {float(truth[where]):g}" if where else ""
    return Check("finite", name, where is None, float(wrong.sum()), 0.0, detail)


def _bounded(name: str, value: Tensor, known: Reference, ratio: float, index: tuple[int, ...]) -> Check:
    """No error beyond the a priori bound."""
    truth, bound, detail = known.truth[name], known.bound[name], ""
    if index:
        detail = (
            f"{name}{list(index)} = {float(value[index]):.9g}, the truth is {float(truth[index]):.9g}, "
            f"the bound on the error {float(bound[index]):.3g}"
        )
    return Check("bound", name, ratio <= 1.0, ratio, 1.0, detail)


def _inference(case: Case, implementation: Implementation, inputs: Inputs, known: Reference) -> list[Check]:
    """Without gradients many functions take another path; it must be as right as the first."""
    try:
        result = implementation(case.with_(backward=False), inputs).tensors()
    except Exception as e:  # noqa: BLE001  (whatever a kernel does is a result)
        return [Check("inference", "out", False, 1.0, 0.0, f"without gradients it raised {describe(e)}")]
    checks = []
    for name, value in result.items():
        ratio, index = bound_ratio(value, known.truth[name], known.bound[name], dtype_of(name, case))
        both = (_finite(name, value, known), _bounded(name, value, known, ratio, index))
        worst = next((c for c in both if not c.passed), both[1])
        detail = f"without gradients {worst.detail}" if not worst.passed else ""
        checks.append(Check("inference", name, worst.passed, worst.observed, worst.allowed, detail))
    return checks


def _wrong_nonfinite(value: Tensor, truth: Tensor) -> Tensor:
    value = value.double()
    expected = torch.isfinite(truth)
    return (expected & ~torch.isfinite(value)) | (~expected & (value != truth))
