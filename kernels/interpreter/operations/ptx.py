"""Inline assembly (`tl.inline_asm_elementwise`): the straight-line PTX that kernels use for single instructions.

A register holds bits, as uint64, for all elements at once; an instruction's type says what they mean.  Approximate
instructions give the correctly rounded result, which lies within their error (PTX ISA, "approx").  Memory accesses,
branches and whatever else is not here are refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UnsupportedOperationError
from ..language.ttir import Op
from ..numbers.arithmetic import Arithmetic
from ..numbers.formats import STORAGE, Array, decode, encode, saturate
from .context import Context, Maker, Run
from .libdevice import leading_zeros, reversed_bits, set_bits

_FLOAT = {"f16": "f16", "bf16": "bf16", "f32": "f32", "f64": "f64"}
_PACKED = {"f16x2": "f16", "bf16x2": "bf16"}
_FP8 = {"e4m3x2": "f8E4M3FN", "e5m2x2": "f8E5M2"}
#: they order threads, or time; nothing here runs at the same time
_IDLE = ("griddepcontrol", "bar", "barrier", "membar", "fence", "nanosleep")
_SPECIAL = {"%smid": 0, "%laneid": 0, "%warpid": 0, "%nsmid": 1}
_COMPARE: dict[str, Any] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
_ADDITIVE: dict[str, Any] = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}
_BITWISE: dict[str, Any] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
_APPROXIMATE = {
    "ex2": "exp2",
    "lg2": "log2",
    "sin": "sin",
    "cos": "cos",
    "tanh": "tanh",
    "sqrt": "sqrt",
    "rsqrt": "rsqrt",
}
_ROUNDED = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


class _RefusedError(Exception):
    """An instruction that is not known."""


def _width(kind: str) -> int:
    if kind == "pred":
        return 1
    if kind in _PACKED:
        return 32
    return int(re.sub(r"^[a-z]+", "", kind))


@dataclass(slots=True)
class _Machine:
    """Registers by name, and how an instruction reads and writes them."""

    arithmetic: Arithmetic
    registers: dict[str, Array] = field(default_factory=dict)

    def bits(self, name: str) -> Array:
        if name.startswith("{"):
            parts = [p.strip() for p in name.strip("{}").split(",")]
            raise _RefusedError(f"a vector of {len(parts)} registers")
        if name in self.registers:
            return self.registers[name]
        if name in _SPECIAL:
            return np.array([_SPECIAL[name]], np.uint64)
        if m := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})|0[dD]([0-9A-Fa-f]{16})", name):
            return np.array([int(m[1] or m[2], 16)], np.uint64)
        if re.fullmatch(r"-?(0[xX][0-9A-Fa-f]+|\d+)U?", name):
            return np.array([int(name.rstrip("U"), 0) & (2**64 - 1)], np.uint64)
        raise _RefusedError(f"the operand {name}")

    def read(self, name: str, kind: str) -> Array:
        """The operand as numbers: carried floats, or integers of the type's width and sign."""
        if kind in _FLOAT and re.fullmatch(r"-?\d+\.\d*(e[+-]?\d+)?", name):
            return self.arithmetic.constant(float(name), kind)
        bits = self.bits(name)
        if kind == "pred":
            return np.asarray(bits != 0)
        raw = bits.astype(f"u{_width(kind) // 8}")
        if kind in _FLOAT:
            return decode(raw.view(STORAGE[kind]), kind)
        return raw.view(f"i{raw.dtype.itemsize}") if kind[0] == "s" else raw

    def read_pair(self, name: str, kind: str) -> tuple[Array, Array]:
        raw = self.bits(name).astype(np.uint32)
        element = _PACKED[kind]
        low, high = (raw & np.uint32(0xFFFF)).astype(np.uint16), (raw >> np.uint32(16)).astype(np.uint16)
        return decode(low.view(STORAGE[element]), element), decode(high.view(STORAGE[element]), element)

    def write(self, name: str, values: Array, kind: str, where: Array | None) -> None:
        if kind in _FLOAT:
            values = encode(values, kind)
        values = np.ascontiguousarray(values)
        if values.dtype != np.bool_:
            values = values.view(f"u{values.dtype.itemsize}")
        bits = values.astype(np.uint64)
        if where is not None:
            bits = np.where(where, bits, self.registers.get(name, np.zeros(1, np.uint64)))
        self.registers[name] = bits

    # -- instructions --------------------------------------------------------------------------------------------------

    def execute(self, statement: str) -> None:
        guard = None
        if m := re.match(r"@(!?)([%\w$]+)\s+(.*)$", statement, re.DOTALL):
            guard = self.read(m[2], "pred") ^ bool(m[1])
            statement = m[3]
        opcode, _, rest = statement.partition(" ")
        words = opcode.split(".")
        operands = [o.strip() for o in re.split(r",(?![^{]*\})", rest)] if rest.strip() else []
        if words[0] in _IDLE or opcode in ("", ".reg"):
            return
        if words[0] == "mov":
            self.move(words[-1], operands, guard)
        elif words[0] == "setp":
            a, b = (self.read(o, words[-1]) for o in operands[1:])
            self.write(operands[0], _COMPARE[words[1]](a, b), "pred", guard)
        elif words[0] == "selp":
            a, b = (self.read(o, words[-1]) for o in operands[1:3])
            self.write(operands[0], np.where(self.read(operands[3], "pred"), a, b), words[-1], guard)
        elif words[0] == "cvt":
            self.convert(words[1:], operands, guard)
        elif words[-1] in _PACKED:
            element = _PACKED[words[-1]]
            pairs = zip(*(self.read_pair(o, words[-1]) for o in operands[1:]), strict=True)
            low, high = (encode(self.floating(words[:-1], list(p), element), element) for p in pairs)
            self.write(operands[0], _join(low, high, 16), "u32", guard)
        elif words[-1] in _FLOAT:
            values = [self.read(o, words[-1]) for o in operands[1:]]
            self.write(operands[0], self.floating(words[:-1], values, words[-1]), words[-1], guard)
        else:
            out = _integer(
                words, [self.bits(o) if words[0] == "lop3" else self.read(o, words[-1]) for o in operands[1:]]
            )
            self.write(operands[0], out, words[-1], guard)

    def move(self, kind: str, operands: list[str], guard: Array | None) -> None:
        target, source = operands
        half = _width(kind)
        if source.startswith("{"):
            parts = [p.strip() for p in source.strip("{}").split(",")]
            half //= len(parts)
            bits = np.zeros(1, np.uint64)
            for i, part in enumerate(parts):
                bits = bits | (self.bits(part) & np.uint64(2**half - 1)) << np.uint64(i * half)
            self.write(target, bits, "u64", guard)
        elif target.startswith("{"):
            parts = [p.strip() for p in target.strip("{}").split(",")]
            half //= len(parts)
            for i, part in enumerate(parts):
                self.write(part, self.bits(source) >> np.uint64(i * half) & np.uint64(2**half - 1), "u64", guard)
        else:
            self.write(target, self.read(source, kind) if kind in _FLOAT else self.bits(source), kind, guard)

    def floating(self, words: list[str], x: list[Array], element: str) -> Array:
        name, binary, unary = words[0], self.arithmetic.binary, self.arithmetic.unary
        if set(words) & {"rz", "rm", "rp", "sat", "relu", "xorsign"}:
            raise _RefusedError(".".join([*words, element]))
        flush = (lambda v: np.where(np.abs(v) < 2.0**-126, v * 0, v)) if "ftz" in words and element == "f32" else None
        x = [flush(v) for v in x] if flush else x
        if name in ("add", "sub", "mul", "div"):
            out = binary(name, x[0], x[1], element)
        elif name in ("max", "min"):
            out = binary(f"{name}imum" if "NaN" in words else f"{name}num", x[0], x[1], element)
        elif name in ("fma", "mad"):
            out = self.arithmetic.fma(x[0], x[1], x[2], element)
        elif name == "rcp":
            out = binary("div", self.arithmetic.constant(1.0, element), x[0], element)
        elif name in ("abs", "neg"):
            out = unary(name, x[0], element)
        elif name in _APPROXIMATE:
            out = unary(_APPROXIMATE[name], x[0], element)
        else:
            raise _RefusedError(".".join([*words, element]))
        return flush(out) if flush else out

    def convert(self, words: list[str], operands: list[str], guard: Array | None) -> None:
        *modes, target, source = words
        zero = "rz" in modes
        if target in _PACKED or target in _FP8:
            element = _PACKED.get(target) or _FP8[target]
            if source in _PACKED:
                low, high = self.read_pair(operands[1], source)
                source = _PACKED[source]
            else:
                high, low = (self.read(o, source) for o in operands[1:])
            narrow = [self.arithmetic.cast(v, source, element, toward_zero=zero) for v in (low, high)]
            if "relu" in modes:
                narrow = [np.where(v > 0, v, 0 * v) for v in narrow]
            low, high = (encode(v, element) for v in narrow)
            self.write(operands[0], _join(low, high, 8 * low.dtype.itemsize), "u32", guard)
        elif set(modes) - {"rn", "rz", "ftz", *_ROUNDED} or not re.fullmatch(r"(b?f|[su])\d+", target):
            raise _RefusedError(".".join(["cvt", *words]))
        else:
            x = self.read(operands[1], source)
            if source in _FLOAT and target in _FLOAT:
                x = self.arithmetic.cast(x, source, target, toward_zero=zero)
            elif target in _FLOAT:
                x = self.arithmetic.cast(x.astype(np.float64), "f64", target, toward_zero=zero)
            elif source in _FLOAT:
                mode = next((m for m in modes if m in _ROUNDED), None)
                if mode is None:
                    raise _RefusedError(".".join(["cvt", *words]))
                x = saturate(_ROUNDED[mode](x), np.dtype(f"{'i' if target[0] == 's' else 'u'}{_width(target) // 8}"))
            else:
                x = x.astype(f"{'i' if target[0] == 's' else 'u'}{_width(target) // 8}")
            self.write(operands[0], x, target, guard)


