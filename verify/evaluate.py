"""One case, start to finish: inputs, truth, standard attention, the kernel, its errors, and the checks of this case.

Kernels are run here, and again by `guards` and `related`, which this calls.  It never raises for what a kernel does: a
kernel that raises or returns the wrong thing is a result.
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
from .accuracy import compared, within
from .case import Case
from .check import Check
from .expected import Posed
from .implementation import Implementation
from .inputs import Inputs, build
from .isolation import broken_context
from .outputs import LayoutRefusedError, Outputs, RefusedError, WrongResultError, describe
from .refusals import is_plain
from .regimes import REGIMES
from .related import Again, inference, invariances
from .storage import mapped
from .storing import stores_scores

_HERE = str(Path(__file__).parent)
_TOO_FAR = "no memory for the layout `far`"
_SMALL = 2**24  # multiplications of one matrix product


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a case: rows for the record, checks, and `status` (ok, raised, wrong-result, unsupported, ...)."""

    case: Case
    status: str
    rows: tuple[Row, ...]
    checks: tuple[Check, ...]
    seconds: float

    @property
    def lost(self) -> bool:
        """Whether it cost the process, or its use of the device."""
        return self.status in ("timeout", "crashed")

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(c for c in self.checks if not c.passed)


def evaluate(
    case: Case, implementation: Implementation, phase: str, *, device: str = "cpu", thorough: bool = True,
    relations: int = 1, statistical: bool = False, stores: bool | None = None,
) -> Result:  # fmt: skip
    """Run the kernel on a case and judge it.

    `thorough` repeats the run (from other memory contents), runs a batch element alone, and so many `relations` of the
    case to twins of it; without it, as in a search for the worst case, the kernel runs once.  `statistical` adds the
    checks of `single`: what a survey asks of a distribution, asked of this case alone, as when a survey's finding is
    shrunk and replayed.  `stores` says whether the kernel stores its scores, if that is known (`storing`).

    A case that ends this process's use of the device has `crashed`; what comes after it needs another process.
    """
    start = time.perf_counter()
    result = None
    try:
        result = _evaluated(case, implementation, phase, start, device, thorough, relations, statistical, stores)
    except Exception:
        if broken_context() is None:
            raise
    if (why := broken_context()) is None:
        if case.layout == "far" and device != "cpu" and _scarce(device):
            torch.cuda.empty_cache()  # gigabytes, for which other processes wait
        assert result is not None
        return result
    message = f"it broke the CUDA context: {why}"
    lost = without_result(case, phase, "crashed", message, time.perf_counter() - start)
    if result is None or result.status != "ok":
        return lost
    return replace(lost, rows=(*result.rows, *lost.rows), checks=(*result.checks, *lost.checks))


def _evaluated(
    case: Case, implementation: Implementation, phase: str, start: float, device: str, thorough: bool, relations: int,
    statistical: bool, stores: bool | None,
) -> Result:  # fmt: skip
    lacking = implementation.lacks(case)
    if lacking is not None:
        return without_result(case, phase, "unsupported", f"has no option for {lacking}", time.perf_counter() - start)
    # a process's first call is one of those that are judged: how scores are stored is found out after it
    try:
        host = inputs_for(case, implementation, "cpu")
        inputs = host.to(torch.device(device))
    except RuntimeError as e:
        if case.layout != "far":
            raise
        return without_result(case, phase, "unsupported", f"{_TOO_FAR}: {describe(e)}", time.perf_counter() - start)
    outcome = attempt(case, inputs, implementation, phase, start)
    refused: tuple[Row, ...] = ()
    if isinstance(outcome, Result) and outcome.status == "unsupported" and case.backward:
        refused = tuple(replace(r, message=f"gradients: {r.message}") for r in outcome.rows)
        case, refusal = case.with_(backward=False), outcome  # what it gives without gradients is judged all the same
        outcome = attempt(case, inputs, implementation, phase, start)
        outcome = refusal if isinstance(outcome, Result) and outcome.status == "unsupported" else outcome
    if isinstance(outcome, Result):
        return outcome
    stores = stores_scores(implementation, device) if stores is None else stores
    posed = Posed.of(case, host if _small(case) else inputs, stores_scores=stores)
    again = Again(implementation, inputs, outcome.before, posed.inputs)
    result = judged(
        posed, outcome, again, phase, start, thorough=thorough, relations=relations, statistical=statistical
    )
    return replace(result, rows=(*result.rows, *refused))


def _scarce(device: str) -> bool:
    free, total = torch.cuda.mem_get_info(device)
    return free < total / 2


