"""One case, start to finish: inputs, truth, standard attention, the kernel, its errors, and the checks of this case.

This is the only place where a kernel is run.  It never raises for what a kernel does: a kernel that raises or returns
the wrong thing is a result.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils.deterministic
from torch import Tensor

from ..reference import attention as truth_of
from ..reference import bounds, predictors, standard
from ..reference.arrangements import ANY, FLASH, STANDARD
from ..reports.record import Row
from . import single
from .case import Case
from .check import Check
from .errors import Errors, bound_ratio, floored_log_ratio, measure, rounded, same_bits
from .implementation import Implementation, Outputs, RefusedError, WrongResultError, describe
from .inputs import DTYPES, Inputs, build
from .regimes import REGIMES

#: torch's switches for poisoned allocations; the module replaces itself at import, which type checkers cannot follow
deterministic: Any = torch.utils.deterministic
TENSORS = ("out", "lse", "dq", "dk", "dv")


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


@dataclass(frozen=True, slots=True)
class Reference:
    """Everything that is known of a case without running the kernel."""

    truth: dict[str, Tensor]  # float64
    standard: dict[str, Tensor]
    bound: dict[str, Tensor]
    natural_scale: dict[str, float]  # u rms(S)
    predicted: dict[str, float | None]  # RMS error of the flash arrangement
    envelope: dict[str, float | None]  # the larger of flash's and standard's
    max_logit: float


def reference(case: Case, inputs: Inputs) -> Reference:
    """Truth, standard attention, bounds and predictors of a case."""
    q, k, v, do, mask, scale = inputs.q, inputs.k, inputs.v, inputs.do, inputs.mask, case.softmax_scale
    grad = do if case.backward else None
    fwd = truth_of.forward(q, k, v, mask, scale)
    std = standard.forward(q, k, v, mask, scale)
    truth, usual = {"out": fwd.o, "lse": fwd.lse}, {"out": std.o, "lse": std.lse}
    gradients = None
    if grad is not None:
        gradients = truth_of.backward(q, k, v, grad, mask, scale)
        usual_gradients = standard.backward(q, k, v, grad, mask, scale)
        for name in ("dq", "dk", "dv"):
            truth[name] = getattr(gradients, name)
            usual[name] = getattr(usual_gradients, name)
    certified = bounds.certify(q, k, v, grad, mask, scale, ANY, fwd, gradients)
    scales = predictors.natural_scales(q, k, v, grad, mask, scale, fwd)
    flash, usual_too = (predictors.predict(q, k, v, grad, mask, scale, a, fwd, gradients) for a in (FLASH, STANDARD))
    expected = {n: getattr(flash, n, None) for n in truth}
    envelope = {n: None if p is None else max(p, getattr(usual_too, n)) for n, p in expected.items()}
    u = case.unit_roundoff
    natural = {n: u * _rms(s) for n in truth if (s := getattr(scales, n, None)) is not None}
    natural["lse"] = 2.0**-24 * _rms(torch.clamp(torch.where(torch.isfinite(fwd.lse), fwd.lse, 0.0).abs(), min=1.0))
    return Reference(
        truth=truth, standard=usual, bound={n: getattr(certified, n) for n in truth}, natural_scale=natural,
        predicted=expected, envelope=envelope, max_logit=max_logit(q, k, scale, mask),
    )  # fmt: skip


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
        return _without_result(case, phase, "unsupported", f"has no option for {lacking}", start)
    inputs = build(in_its_own_layout(case, implementation)).to(torch.device(device))
    before = {name: _checksum(x) for name, x in _readable(inputs).items()}
    try:
        outputs = _poisoned(implementation, case, inputs)
    except RefusedError as e:
        return _without_result(case, phase, "unsupported", str(e), start)
    except WrongResultError as e:
        return _without_result(case, phase, "wrong-result", str(e), start)
    except Exception as e:  # noqa: BLE001  (whatever a kernel does is a result)
        return _without_result(case, phase, "raised", describe(e) + _where(e), start)
    checks = [_inputs_unchanged(before, inputs)]
    known = reference(case, inputs)
    rows = []
    for name, value in outputs.tensors().items():
        errors = measure(value, known.truth[name], _dtype_of(name, case))
        row, tensor_checks = _judge(case, phase, name, value, errors, known)
        rows.append(row)
        checks += tensor_checks
        if statistical and REGIMES[case.regime].independent:
            checks += single.checks(row, errors, known.truth[name])
    if thorough:
        checks += _invariances(implementation, case, inputs, outputs)
    seconds = time.perf_counter() - start
    rows = [replace(r, seconds=seconds, failed=_failed_names(checks, r.tensor), message=_failed_details(checks, r.tensor))
            for r in rows]  # fmt: skip
    return Result(case, "ok", tuple(rows), tuple(checks), seconds)


def _failed_names(checks: list[Check], tensor: str | None) -> str | None:
    """Failed checks of one tensor; those of no tensor are noted with the output."""
    names = [c.name for c in checks if not c.passed and (c.tensor or "out") == tensor]
    return ",".join(dict.fromkeys(names)) or None


def _failed_details(checks: list[Check], tensor: str | None) -> str | None:
    return "; ".join(c.detail for c in checks if not c.passed and (c.tensor or "out") == tensor) or None


# ---------------------------------------------------------------------------------------------------------------------
# running


def in_its_own_layout(case: Case, implementation: Implementation) -> Case:
    """`contiguous` means contiguous in the implementation's own order, `bshd` the other order."""
    if implementation.layout == "bhsd" or case.layout not in ("contiguous", "bshd"):
        return case
    return case.with_(layout="bshd" if case.layout == "contiguous" else "contiguous")