def _join(low: Array, high: Array, bits: int) -> Array:
    return low.view(f"u{low.dtype.itemsize}").astype(np.uint32) | (
        high.view(f"u{high.dtype.itemsize}").astype(np.uint32) << np.uint32(bits)
    )


def _integer(words: list[str], x: list[Array]) -> Array:
    name, kind = words[0], words[-1]
    if name in ("add", "sub", "min", "max") and len(words) == 2:
        return np.asarray(_ADDITIVE[name](*x))
    if name in ("mul", "mad") and words[1] in ("lo", "wide"):
        wide = f"{x[0].dtype.kind}{min(8, x[0].dtype.itemsize * (2 if words[1] == 'wide' else 1))}"
        product = x[0].astype(wide) * x[1].astype(wide)
        return np.asarray(product if name == "mul" else product + x[2].astype(wide))
    if name in _BITWISE:
        return np.asarray(_BITWISE[name](*x))
    if name == "not":
        return np.invert(x[0])
    if name in ("neg", "abs"):
        return np.negative(x[0]) if name == "neg" else np.abs(x[0])
    if name in ("shl", "shr"):
        by, width = x[1].astype(np.uint64), np.uint64(8 * x[0].dtype.itemsize)
        by = np.minimum(by, width).astype(x[0].dtype)  # numpy shifts all bits out at the width
        return np.left_shift(x[0], by) if name == "shl" else np.right_shift(x[0], by)
    if name in ("popc", "clz", "brev"):
        signed = x[0].view(f"i{x[0].dtype.itemsize}")
        return {"popc": set_bits, "clz": leading_zeros, "brev": reversed_bits}[name](signed)
    if name == "lop3":
        a, b, c = (v.astype(np.uint32) for v in x[:3])
        table, out = int(x[3].flat[0]), np.zeros(1, np.uint32)
        for i in range(8):
            if table >> i & 1:
                out = out | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        return out
    if name in ("bfe", "prmt", "bfi") and kind in ("u32", "b32"):
        return _fields(name, x)
    raise _RefusedError(".".join(words))


