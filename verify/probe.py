"""What an implementation really does, measured with inputs that read the answer straight off the output."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..reference.masks import Mask
from .case import Case, MaskRecipe
from .implementation import Implementation
from .inputs import DTYPES, Inputs
from .outputs import Outputs, WrongResultError, describe

#: queries and head dimension of plain problems with 128 keys: a function may take one of them alone
_PLAINEST = ((128, 32), (128, 64), (1, 64), (128, 128))
#: what torch says of an operator that has no backward
_NO_BACKWARD = re.compile(r"no autograd formula was registered|derivative for \S+ is not implemented")


@dataclass(frozen=True, slots=True)
class Fact:
    """A question, what was measured, and what the signature's convention is."""

    question: str
    measured: str
    expected: str


def probe(implementation: Implementation, device: str) -> list[Fact]:
    """Facts, each by a run of its own; a question that the function cannot be asked says so."""
    return [
        Fact(
            "signature",
            f"{implementation.signature}, options: {', '.join(sorted(implementation.options)) or 'none'}",
            "sdpa or flash_attn",
        ),
        *(_dtype(implementation, device, name) for name in ("fp16", "bf16", "fp32")),
        _alignment(implementation, device),
        _empty_row(implementation, device),
        _lse_base(implementation, device),
        _grouping(implementation, device),
        _gradients(implementation, device),
    ]


def has_gradients(implementation: Implementation, device: str) -> bool:
    """Whether the output is connected to the inputs at all.  A forward-only kernel is tested for what it has.

    Asked on the plainest problem that it takes, since this is not the place to find faults.
    """
    for (M, D), dtype in itertools.product(_PLAINEST, ("fp16", "bf16", "fp32")):
        case = _case(dtype=dtype, M=M, N=128, D=D, backward=True)
        q, k = torch.ones(1, 1, M, D), torch.ones(1, 1, 128, D)
        try:
            _run(implementation, device, case, q, k, k)
        except WrongResultError as e:
            return "has no gradient" not in str(e)
        except NotImplementedError:
            return False
        except Exception as e:  # noqa: BLE001  (another dtype or shape may do; the survey will say what is wrong)
            if isinstance(e, RuntimeError) and _NO_BACKWARD.search(str(e)):
                return False
            continue
        return True
    return True


def _run(
    implementation: Implementation, device: str, case: Case, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None
) -> Outputs:
    dtype, where = DTYPES[case.dtype], torch.device(device)
    tensors = [x.to(dtype).to(where) for x in (q, k, v, torch.ones_like(q))]
    if implementation.layout == "bshd":
        tensors = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    given = mask or Mask(causal=case.mask.causal, alignment=case.mask.alignment)
    return implementation(case, Inputs(tensors[0], tensors[1], tensors[2], tensors[3], given))


def _case(**fields: object) -> Case:
    base: dict[str, object] = dict(
        B=1, H=1, HK=1, M=3, N=5, D=16, dtype="fp16", regime="normal", seed=0, backward=False
    )
    return Case(**{**base, **fields})  # type: ignore[arg-type]


def _reading(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Q = 0 and V = unit vectors: the output is the row of weights itself."""
    q, k = torch.zeros(1, case.H, case.M, case.D), torch.zeros(1, case.HK, case.N, case.D)
    return q, k, torch.eye(case.D)[: case.N].expand(1, case.HK, case.N, case.D)


def _measured(question: str, expected: str, measure: object) -> Fact:
    try:
        return Fact(question, str(measure()), expected)  # type: ignore[operator]
    except Exception as e:  # noqa: BLE001  (a refusal is an answer)
        return Fact(question, f"cannot: {describe(e)}", expected)


def _dtype(implementation: Implementation, device: str, name: str) -> Fact:
    case = _case(dtype=name, M=5)
    return _measured(
        f"takes {name}", "", lambda: f"yes, returns {_run(implementation, device, case, *_reading(case)).out.dtype}"
    )


def _alignment(implementation: Implementation, device: str) -> Fact:
    case = _case(mask=MaskRecipe(causal=True, alignment=implementation.alignment))

    def measure() -> str:
        seen = (_run(implementation, device, case, *_reading(case)).out[0, 0, 0, : case.N] != 0).sum().item()
        return {1: "top-left", 3: "bottom-right"}.get(int(seen), f"neither: query 0 of 3 sees {seen} of 5 keys")

    if implementation.lacks(case):
        return Fact("causal mask when M != N", "no causal option", "")
    return _measured("causal mask when M != N", implementation.alignment, measure)


def _empty_row(implementation: Implementation, device: str) -> Fact:
    boolean = "attn_mask" in implementation.options
    mask = MaskRecipe(boolean="random") if boolean else MaskRecipe(causal=True, alignment="bottom-right")
    case = _case(M=5, N=3, mask=mask)

    def measure() -> str:
        allowed = torch.ones(1, 1, 5, 3, dtype=torch.bool, device=device)
        allowed[0, 0, 0] = False
        given = Mask(allowed=allowed) if boolean else Mask(causal=True, alignment="bottom-right")
        row = _run(implementation, device, case, *_reading(case), mask=given).out[0, 0, 0]
        if torch.isnan(row).any():
            return "NaN"
        return (
            "0"
            if not row.any()
            else "mean of V"
            if torch.allclose(row[:3].float(), torch.tensor(1 / 3), atol=1e-2)
            else str(row[:3].tolist())
        )

    if implementation.lacks(case):
        return Fact("a query that sees no key", "no mask can make one", "")
    return _measured("a query that sees no key", "0", measure)


def _lse_base(implementation: Implementation, device: str) -> Fact:
    if implementation.lse_option is None:
        return Fact("log-sum-exp", "not returned", "")
    case = _case(N=8)

    def measure() -> str:
        lse = _run(implementation, device, case, *_reading(case)).lse
        assert lse is not None
        value = float(lse[0, 0, 0])
        return (
            "natural"
            if abs(value - 2.0794415) < 1e-3
            else "base 2"
            if abs(value - 3) < 1e-3
            else f"unknown: ln 8 came out as {value:g}"
        )

    return _measured("log-sum-exp", "natural", measure)


def _grouping(implementation: Implementation, device: str) -> Fact:
    case = _case(H=4, HK=2, M=1, N=1)

    def measure() -> str:
        q, k, _ = _reading(case)
        v = torch.arange(2.0).reshape(1, 2, 1, 1).expand(1, 2, 1, case.D)
        heads = _run(implementation, device, case, q, k, v).out[0, :, 0, 0].tolist()
        known = {"0011": "h // (H / HK)", "0101": "h % HK"}
        return known.get("".join(f"{h:.0f}" for h in heads), f"heads read {heads}")

    if implementation.lacks(case):
        return Fact("grouped-query heads", "not offered", "")
    return _measured("grouped-query heads", "h // (H / HK)", measure)


def _gradients(implementation: Implementation, device: str) -> Fact:
    case = _case(M=5, backward=True)

    def measure() -> str:
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(1, 1, 5, 16, generator=generator) for _ in range(3))
        result = _run(implementation, device, case, q, k, v)
        zero = [n for n, g in result.tensors().items() if n.startswith("d") and not g.any()]
        return f"yes, but {', '.join(zero)} is zero" if zero else "yes"

    return _measured("gradients", "", measure)