def _poisoned(implementation: Implementation, case: Case, inputs: Inputs) -> Outputs:
    """Run with all newly allocated memory filled with NaN, so that what is never written shows."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = deterministic.fill_uninitialized_memory
    # torch.use_deterministic_algorithms also imports torch.compile's backend, which takes seconds, and reconfigures it
    use_deterministic_algorithms = torch._C._set_deterministic_algorithms  # noqa: SLF001
    use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    try:
        return implementation(case, inputs)
    finally:
        deterministic.fill_uninitialized_memory = fill
        use_deterministic_algorithms(enabled, warn_only=warn_only)


def _checksum(x: Tensor) -> Tensor:
    """A copy of the whole storage behind `x`, gaps included."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage()).clone()


def _dtype_of(name: str, case: Case) -> torch.dtype:
    return torch.float32 if name == "lse" else DTYPES[case.dtype]


def _where(e: BaseException) -> str:
    """The innermost frame of user code, for the message."""
    frames = [f for f in traceback.extract_tb(e.__traceback__) if "/verify/" not in f.filename and "site-packages" not in f.filename]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _without_result(case: Case, phase: str, status: str, message: str, start: float) -> Result:
    seconds = time.perf_counter() - start
    failed = status != "unsupported"
    row = Row(status=status, message=message, seconds=seconds, failed="returns" if failed else None, **_identity(case, phase))
    checks = (Check("returns", None, False, 1.0, 0.0, f"{status}: {message}"),) if failed else ()
    return Result(case, status, (row,), checks, seconds)


def lost(case: Case, phase: str, status: str, message: str, seconds: float) -> Result:
    """The result of a case whose process died or was killed."""
    row = Row(status=status, message=message, seconds=seconds, failed="returns", **_identity(case, phase))
    return Result(case, status, (row,), (Check("returns", None, False, 1.0, 0.0, f"{status}: {message}"),), seconds)


