"""Guards and invariances: what a kernel must not touch, must not leave out, and must not depend on.

None of them needs to know what attention is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.utils.deterministic
from torch import Tensor

from ..kernels.interpreter import Tracked, installed, interpret
from .case import Case
from .check import Check
from .errors import same_bits
from .implementation import Implementation, Outputs, describe
from .inputs import Inputs

_CONFLICTS = Tracked(uninitialised=False, outside=False, unwritten=False, descriptors=False)
#: torch's switches for poisoned allocations; the module replaces itself at import, which type checkers cannot follow
deterministic: Any = torch.utils.deterministic


@contextmanager
def unwritten_is_nan() -> Iterator[None]:
    """Newly allocated memory is filled with NaN, so that what is never written shows."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = deterministic.fill_uninitialized_memory
    # torch.use_deterministic_algorithms also imports torch.compile's backend, which takes seconds, and reconfigures it
    use_deterministic_algorithms = torch._C._set_deterministic_algorithms
    use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = fill
        use_deterministic_algorithms(enabled, warn_only=warn_only)


def poisoned(implementation: Implementation, case: Case, inputs: Inputs) -> Outputs:
    """Run with all newly allocated memory filled with NaN.

    Interpreted kernels are watched as well: two program instances may not touch one element unless an atomic orders
    them.  What they read without need, beside a tensor or before it is written, is judged by what it does: it is NaN.
    """
    with unwritten_is_nan(), interpret(memory=_CONFLICTS) if installed() else nullcontext():
        return implementation(case, inputs)


def _readable(inputs: Inputs) -> dict[str, Tensor]:
    """Everything that the kernel may read and must not write."""
    mask = inputs.mask
    named = {"q": inputs.q, "k": inputs.k, "v": inputs.v, "do": inputs.do, "attn_mask (boolean)": mask.allowed,
             "attn_mask (bias)": mask.bias, "key_lengths": mask.key_lengths}  # fmt: skip
    return {name: x for name, x in named.items() if x is not None}


def checksums(inputs: Inputs) -> dict[str, Tensor]:
    """A copy of every storage that the kernel may read, gaps included."""
    return {name: _bytes(x).clone() for name, x in _readable(inputs).items()}


def inputs_unchanged(before: dict[str, Tensor], inputs: Inputs) -> Check:
    """Whether the kernel left alone what it may only read."""
    changed = [name for name, x in _readable(inputs).items() if not torch.equal(before[name], _bytes(x))]
    detail = f"the kernel wrote to its input {', '.join(changed)} (or to the memory around it)" if changed else ""
    return Check("inputs-unchanged", None, not changed, float(len(changed)), 0.0, detail)


def _bytes(x: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


def invariances(implementation: Implementation, case: Case, inputs: Inputs, first: Outputs) -> list[Check]:
    """The same bits again from other memory contents, and for a batch element alone."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed + 1)  # a result that draws random numbers is to draw others
            again = implementation(case, inputs).tensors()
    except Exception as e:  # noqa: BLE001  (whatever a kernel does is a result)
        return [Check("repeat", None, False, 1.0, 0.0, f"a second run raised {describe(e)}")]
    checks = [c for name, value in first.tensors().items() for c in _repeated(name, value, again[name])]
    if case.B > 1:
        try:
            alone = implementation(case.with_(B=1), inputs.batch(0)).tensors()
        except Exception as e:  # noqa: BLE001
            return [*checks, Check("repeat", None, False, 1.0, 0.0, f"batch element 0 alone raised {describe(e)}")]
        checks += [_alone(name, value[:1], alone[name]) for name, value in first.tensors().items()]
    return checks


def _repeated(name: str, value: Tensor, again: Tensor) -> list[Check]:
    differ = int((~same_bits(value, again)).sum())
    unwritten = int((torch.isnan(value) & ~torch.isnan(again)).sum())
    return [
        Check("written", name, unwritten == 0, float(unwritten), 0.0,
              f"{unwritten} elements were never written" if unwritten else ""),
        Check("repeat", name, differ == 0 or unwritten > 0, float(differ), 0.0,
              f"{differ} of {value.numel()} elements differ between two runs" if differ else ""),
    ]  # fmt: skip


def _alone(name: str, value: Tensor, alone: Tensor) -> Check:
    differ = int((~same_bits(value, alone)).sum())
    detail = f"{differ} elements of batch element 0 change when it is alone" if differ else ""
    return Check("batch-invariance", name, differ == 0, float(differ), 0.0, detail)
