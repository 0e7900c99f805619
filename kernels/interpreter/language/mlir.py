"""The pieces of MLIR's printed form: types, attributes, source locations (mlir.llvm.org/docs/LangRef)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

Attribute: TypeAlias = "int | float | bool | str | list[int]"


class ParseError(Exception):
    """TTIR that this reader does not know; the message shows the line."""


@dataclass(frozen=True, slots=True)
class Type:
    """A scalar (`shape == ()`) or tensor type; `element` is MLIR's name (`f32`, `i1`, `ptr<bf16>`)."""

    element: str
    shape: tuple[int, ...] = ()

    @property
    def is_pointer(self) -> bool:
        return self.element.startswith("ptr<")

    @property
    def is_float(self) -> bool:
        return self.element.startswith(("f", "bf"))

    @property
    def pointee(self) -> str:
        return self.element[4:-1].split(",")[0].strip()

    def __str__(self) -> str:
        return f"tensor<{'x'.join(map(str, self.shape))}x{self.element}>" if self.shape else self.element


@dataclass(frozen=True, slots=True)
class Location:
    """Where an operation comes from: (file, line) frames, innermost call first."""

    frames: tuple[tuple[str, int], ...] = ()

    def user_frame(self) -> tuple[str, int] | None:
        """The innermost frame outside Triton's own library."""
        outside = [f for f in self.frames if "/triton/language/" not in f[0]]
        return next(iter(outside or self.frames), None)

    def calls(self) -> str:
        """All frames outside Triton's own library, innermost first, as `tiles.py:38, from forward.py:80`."""
        outside = [f"{file.rpartition('/')[2]}:{line}" for file, line in self.frames if "/triton/language/" not in file]
        return ", from ".join(outside) or "unknown line"

    def __str__(self) -> str:
        frame = self.user_frame()
        return f"{frame[0]}:{frame[1]}" if frame else "unknown line"


# -- brackets, types and attributes ------------------------------------------------------------------------------------

_OPEN, _CLOSE = "<({[", ">)}]"
_OPEN_BRACKET = frozenset(_OPEN)
VALUE = re.compile(r"%[\w$.\-]+(?:#\d+)?")
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
LOCATION_USE = re.compile(r"\s*loc\((#loc\d*|unknown)\)\s*$")
LOCATION_DEFINITION = re.compile(r"^#loc(\d*) = loc\((.*)\)$")


def unescape(text: str) -> str:
    r"""The characters of a string literal: `\0A` is a byte in hexadecimal, `\\` a backslash."""
    raw = re.sub(rb"\\([0-9A-Fa-f]{2}|\\)", lambda m: b"\\" if m[1] == b"\\" else bytes([int(m[1], 16)]), text.encode())
    return raw.decode(errors="replace")


def split_top(text: str, separator: str = ",") -> list[str]:
    """Split at `separator` outside any bracket."""
    pieces = text.split(separator)
    if len(pieces) > 1 and not _OPEN_BRACKET.isdisjoint(text):
        joined, depth = [pieces[0]], _depth(pieces[0])
        for piece in pieces[1:]:
            if depth > 0:
                joined[-1] += separator + piece
            else:
                joined.append(piece)
            depth += _depth(piece)
        pieces = joined
    return [p for piece in pieces if (p := piece.strip())]


def _depth(text: str) -> int:
    """Brackets opened less brackets closed; the arrow `->` is none."""
    opened = text.count("<") + text.count("(") + text.count("{") + text.count("[")
    return opened - text.count(">") - text.count(")") - text.count("}") - text.count("]") + text.count("->")


@lru_cache(maxsize=4096)
def parse_type(text: str) -> Type:
    """`tensor<32x64x!tt.ptr<bf16>>`, `!tt.ptr<f32>`, `i32`, `!tt.tensordesc<...>`."""
    text = text.strip()
    if text.startswith("tensor<"):
        inner = text[7:-1]
        shape = []
        while (m := re.match(r"(\d+)x", inner)) is not None:
            shape.append(int(m[1]))
            inner = inner[m.end() :]
        return Type(parse_type(split_top(inner)[0]).element, tuple(shape))
    return Type(text.removeprefix("!tt."))


@lru_cache(maxsize=4096)
def parse_types(text: str) -> tuple[Type, ...]:
    """`(f32, i32)` or `f32, i32`."""
    text = text.strip()
    if text.startswith("(") and matching(text, 0) == len(text) - 1:
        text = text[1:-1]
    return tuple(parse_type(t) for t in split_top(text))


def matching(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] in _OPEN:
            depth += 1
        elif text[i] in _CLOSE and not (text[i] == ">" and text[i - 1] == "-"):
            depth -= 1
            if depth == 0:
                return i
    raise ParseError(f"unbalanced brackets in TTIR: {text}")


def parse_attribute(text: str, literals: Sequence[str] = ()) -> Attribute:
    """`1 : i32`, `true`, `array<i32: 1, 0>`, `"k"` for the k-th of `literals`, anything else as text."""
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    if m := re.match(r"array<i\d+(?::\s*(.*))?>$", text):
        return [int(x) for x in (m[1] or "").split(",") if x.strip()]
    value = split_top(text, " : ")[0]
    if m := re.fullmatch(r'"(\d+)"', value):
        return literals[int(m[1])]
    if re.fullmatch(r"-?\d+", value):
        return int(value)
    if re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", value):
        return float(value)
    return value


def parse_attributes(text: str, literals: Sequence[str] = ()) -> dict[str, Attribute]:
    """`axis = 1 : i32, reverse` -> {"axis": 1, "reverse": True}."""
    pairs = (item.partition("=") for item in split_top(text))
    return {k.strip(): parse_attribute(v, literals) if eq else True for k, eq, v in pairs}


# -- locations ---------------------------------------------------------------------------------------------------------


class Locations:
    """The locations defined at the end of a module, by their number; each is worked out when it is asked for."""

    def __init__(self, defined: dict[str, str]) -> None:
        self._defined = defined
        self._known: dict[str, Location] = {}

    def __getitem__(self, number: str) -> Location:
        """Of a number that the module does not define: unknown."""
        if number not in self._known:
            self._known[number] = self._resolved(self._defined.get(number, "unknown"))
        return self._known[number]

    def _resolved(self, text: str) -> Location:
        text = text.strip()
        if text.startswith("#loc"):
            return self[text[4:]]
        if text.startswith("callsite("):
            callee, _, caller = text[9:-1].partition(" at ")
            return Location(self._resolved(callee).frames + self._resolved(caller).frames)
        if m := re.match(r'^"(.*)":(\d+):\d+', text):
            return Location(((m[1], int(m[2])),))
        if m := re.match(r'^"[^"]*"\((.*)\)$', text):  # a named value: "acc"(#loc7)
            return self._resolved(m[1])
        return Location()