def _fields(name: str, x: list[Array]) -> Array:
    one, wide = np.uint64(1), [v.astype(np.uint64) for v in x]
    if name == "prmt":
        pool = wide[0] | wide[1] << np.uint64(32)
        out = np.zeros(1, np.uint64)
        for i in range(4):
            pick = wide[2] >> np.uint64(4 * i)
            byte = pool >> ((pick & np.uint64(7)) * np.uint64(8)) & np.uint64(255)
            byte = np.where(pick & np.uint64(8), (byte >> np.uint64(7)) * np.uint64(255), byte)
            out = out | byte << np.uint64(8 * i)
        return out.astype(np.uint32)
    position, length = (np.minimum(v & np.uint64(255), np.uint64(32)) for v in wide[-2:])
    mask = (one << length) - one
    if name == "bfe":
        return np.asarray(wide[0] >> position & mask, np.uint32)
    return np.asarray(wide[1] & ~(mask << position) | (wide[0] & mask) << position, np.uint32)


# -- the operation -----------------------------------------------------------------------------------------------------


def _statements(text: str) -> list[str]:
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    pieces = (re.sub(r"\s+", " ", piece).strip() for piece in text.split(";"))
    found = []
    for piece in pieces:
        piece = re.sub(r"^[{}\s]+", "", piece)
        if piece:
            found.append(piece)
    return found


