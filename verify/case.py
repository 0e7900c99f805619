"""The recipe of one attention problem: frozen, serialisable, and the same bits on any machine.

A case never holds a tensor.  `inputs.build` turns it into tensors; its values come from the case's own seed.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .problems import UsageError

DType = Literal["fp16", "bf16", "fp32"]
Alignment = Literal["top-left", "bottom-right"]
Layout = Literal["contiguous", "bshd", "packed", "gaps", "columns", "mixed", "expanded", "far"]
BooleanMask = Literal["random", "empty-rows", "first-tile", "documents", "band"]
Bias = Literal["random", "large", "hidden", "alibi", "lowest"]

#: unit roundoff of each dtype: half the distance from 1 to the next number
UNIT_ROUNDOFF: dict[DType, float] = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-24}


@dataclass(frozen=True, slots=True)
class MaskRecipe:
    """Which keys a query sees; every part that is present applies.

    causal, window: relative to the diagonal c of query i, which is i (top-left) or i + N - M (bottom-right):
        causal hides keys after c, a window (left, right) those outside [c - left, c + right]; None is unbounded.
    boolean: a drawn mask; `empty-rows` hides every key from some queries, `first-tile` the first 32, 64, 128 or 256
        keys from all; with `documents` a sequence is several, and a query sees the keys of its own; `band` is a
        causal sliding window, written as a mask.
    bias: a drawn additive bias; `large` is large enough for its exponential to overflow, `hidden` has some -inf,
        `alibi` falls linearly with the distance; `lowest` is 0 where a query may look and the dtype's lowest number
        elsewhere, as models write causal masks of sequences that are padded on the left: a query in the padding sees
        nothing but that number.
    key_lengths: per batch, only so many first keys exist (drawn, 0 included).
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    alignment: Alignment = "top-left"
    boolean: BooleanMask | None = None
    bias: Bias | None = None
    key_lengths: bool = False

    def kinds(self) -> tuple[str, ...]:
        """The names of the parts, as a report shows them."""
        aligned = f"-{'br' if self.alignment == 'bottom-right' else 'tl'}"
        parts = (
            ("causal" + aligned) if self.causal else None,
            ("window" + aligned) if self.window is not None else None,
            "boolean" if self.boolean else None,
            "bias" if self.bias else None,
            "padding" if self.key_lengths else None,
        )
        return tuple(p for p in parts if p)

    def __str__(self) -> str:
        return "+".join(self.kinds()) or "none"


@dataclass(frozen=True, slots=True)
class Case:
    """One problem: q [B, H, M, D], k and v [B, HK, N, D], dO [B, H, M, D].

    `scale` None is 1/sqrt(D); `regime` names how the values are drawn (see `regimes`).
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    B: int
    H: int
    HK: int
    M: int
    N: int
    D: int
    dtype: DType
    regime: str
    seed: int
    scale: float | None = None
    mask: MaskRecipe = field(default_factory=MaskRecipe)
    layout: Layout = "contiguous"
    backward: bool = True

    def __post_init__(self) -> None:
        for name in ("B", "H", "HK", "D"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("M", "N", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.H % self.HK:
            raise ValueError(f"HK = {self.HK} key/value heads must divide H = {self.H} query heads")
        if self.scale is not None and not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite, not {self.scale}")
        if self.mask.window is not None and any(w is not None and w < 0 for w in self.mask.window):
            raise ValueError(f"window extents must be None or >= 0, not {self.mask.window}")

    @property
    def softmax_scale(self) -> float:
        return 1.0 / math.sqrt(self.D) if self.scale is None else self.scale

    @property
    def empty(self) -> bool:
        """Whether there is no query or no key."""
        return self.M * self.N == 0

    @property
    def unit_roundoff(self) -> float:
        return UNIT_ROUNDOFF[self.dtype]

    @property
    def id(self) -> str:
        """16 hex digits that name the recipe."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def with_(self, **changes: Any) -> Case:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: a window is a list."""
        fields = asdict(self)
        if self.mask.window is not None:
            fields["mask"]["window"] = list(self.mask.window)
        return fields

    def to_json(self) -> str:
        """Canonical JSON: the argument of `flashproof replay`."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def __str__(self) -> str:
        heads = f"H{self.H}" if self.H == self.HK else f"H{self.H}/{self.HK}"
        scale = "" if self.scale is None else f" scale={self.scale:g}"
        return (
            f"{self.dtype} B{self.B} {heads} M{self.M} N{self.N} D{self.D} mask={self.mask} regime={self.regime}"
            f" layout={self.layout}{scale} seed={self.seed}"
        )


_ADAPTER = TypeAdapter(Case)


def parse_case(text: str) -> Case:
    """A case from JSON text, from a file holding it, or from a finding's file.

    Raises:
        UsageError: with what is wrong, in one line.
    """
    source = text.strip()
    if not source.startswith("{"):
        path = Path(source)
        try:
            source = path.read_text()
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(f"no case: {text!r} is neither a JSON object nor a readable file ({e})") from e
    try:
        data = json.loads(source)
    except (json.JSONDecodeError, RecursionError) as e:
        raise UsageError(f"not a case: not JSON ({e})") from e
    if not isinstance(data, dict):
        raise UsageError(
            f"not a case: expected a JSON object, as in the `replay` line of a finding, not {type(data).__name__}"
        )
    if isinstance(data.get("case"), dict):  # a finding
        data = data["case"]
    return case_of(data)


def case_of(data: dict[str, Any]) -> Case:
    """A case from the dictionary that a record has of it.

    Raises:
        UsageError: with what is wrong, in one line.
    """
    try:
        return _ADAPTER.validate_json(json.dumps(data))
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        message = "unknown key" if first["type"] == "unexpected_keyword_argument" else first["msg"]
        raise UsageError(f"not a case: {where + ': ' if where else ''}{message}") from e