def _identity(case: Case, phase: str) -> dict[str, Any]:
    return dict(
        case_id=case.id, phase=phase, dtype=case.dtype, regime=case.regime, mask=str(case.mask), B=case.B, H=case.H,
        HK=case.HK, M=case.M, N=case.N, D=case.D, scale=case.softmax_scale, layout=case.layout, seed=case.seed,
        case_json=case.to_json(),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# judging


def _judge(case: Case, phase: str, name: str, value: Tensor, errors: Errors, known: Reference) -> tuple[Row, list[Check]]:
    truth, dtype = known.truth[name], _dtype_of(name, case)
    usual = measure(known.standard[name], truth, dtype)
    best = measure(rounded(truth, dtype), truth, dtype)
    ratio, index = bound_ratio(value, truth, known.bound[name], dtype)
    natural, predicted = known.natural_scale[name], known.predicted[name]
    usual_rms = float("nan") if usual.nonfinite else usual.rms
    row = Row(
        status="ok", **_identity(case, phase), max_logit=known.max_logit, tensor=name, elements=truth.numel(),
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
        bitwise_standard=float(same_bits(value, known.standard[name]).double().mean()) if truth.numel() and value.dtype == known.standard[name].dtype else None,
    )  # fmt: skip
    # an element that a legitimate kernel may overflow is bounded by inf; it may be infinite, but not NaN
    may_overflow = torch.isinf(known.bound[name]) & ~torch.isnan(value.double())
    wrong = _wrong_nonfinite(value, truth) & ~may_overflow
    where = tuple(int(i) for i in wrong.nonzero()[0]) if wrong.any() else None
    checks = [
        Check("finite", name, where is None, float(wrong.sum()), 0.0,
              f"{name}{list(where)} is {float(value[where]):g}, the truth is {float(truth[where]):g}" if where else ""),
        Check("bound", name, ratio <= 1.0, ratio, 1.0,
              f"{name}{list(index)} = {float(value[index]):.9g}, the truth is {float(truth[index]):.9g}, "
              f"the bound on the error {float(known.bound[name][index]):.3g}" if index else ""),
    ]  # fmt: skip
    return row, checks


def _wrong_nonfinite(value: Tensor, truth: Tensor) -> Tensor:
    value = value.double()
    expected = torch.isfinite(truth)
    return (expected & ~torch.isfinite(value)) | (~expected & (value != truth))


def _readable(inputs: Inputs) -> dict[str, Tensor]:
    """Everything that the kernel may read and must not write."""
    mask = inputs.mask
    named = {"q": inputs.q, "k": inputs.k, "v": inputs.v, "do": inputs.do, "attn_mask (boolean)": mask.allowed,
             "attn_mask (bias)": mask.bias, "key_lengths": mask.key_lengths}  # fmt: skip
    return {name: x for name, x in named.items() if x is not None}


def _inputs_unchanged(before: dict[str, Tensor], inputs: Inputs) -> Check:
    changed = [name for name, x in _readable(inputs).items() if not torch.equal(before[name], _checksum(x))]
    detail = f"the kernel wrote to its input {', '.join(changed)} (or to the memory around it)" if changed else ""
    return Check("inputs-unchanged", None, not changed, float(len(changed)), 0.0, detail)


def _invariances(implementation: Implementation, case: Case, inputs: Inputs, first: Outputs) -> list[Check]:
    """The same bits again from other memory contents, and for a batch element alone."""
    checks = []
    try:
        again = implementation(case, inputs).tensors()
    except Exception as e:  # noqa: BLE001
        return [Check("repeat", None, False, 1.0, 0.0, f"a second run raised {describe(e)}")]
    for name, value in first.tensors().items():
        equal = same_bits(value, again[name])
        unwritten = torch.isnan(value) & ~torch.isnan(again[name])
        detail = f"{int((~equal).sum())} of {equal.numel()} elements differ between two runs" if not equal.all() else ""
        checks.append(Check("written", name, not unwritten.any(), float(unwritten.sum()), 0.0,
                            f"{int(unwritten.sum())} elements were never written" if unwritten.any() else ""))  # fmt: skip
        checks.append(Check("repeat", name, bool(equal.all()) or bool(unwritten.any()), float((~equal).sum()), 0.0, detail))
    if case.B > 1:
        try:
            alone = implementation(case.with_(B=1), inputs.batch(0)).tensors()
        except Exception as e:  # noqa: BLE001
            return [*checks, Check("repeat", None, False, 1.0, 0.0, f"batch element 0 alone raised {describe(e)}")]
        for name, value in first.tensors().items():
            differ = int((~same_bits(value[:1], alone[name])).sum())
            checks.append(Check("batch-invariance", name, differ == 0, float(differ), 0.0,
                                f"{differ} elements of batch element 0 change when it is alone" if differ else ""))  # fmt: skip
    return checks


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt()) if x.numel() else 0.0


def max_logit(q: Tensor, k: Tensor, scale: float, mask: Any) -> float:
    """The largest |logit| of a visible key."""
    if q.shape[2] == 0 or k.shape[2] == 0:
        return 0.0
    B, H, M, D = q.shape
    HK, N = k.shape[1:3]
    s = scale * (q.double().reshape(B, HK, H // HK * M, D) @ k.double().mT)
    visible, bias = mask.rows(0, M, M, N, q.device)
    s = s.reshape(B, H, M, N) + (0.0 if bias is None else bias)
    return float(torch.where(visible.expand_as(s), s.abs(), torch.zeros_like(s)).max())
