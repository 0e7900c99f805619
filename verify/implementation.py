"""An attention function under test: how it is found, recognised, called, and what it does not claim.

Two signatures are known, recognised by their parameters: torch's `scaled_dot_product_attention` and flash_attn's
`flash_attn_func`.  Every option that a function's signature lacks is skipped and listed, everything it has is tested.
Conventions come with the signature: [B, H, S, D] and top-left causal masks for torch's, [B, S, H, D] and bottom-right
ones for flash_attn's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..kernels.interpreter import KernelError
from ..reference.masks import Mask
from .case import Alignment, Case, MaskRecipe
from .inputs import DTYPES, Inputs
from .isolation import contained, gave_up, settle_compiler
from .outputs import CompilerGaveUpError, LayoutRefusedError, Outputs, RefusedError, WrongResultError, describe
from .problems import UsageError
from .refusals import kind_of

Signature = Literal["sdpa", "flash_attn"]

_LSE_OPTIONS = ("return_lse", "return_softmax_lse", "return_attn_probs")
_WINDOW_OPTIONS = ("window", "window_size")
_KNOWN = {
    "sdpa": {"attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa", "window", "window_size", "alignment",
             "key_lengths", *_LSE_OPTIONS},
    "flash_attn": {"dropout_p", "softmax_scale", "causal", "window_size", "softcap", "alibi_slopes", "deterministic",
                   *_LSE_OPTIONS},
}  # fmt: skip
#: options that a signature may have and no case uses
UNTESTED = ("dropout_p", "softcap", "alibi_slopes", "deterministic")


@dataclass(frozen=True, slots=True)
class Implementation:
    """A function, its signature, and which of the signature's options it takes."""

    name: str
    function: Callable[..., Any]
    signature: Signature
    options: frozenset[str]
    has_backward: bool = True
    unbounded: int | None = None  # how its window option writes a side without a limit
    default_scale: float | None = None  # a number that stands for 1/sqrt(D), where it is one
    causal_unless_told: bool = False  # its causal option is on by default
    refused: frozenset[str] = frozenset()  # of what its signature has, and `lacks` names: what it was seen to refuse

    @property
    def alignment(self) -> Alignment:
        """Of its causal mask when M != N."""
        return "top-left" if self.signature == "sdpa" else "bottom-right"

    @property
    def layout(self) -> str:
        return "bhsd" if self.signature == "sdpa" else "bshd"

    @property
    def lse_option(self) -> str | None:
        return next((o for o in _LSE_OPTIONS if o in self.options), None)

    def conventions(self) -> dict[str, str]:
        """As the record's manifest shows them."""
        return {
            "signature": self.signature,
            "layout": self.layout,
            "causal_alignment": "either" if "alignment" in self.options else self.alignment,
            "masked_row": "zero",
            "options": ", ".join(sorted(self.options)),
        }

    def lacks(self, case: Case) -> str | None:
        """Why the case cannot be put to this function, or None.  Never a judgement, only its signature and refusals."""
        options, mask = self.options, case.mask
        needs_alignment = (mask.causal or mask.window is not None) and case.M != case.N
        window = any(o in options for o in _WINDOW_OPTIONS)
        causal = "is_causal" in options or "causal" in options
        usual = case.scale is not None and case.scale == self.default_scale
        scaled, grouped = options & {"scale", "softmax_scale"}, self.signature != "sdpa" or "enable_gqa" in options
        rules = (
            (mask.causal, causal, "a causal mask"),
            (mask.window is not None, window, "a sliding window"),
            (mask.boolean is not None, "attn_mask" in options, "a boolean mask"),
            (mask.bias is not None, "attn_mask" in options, "an additive bias"),
            (mask.key_lengths, options & {"key_lengths", "attn_mask"}, "key padding"),
            (
                needs_alignment, "alignment" in options or mask.alignment == self.alignment,
                f"{mask.alignment} alignment of causal masks and windows",
            ),
            (case.scale is not None, scaled, "a scale other than 1/sqrt(D)"),
            (usual, False, "a scale equal to the option's default"),
            (case.H != case.HK, grouped, "grouped-query heads"),
            (case.backward, self.has_backward, "gradients"),
        )  # fmt: skip
        return next((what for asked, taken, what in rules if asked and (not taken or what in self.refused)), None)

    # -- calling -------------------------------------------------------------------------------------------------------

    def __call__(
        self, case: Case, inputs: Inputs, gradients: tuple[str, ...] = ("dq", "dk", "dv"), *,
        dlse: Tensor | None = None, between: Inputs | None = None, twice: bool = False, lse: bool = True,
    ) -> Outputs:  # fmt: skip
        """Forward, and backward if the case asks for it.

        Only the `gradients` named are asked for; `dlse` [B, H, M] comes back through the LSE as well; between forward
        and backward the function is called on other inputs of the same shape, with other options; `twice` goes back
        over the same graph a second time, and has the gradients of that; `lse`: the LSE is asked for, if the function
        has one.

        Raises:
            RefusedError: the function does not take this problem and says so (`refusals`).
            LayoutRefusedError: that, if it takes the problem in contiguous tensors.
            WrongResultError: it returned something of the wrong kind.
            Exception: whatever else it raised.
        """
        with contained():
            try:
                outputs = self._run(case, inputs, gradients, dlse, between, twice, lse)
                if inputs.q.is_cuda:
                    torch.cuda.synchronize()  # what goes wrong on the device is raised here and not later
                return outputs
            except (WrongResultError, RefusedError):
                raise
            except Exception as e:
                if gave_up(e):
                    raise CompilerGaveUpError("torch.compile compiles no more variants of it in this process") from e
                if (kind := kind_of(e)) == "failure":
                    if case.empty and not isinstance(e, KernelError):
                        raise RefusedError(f"an empty sequence: {describe(e)}") from e  # loud, and nobody's result
                    raise
                raise (RefusedError if kind == "refusal" else LayoutRefusedError)(describe(e)) from e

    def _run(
        self, case: Case, inputs: Inputs, gradients: tuple[str, ...], dlse: Tensor | None, between: Inputs | None,
        twice: bool, with_lse: bool,
    ) -> Outputs:  # fmt: skip
        given = {"dq": inputs.q, "dk": inputs.k, "dv": inputs.v}
        leaves = [x.detach().requires_grad_(case.backward and n in gradients) for n, x in given.items()]
        with contained(), torch.set_grad_enabled(case.backward):  # it may be called again, and backward
            result = self.forward(case, inputs, leaves, lse=with_lse)
        out, raw_lse = self._unpack(result, case, inputs.q.device, with_lse=with_lse)
        lse = None if raw_lse is None else self._finished(raw_lse)
        if not case.backward:
            return Outputs(out.detach(), lse)
        constant = case.empty  # the output: to have no gradient is to have zeros
        if not out.requires_grad and not constant:
            raise WrongResultError("the output is not connected to q, k and v: it has no gradient")
        do = inputs.do if self.signature == "sdpa" else inputs.do.transpose(1, 2)
        results, backwards = [out if self.signature == "sdpa" else out.transpose(1, 2)], [do]
        if dlse is not None:
            if raw_lse is None or not raw_lse.requires_grad:
                raise RefusedError("the log-sum-exp is not connected to q and k: it has no gradient")
            results, backwards = [*results, raw_lse], [do, dlse]
        if between is not None:
            values = zip((between.q, between.k, between.v), leaves, strict=True)
            others = [x.detach().requires_grad_(leaf.requires_grad) for x, leaf in values]
            self.forward(*self._otherwise(case, between), others)
        asked = {n: leaf for n, leaf in zip(given, leaves, strict=True) if leaf.requires_grad}
        if not out.requires_grad:
            return Outputs(out.detach(), lse, **{n: torch.zeros_like(x) for n, x in asked.items()})
        found = _differentiated(results, asked, backwards, constant=constant, retain=twice)
        return Outputs(out.detach(), lse, **(_again(results, asked, backwards, constant) if twice else found))

    def _otherwise(self, case: Case, inputs: Inputs) -> tuple[Case, Inputs]:
        """Another scale, and no mask where there was one, a causal one where there was none; as far as it has these."""
        scaled = case.with_(scale=1.25 * case.softmax_scale)
        other = scaled if self.lacks(scaled) is None else case
        mask = Mask(causal=not case.mask.kinds(), alignment=self.alignment)
        masked = other.with_(mask=MaskRecipe(causal=mask.causal, alignment=mask.alignment))
        return (masked, replace(inputs, mask=mask)) if self.lacks(masked) is None else (other, inputs)

    def forward(self, case: Case, inputs: Inputs, leaves: Sequence[Tensor], *, lse: bool = True) -> Any:
        """What the function returns for `leaves`: q, k, v in [B, H, S, D] order; `lse`: with its LSE, if it has one."""
        settle_compiler()
        options = self.arguments(case, inputs)
        if not lse:
            options.pop(self.lse_option or "", None)
        if self.signature == "flash_attn":
            leaves = [x.transpose(1, 2) for x in leaves]
        return self.function(*leaves, **options)

    def arguments(self, case: Case, inputs: Inputs) -> dict[str, Any]:
        """The keyword arguments that put the case to this function; all masks but the plain ones become `attn_mask`."""
        return self._flash_attn_options(case) if self.signature == "flash_attn" else self._sdpa_options(case, inputs)

    def _flash_attn_options(self, case: Case) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if case.mask.causal or self.causal_unless_told:
            options["causal"] = case.mask.causal
        if case.scale is not None:
            options["softmax_scale"] = case.scale
        if case.mask.window is not None:
            options["window_size"] = self._window(case.mask.window)
        if self.lse_option:
            options[self.lse_option] = True
        return options

    def _sdpa_options(self, case: Case, inputs: Inputs) -> dict[str, Any]:
        options: dict[str, Any] = {}
        mask = inputs.mask
        causal, allowed, bias = mask.causal, mask.allowed, mask.bias
        if mask.key_lengths is not None:
            if "key_lengths" in self.options:
                options["key_lengths"] = mask.key_lengths
            else:  # as torch's users do it: a boolean mask [B, 1, 1, N]
                keys = torch.arange(case.N, device=mask.key_lengths.device)
                padding = keys < mask.key_lengths[:, None, None, None]
                allowed = padding if allowed is None else allowed & padding
        if causal and "alignment" not in self.options and (allowed is not None or bias is not None):
            # torch takes either is_causal or attn_mask, not both
            triangle = torch.ones(case.M, case.N, dtype=torch.bool, device=inputs.q.device).tril()
            allowed = triangle if allowed is None else allowed & triangle
            causal = False
        if bias is not None:
            bias = bias if allowed is None else bias.masked_fill(~allowed, float("-inf"))
            options["attn_mask"] = bias
        elif allowed is not None:
            options["attn_mask"] = allowed
        if causal or self.causal_unless_told:
            options["is_causal"] = causal
        if case.scale is not None:
            options["scale"] = case.scale
        if case.H != case.HK:
            options["enable_gqa"] = True
        if case.mask.window is not None:
            options[next(o for o in _WINDOW_OPTIONS if o in self.options)] = self._window(case.mask.window)
        if "alignment" in self.options:
            options["alignment"] = case.mask.alignment
        if self.lse_option:
            options[self.lse_option] = True
        return options

    def _window(self, window: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
        """The window as the function's own default writes an unbounded side: -1 or None."""
        left, right = (self.unbounded if w is None else w for w in window)
        return left, right

    def _unpack(
        self, result: Any, case: Case, device: torch.device, *, with_lse: bool
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        lse, asked = None, self.lse_option if with_lse else None
        if isinstance(result, (tuple, list)) and result:
            lse = result[1] if len(result) > 1 and asked else None
            result = result[0]
        if not isinstance(result, Tensor):
            raise WrongResultError(f"the function returned {type(result).__name__}, not a tensor")
        shape = (case.B, case.H, case.M, case.D)
        out = result
        if self.signature == "flash_attn" and result.dim() == 4:
            out = result.transpose(1, 2)
        if tuple(out.shape) != shape:
            raise WrongResultError(f"the output has shape {tuple(out.shape)}, not {shape} (in [B, H, M, D] order)")
        if out.dtype != DTYPES[case.dtype]:
            raise WrongResultError(f"the output is {out.dtype}, not the inputs' {DTYPES[case.dtype]}")
        if out.device != device:
            raise WrongResultError(f"the output is on {out.device}, the inputs are on {device}")
        if asked is not None:
            if not isinstance(lse, Tensor):
                raise WrongResultError(f"{asked}=True returned no log-sum-exp")
            if tuple(lse.shape) != shape[:3]:
                raise WrongResultError(f"the log-sum-exp has shape {tuple(lse.shape)}, not {shape[:3]}")
            if lse.device != device:
                raise WrongResultError(f"the log-sum-exp is on {lse.device}, the inputs are on {device}")
        return out, lse

    def _finished(self, lse: Tensor) -> Tensor:
        """FlashAttention 2 writes +inf for a query that sees no key, 3 writes -inf."""
        lse = lse.detach()
        return torch.where(lse == float("inf"), float("-inf"), lse) if self.signature == "flash_attn" else lse


def _differentiated(
    results: list[Tensor], leaves: dict[str, Tensor], backwards: list[Tensor], *, constant: bool, retain: bool = False
) -> dict[str, Tensor]:  # fmt: skip
    """The gradients by name; one of another shape is a wrong result, as is a missing one of no `constant`."""
    tensors = list(leaves.values())
    found: tuple[Tensor | None, ...]
    try:
        found = torch.autograd.grad(results, tensors, backwards, allow_unused=True, retain_graph=retain)
    except RuntimeError as e:
        if "incompatible with .grad()" not in str(e):  # as checkpoints are that run the forward pass again
            raise
        torch.autograd.backward(results, backwards, retain_graph=retain)
        found = tuple(x.grad for x in tensors)
        for x in tensors:
            x.grad = None
    gradients = {}
    for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
        if gradient is None and constant:
            gradient = torch.zeros_like(leaf)
        if gradient is None:
            raise WrongResultError(f"{name} is missing: the output does not depend on that input")
        if gradient.shape != leaf.shape:
            raise WrongResultError(f"{name} has shape {tuple(gradient.shape)}, not {tuple(leaf.shape)}")
        gradients[name] = gradient
    return gradients


def _again(
    results: list[Tensor], leaves: dict[str, Tensor], backwards: list[Tensor], constant: bool
) -> dict[str, Tensor]:  # fmt: skip
    """The gradients of a second backward.  A function may free its buffers in the first: then it raises whatever."""
    try:
        return _differentiated(results, leaves, backwards, constant=constant)
    except (KernelError, WrongResultError):
        raise
    except Exception as e:
        raise RefusedError(f"a second backward: {describe(e)}") from e


# ---------------------------------------------------------------------------------------------------------------------
# recognising a function


def recognise(name: str, function: Callable[..., Any], *, has_backward: bool = True) -> Implementation:
    """An `Implementation` from a function, by its parameters.

    Raises:
        UsageError: when its signature is neither of the two that are known.
    """
    try:
        parameters = parameters_of(function)
    except (TypeError, ValueError):
        raise UsageError(f"{name} has no readable signature; wrap it in a Python function") from None
    names = set(parameters)
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    flash_attn = bool(names & {"softmax_scale", "causal", "window_size"}) and not names & {"is_causal", "attn_mask"}
    signature: Signature = "flash_attn" if flash_attn else "sdpa"
    required = [
        p.name for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(positional) < 3 or len(required) > 3 or any(r not in [p.name for p in positional[:3]] for r in required):
        raise UsageError(
            f"{name}({', '.join(parameters)}) has a foreign signature: expected torch's "
            "scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, ...) "
            "or flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), ...)"
        )
    options = frozenset(names & _KNOWN[signature])
    windows = {o: parameters[o].default for o in _WINDOW_OPTIONS if o in options}
    options -= {o for o, default in windows.items() if isinstance(default, (int, float))}  # one number: of which side?
    default = next((windows[o] for o in _WINDOW_OPTIONS if o in options), None)
    written_as = -1 if isinstance(default, (tuple, list)) and -1 in default else None
    if default is None and signature == "flash_attn":
        written_as = -1
    scale = next((parameters[o].default for o in ("scale", "softmax_scale") if o in options), None)
    causal = next((parameters[o].default for o in ("is_causal", "causal") if o in options), False)
    return Implementation(name, function, signature, options, has_backward, written_as,
                          scale if isinstance(scale, (int, float)) else None, causal is True)  # fmt: skip


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Of a function, of a module's `forward`, or of what TorchScript or torch's compiler made of one."""
    if isinstance(function, torch.jit.ScriptFunction):
        schema: Any = function.schema  # a property, which its stub takes for a method
        kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
        return {
            a.name: inspect.Parameter(a.name, kind, default=a.default_value if a.has_default_value() else empty)
            for a in schema.arguments
        }
    function = getattr(function, "_orig_mod", function)  # of a module that was compiled
    called = function.forward if isinstance(function, torch.nn.Module) else function
    return inspect.signature(called).parameters
