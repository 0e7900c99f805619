"""Guards and invariances: what a kernel must not touch, must not leave out, and must not depend on.

None of them needs to know what attention is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.utils.deterministic
from torch import Tensor

from ..kernels.interpreter import Tracked, installed, interpret
from ..kernels.interpreter.listening import ALLOCATIONS, Listener, name_of
from ..reference.scalars import at_once
from .case import Case
from .check import Check
from .errors import same_bits
from .implementation import Implementation
from .inputs import Inputs
from .outputs import CompilerGaveUpError, Outputs, RefusedError, describe
from .storage import bits_of, is_wide, storage_of

_CONFLICTS = Tracked(uninitialised=False, outside=False, unwritten=False, descriptors=False)
#: torch's switches for poisoned allocations; the module replaces itself at import, which type checkers cannot follow
deterministic: Any = torch.utils.deterministic
#: what memory holds in turn, four bytes each: a number that could be one of the kernel's own (fp16 0.90, bf16 and fp32
#: 0.0029), and one that is larger than all of them (3798; 2.8e26)
_CANARY = torch.tensor([0x3B] * 4 + [0x6B] * 4, dtype=torch.uint8)

_AGAIN = 4  # times that what depends on the memory's contents must do so again


def run(implementation: Implementation, case: Case, inputs: Inputs) -> Outputs:
    """Run with all newly allocated memory filled with NaN, so that what is never written shows.

    Interpreted kernels are watched as well: two program instances may not touch one element unless an atomic orders
    them.  What they read without need, beside a tensor or before it is written, is judged by what it does: it is NaN.
    """
    with known_memory(), interpret(memory=_CONFLICTS) if installed() else nullcontext():
        return implementation(case, inputs)


@contextmanager
def known_memory(*, filled: bool = True) -> Iterator[None]:
    """All newly allocated memory is `filled` with NaN; torch's deterministic mode, which alone does it, is on."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = deterministic.fill_uninitialized_memory
    # torch.use_deterministic_algorithms also imports torch.compile's backend, which takes seconds, and reconfigures it
    use_deterministic_algorithms = torch._C._set_deterministic_algorithms
    use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = filled
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = fill
        use_deterministic_algorithms(enabled, warn_only=warn_only)