def _to_registers(x: Array, element: str, pack: int) -> list[Array]:
    """`(lanes, n)` elements -> registers of `(lanes, n / pack)`; several small elements share one of 32 bits."""
    raw = np.ascontiguousarray(encode(x, element))
    raw = raw.view(f"u{raw.dtype.itemsize}").astype(np.uint64).reshape(x.shape[0], -1, pack)
    bits = 8 * STORAGE[element].itemsize
    share = min(pack, max(1, 32 // bits)) if pack > 1 else 1
    columns = [raw[:, :, k] for k in range(pack)]
    joined = []
    for k in range(0, pack, share):
        register = columns[k]
        for j in range(1, share):
            register = register | columns[k + j] << np.uint64(j * bits)
        joined.append(register)
    return joined


def _from_registers(registers: list[Array], element: str, pack: int, lanes: int, shape: tuple[int, ...]) -> Array:
    dtype = STORAGE[element]
    bits = 8 * dtype.itemsize
    share = pack // len(registers)
    groups = int(np.prod(shape)) // pack
    columns = [np.broadcast_to(r, (lanes, groups)) >> np.uint64(j * bits) for r in registers for j in range(share)]
    raw = np.stack(columns, axis=-1).astype(f"u{dtype.itemsize}").reshape(lanes, *shape)
    return decode(raw.view(dtype) if element != "i1" else raw != 0, element)


def _register_count(element: str, pack: int) -> int:
    return max(1, pack // max(1, 32 // (8 * STORAGE[element].itemsize))) if pack > 1 else 1


def _inline_assembly(op: Op, context: Context) -> Run:
    text, pack = str(op.attributes["text"]), int(str(op.attributes["packed_element"]))
    statements = _statements(text)
    shape = op.result_types[0].shape
    counts = [_register_count(t.element, pack) for t in op.result_types]
    if context.arithmetic.wide:
        raise UnsupportedOperationError(f"inline assembly in {context.arithmetic}", op.location)
    check(statements, op)

    def run(*operands: Array) -> Any:
        lanes = max((x.shape[0] for x in operands), default=1)
        machine = _Machine(context.arithmetic)
        number = sum(counts)
        for x, type_ in zip(operands, op.operand_types, strict=True):
            element = "i64" if type_.is_pointer else type_.element
            tile = np.broadcast_to(x, (lanes, *type_.shape)).reshape(lanes, -1)
            for register in _to_registers(tile, element, pack):
                machine.registers[f"${number}"] = register
                number += 1
        try:
            for statement in statements:
                machine.execute(statement)
        except _RefusedError as e:
            raise UnsupportedOperationError(f"inline assembly with {e}", op.location) from None
        outs, number = [], 0
        for type_, count in zip(op.result_types, counts, strict=True):
            registers = [machine.registers.get(f"${number + k}", np.zeros((1, 1), np.uint64)) for k in range(count)]
            outs.append(_from_registers(registers, type_.element, pack, lanes, shape))
            number += count
        return outs[0] if len(outs) == 1 else tuple(outs)

    return run


_OPCODES = (
    ".reg", "mov", "setp", "selp", "cvt", "add", "sub", "mul", "div", "mad", "fma", "min", "max", "abs", "neg", "rcp",
    "and", "or", "xor", "not", "shl", "shr", "popc", "clz", "brev", "lop3", "bfe", "bfi", "prmt", *_APPROXIMATE, *_IDLE,
)  # fmt: skip
_KNOWN = re.compile(rf"(@!?[%\w$]+ )?({'|'.join(map(re.escape, _OPCODES))})(\.| |$)")


def check(statements: list[str], op: Op) -> None:
    """Refuse what is not known when the kernel is prepared, before anything ran."""
    for statement in statements:
        if _KNOWN.match(statement) is None:
            raise UnsupportedOperationError(
                f"tt.elementwise_inline_asm with the PTX instruction `{statement}`", op.location
            )


ASSEMBLY: dict[str, Maker] = {"tt.elementwise_inline_asm": _inline_assembly}