def _small(case: Case) -> bool:
    """Whether truth and bounds cost a core less than launching their many operations costs a GPU that all share."""
    return case.B * case.H * case.M * case.N * case.D <= _SMALL


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a kernel returned, whether it left its inputs alone, and what these were."""

    outputs: Outputs
    unchanged: Check
    before: dict[str, Tensor]


def attempt(case: Case, inputs: Inputs, implementation: Implementation, phase: str, start: float) -> Attempt | Result:
    """Run the kernel once; the inputs are afterwards what they were.  A result if it gave nothing to judge."""
    before = guards.checksums(inputs)
    try:
        outputs = guards.run(implementation, case, inputs)
    except RefusedError as e:
        status, message = _refusal(e, case, inputs, implementation)
        return without_result(case, phase, status, message, time.perf_counter() - start)
    except WrongResultError as e:
        return without_result(case, phase, "wrong-result", str(e), time.perf_counter() - start)
    except torch.OutOfMemoryError as e:
        status, message = ("unsupported", f"{_TOO_FAR}: ") if case.layout == "far" else ("raised", "")
        return without_result(case, phase, status, message + describe(e), time.perf_counter() - start)
    except Exception as e:  # noqa: BLE001  (whatever a kernel does is a result)
        return without_result(case, phase, "raised", describe(e) + _where(e), time.perf_counter() - start)
    finally:
        unchanged = guards.inputs_unchanged(before, inputs)
    return Attempt(outputs, unchanged, before)


def _refusal(e: RefusedError, case: Case, inputs: Inputs, implementation: Implementation) -> tuple[str, str]:
    """Shapes, dtypes, options and layouts may be refused, values may not: then, and in an accident, it `raised`."""
    if isinstance(e, LayoutRefusedError):
        contiguous = inputs_for(case.with_(layout="contiguous"), implementation, str(inputs.q.device))
        if _takes(implementation, case, contiguous):
            return "unsupported", str(e)
        if not is_plain(str(e)):
            return "raised", str(e)
    q, k, v, do = (_zeros(x) for x in (inputs.q, inputs.k, inputs.v, inputs.do))
    if _takes(implementation, case, replace(inputs, q=q, k=k, v=v, do=do)):
        return "raised", f"it takes zeros of the same shapes, and not these values: {e}"
    return "unsupported", str(e)


def _takes(implementation: Implementation, case: Case, inputs: Inputs) -> bool:
    """Whether it returns at all."""
    try:
        with guards.known_memory():
            implementation(case, inputs)
    except Exception:  # noqa: BLE001  (whatever a kernel does is a result)
        return False
    return True


def _zeros(x: Tensor) -> Tensor:
    """In the same layout."""
    return mapped(x, torch.zeros_like)


def judged(
    posed: Posed, attempt: Attempt, again: Again, phase: str, start: float, *, thorough: bool = True,
    relations: int = 1, statistical: bool = False,
) -> Result:  # fmt: skip
    """What is said of an attempt, where the tensors of `posed` are; arguments as in `evaluate`."""
    case, inputs, known, outputs = posed.case, posed.inputs, posed.known, attempt.outputs
    checks = [attempt.unchanged]
    rows, identity = [], _identity(case, phase)
    copies = {name: value.to(inputs.q.device, copy=True) for name, value in outputs.tensors().items()}
    for name, value in copies.items():
        errors = known.target[name].errors(value)
        row, tensor_checks = compared(case, identity, name, value, errors, known)
        rows.append(row)
        checks += tensor_checks
        if statistical and REGIMES[case.regime].independent:
            checks += single.checks(row, value, errors, known)
    if thorough and case.layout != "far":  # which is about addresses alone, and takes gigabytes of a GPU
        wrong = {c.tensor for c in checks if not c.passed}
        right = {n: x for n, x in copies.items() if not wrong & {n, "out"}}  # what is wrong already need not be twice
        checks += guards.repeated(
            again, case, inputs, copies, lambda n, x: within("repeat", n, x, known.truth[n], known.bound[n], case)
        )
        if case.B > 1:
            checks += guards.alone(again, case, inputs, copies)
        if case.backward:
            checks += inference(again, posed, right)
        checks += invariances(again, posed, right, relations)
        checks += guards.kept(copies, outputs)
        if again.wrote and attempt.unchanged.passed:
            checks[0] = replace(again.wrote[0], detail=f"in a later call {again.wrote[0].detail}")
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


def inputs_for(case: Case, implementation: Implementation, device: str) -> Inputs:
    """The tensors of a case, in the implementation's layout."""
    return build(_in_its_own_layout(case, implementation)).to(torch.device(device))


def _in_its_own_layout(case: Case, implementation: Implementation) -> Case:
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
