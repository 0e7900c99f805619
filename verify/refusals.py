"""Did a function refuse a problem, or did it fail?  Only a failure counts against it.

A refusal is deliberate: a `raise` or `assert` statement of the function's own code, of a kind that Python keeps for
arguments, whatever it says; or of any other kind, if it speaks of what is required or supported.  What else is raised,
by libraries and compiled code too, says itself whether something is unsupported; words that may also speak of an
accident count there only if they name a dimension of attention, or if the layout of the inputs turns out to be what was
meant.
"""

from __future__ import annotations

import dis
import re
import sys
from typing import Literal

from ..kernels.interpreter import KernelError

Kind = Literal["refusal", "layout", "failure"]

_PLAIN = re.compile(
    r"not (yet |currently )?(support|implement|allow)|unsupported|only (support|accept|work)|no viable"
    r"|no available kernel|no kernel found|divisible|multiple of|power of (two|2)",
    re.IGNORECASE,
)
_DIMENSION = re.compile(
    r"(head|dim|seq|batch|length).*(must|should) (be|have)|(must|should) (be|have).*(head|dim|seq|batch|length)",
    re.IGNORECASE | re.DOTALL,
)
_LAYOUT = re.compile(r"contiguous|strides?\b(?!=)|aligned", re.IGNORECASE)  # a dump says stride=...
_VAGUE = re.compile(r"(must|should) (be|have)|requires?\b", re.IGNORECASE)
_OF_ARGUMENTS = (ValueError, TypeError, AssertionError)
#: packages whose own `raise` may mean that they were used wrongly
_LIBRARIES = {"torch", "triton", "numpy", "einops", "jax", "flashproof"} | sys.stdlib_module_names


def kind_of(e: Exception) -> Kind:
    """What an exception that a call raised means; `layout`: a refusal if the same call on contiguous inputs runs."""
    if isinstance(e, KernelError):
        return "failure"
    if isinstance(e, NotImplementedError) or _of_torchs_compiler(e) or _of_a_kernels_author(e):
        return "refusal"
    text = str(e)
    if _of_its_own(e) and (isinstance(e, _OF_ARGUMENTS) or is_plain(text) or _VAGUE.search(text)):
        return "refusal"
    if not isinstance(e, (ValueError, RuntimeError, AssertionError)):
        return "failure"
    if _LAYOUT.search(text):
        return "layout"
    if is_plain(text):
        return "refusal"
    return "layout" if _VAGUE.search(text) else "failure"


def is_plain(text: str) -> bool:
    """Whether an error's words say, whatever else, that something is not supported."""
    return bool(_PLAIN.search(text) or _DIMENSION.search(text))


def _of_torchs_compiler(e: Exception) -> bool:
    """Whether `torch.compile(fullgraph=True)` says that it cannot; without a GPU, Triton kernels are beyond it."""
    return (type(e).__module__, type(e).__name__) == ("torch._dynamo.exc", "Unsupported")


def _of_a_kernels_author(e: Exception) -> bool:
    """Whether a Triton kernel's own `tl.static_assert` stopped its compilation."""
    return (type(e).__module__, type(e).__name__) == ("triton.compiler.errors", "CompileTimeAssertionFailure")


def _of_its_own(e: Exception) -> bool:
    """Whether it arose in a `raise` or `assert` statement outside the libraries."""
    trace = e.__traceback__
    if trace is None:  # compiled code, called from no Python at all
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    frame = trace.tb_frame
    if str(frame.f_globals.get("__name__", "")).partition(".")[0] in _LIBRARIES:
        return False
    at = (i.opname for i in dis.get_instructions(frame.f_code) if i.offset == trace.tb_lasti)
    return next(at, "") == "RAISE_VARARGS"