class _Filling(Listener):
    """Every new tensor of undefined contents holds the canary."""

    def heard(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        if name_of(func) in ALLOCATIONS and out.untyped_storage().nbytes() and not is_wide(out):
            held = storage_of(out, torch.uint8)
            held.copy_(_CANARY.to(out.device).repeat(-(-len(held) // len(_CANARY)))[: len(held)])
        return out


# -- what may only be read ---------------------------------------------------------------------------------------------


def _readable(inputs: Inputs) -> dict[str, Tensor]:
    """Everything that the kernel may read and must not write."""
    mask = inputs.mask
    named = {"q": inputs.q, "k": inputs.k, "v": inputs.v, "do": inputs.do, "attn_mask (boolean)": mask.allowed,
             "attn_mask (bias)": mask.bias, "key_lengths": mask.key_lengths}  # fmt: skip
    return {name: x for name, x in named.items() if x is not None}


def checksums(inputs: Inputs) -> dict[str, Tensor]:
    """A copy of every storage that the kernel may read, gaps included (`storage.bits_of`)."""
    return {name: bits_of(x).clone() for name, x in _readable(inputs).items()}


def inputs_unchanged(before: dict[str, Tensor], inputs: Inputs) -> Check:
    """Whether the kernel left alone what it may only read; what it changed is put back."""
    now = {name: bits_of(x) for name, x in _readable(inputs).items()}
    differ = at_once(*((before[name] != x).any() for name, x in now.items()))
    changed = [name for name, flag in zip(now, differ, strict=True) if flag]
    for name in changed:
        now[name].copy_(before[name])
    detail = f"the kernel wrote to its input {', '.join(changed)} (or to the memory around it)" if changed else ""
    return Check("inputs-unchanged", None, not changed, float(len(changed)), 0.0, detail)


# -- what results must not depend on -----------------------------------------------------------------------------------


Caller = Callable[..., Outputs]


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, int]:
    """How many elements of each tensor of `a` have other bits in `b`."""
    return dict(zip(a, map(int, at_once(*((~same_bits(x, b[name])).sum() for name, x in a.items()))), strict=True))


def repeated(
    implementation: Caller, case: Case, inputs: Inputs, values: dict[str, Tensor], judge: Callable[[str, Tensor], Check]
) -> list[Check]:  # fmt: skip
    """The same bits again, and from other contents of the memory that the kernel allocates.

    The other contents are finite: a maximum that swallows NaN does not swallow them.  That run is in torch's default
    mode, in which some operations are others.  Where it differs from the first, three more tell why; if it is because
    of these operations alone, `judge` says whether it is right.  Bits that change by themselves, as those of a sum by
    atomics may, can by chance follow the memory's contents once: only what does so again and again depends on them.
    """

    def again(*modes: AbstractContextManager[Any]) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]), ExitStack() as entered:
            torch.manual_seed(case.seed + 1)  # a result that draws random numbers is to draw others
            for mode in modes:
                entered.enter_context(mode)
            return implementation(case, inputs).tensors()

    def most(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
        return {name: max(n, b[name]) for name, n in a.items()}

    nothing = dict.fromkeys(values, 0)
    apart = by_itself = anew = by_memory = nothing
    try:
        other = again(_Filling())
        apart = differing(values, other)
        if any(apart.values()):
            by_itself = differing(other, again(_Filling()))
            anew = differing(values, again(known_memory()))
            held = again(known_memory(filled=False), _Filling())
            by_memory = differing(values, held)
            for _ in range(_AGAIN if any(by_memory.values()) else 0):
                anew = most(anew, differing(values, again(known_memory())))
                by_itself = most(by_itself, differing(held, again(known_memory(filled=False), _Filling())))
    except CompilerGaveUpError:
        return []
    except Exception as e:  # noqa: BLE001  (whatever a kernel does is a result)
        return [Check("repeat", None, False, 1.0, 0.0, f"a second run raised {describe(e)}")]
    checks = []
    for name, value in values.items():
        n = max(by_itself[name], anew[name])
        memory = by_memory[name] if n == 0 else 0
        size = f"of {value.numel()} elements of {name}"
        if apart[name] and not n and not memory and not (found := judge(name, other[name])).passed:
            checks.append(replace(found, name="repeat", detail=f"in torch's default mode {found.detail}"))
            continue
        checks.append(Check("repeat", name, n == 0, float(n), 0.0, f"{n} {size} differ between two runs" if n else ""))
        checks.append(Check("memory", name, memory == 0, float(memory), 0.0,
                            f"{memory} {size} depend on what was in memory before" if memory else ""))  # fmt: skip
    return checks


def kept(copies: dict[str, Tensor], first: Outputs) -> list[Check]:
    """Whether the results of the first call are still what they were, now that the function was called again."""
    checks = []
    now = first.to(copies["out"].device)
    for name, n in differing(now.tensors(), copies).items():
        detail = f"{n} elements of {name}, as returned, changed during a later call" if n else ""
        checks.append(Check("kept", name, n == 0, float(n), 0.0, detail))
    return checks


def alone(implementation: Caller, case: Case, inputs: Inputs, first: dict[str, Tensor]) -> list[Check]:
    """The same bits for a batch element alone."""
    try:
        with known_memory():
            result = implementation(case.with_(B=1), inputs.batch(0)).tensors()
    except RefusedError:  # one batch element: other cases have that too, and say so
        return []
    except Exception as e:  # noqa: BLE001  (whatever a kernel does is a result)
        return [Check("invariance", "out", False, 1.0, 0.0, f"batch element 0 alone: it raised {describe(e)}")]
    checks = []
    both = {name: value[:1] for name, value in first.items() if name in result}  # a case with one batch element says so
    for name, differ in differing(both, result).items():
        detail = f"{differ} elements of batch element 0 change when it is alone" if differ else ""
        checks.append(Check("batch-invariance", name, differ == 0, float(differ), 0.0, detail))
    return checks
