"""Constants, floating-point and integer arithmetic, comparisons, casts: element by element."""

from __future__ import annotations

import struct

import numpy as np

from ..errors import UnsupportedOperationError
from ..language.ttir import Op
from ..numbers.formats import FLOATS, INTEGERS, STORAGE, Array, decode, encode, round_to
from .context import Context, Maker, Run, integer, result

# -- constants and indices ---------------------------------------------------------------------------------------------


def _number(text: str, element: str) -> float | int | bool:
    if text in ("true", "false"):
        return text == "true"
    if text.startswith("0x") and element in FLOATS:  # the bits of the number
        size = STORAGE[element].itemsize
        bits = int(text, 16).to_bytes(size, "little")
        if element == "bf16":
            return float(struct.unpack("<f", b"\0\0" + bits)[0])
        return float(np.frombuffer(bits, STORAGE[element])[0])
    if element in FLOATS:  # the shortest decimal that reads back as the number
        return float(text) if element == "f64" else float(round_to(np.array([text], np.float32), element)[0])
    return int(text, 0)


def _constant(op: Op, context: Context) -> Run:
    type_, text = result(op), str(op.attributes["value"])
    if text.startswith("dense<"):
        text = text[6:-1]
    items = [t.strip() for t in text.strip("[]").split(",")] if text.startswith("[") else [text]
    numbers = [_number(t, type_.element) for t in items]
    if type_.element in FLOATS:
        values = np.concatenate([context.arithmetic.constant(float(n), type_.element) for n in numbers])
    else:
        values = np.array([_wrap(int(n), type_.element) for n in numbers], integer(type_))
    out = values.reshape((1, *type_.shape) if len(items) > 1 else (1,) * (1 + len(type_.shape)))
    return lambda: out


def _poison(op: Op, context: Context) -> Run:
    """A value that nothing reads."""
    type_ = result(op)
    zero = context.arithmetic.constant(0.0, type_.element) if type_.element in FLOATS else np.zeros(1, integer(type_))
    out = zero.reshape((1,) * (1 + len(type_.shape)))
    return lambda: out


def _wrap(value: int, element: str) -> int:
    if element == "i1":
        return value & 1
    bits = STORAGE[element].itemsize * 8
    return (value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


def _make_range(op: Op, _: Context) -> Run:
    out = np.arange(int(op.attributes["start"]), int(op.attributes["end"]), dtype=np.int32)[None]  # type: ignore[arg-type]
    return lambda: out


# -- floating point ----------------------------------------------------------------------------------------------------


def _float_binary(name: str) -> Maker:
    def maker(op: Op, context: Context) -> Run:
        element, binary = result(op).element, context.arithmetic.binary
        return lambda a, b: binary(name, a, b, element)

    return maker


def _float_unary(name: str) -> Maker:
    def maker(op: Op, context: Context) -> Run:
        element, unary = result(op).element, context.arithmetic.unary
        return lambda x: unary(name, x, element)

    return maker


def _fma(op: Op, context: Context) -> Run:
    element, fma = result(op).element, context.arithmetic.fma
    return lambda a, b, c: fma(a, b, c, element)


def _clamp(op: Op, context: Context) -> Run:
    element, binary = result(op).element, context.arithmetic.binary
    low, high = ("maximum", "minimum") if "propagateNan = all" in op.words else ("maxnum", "minnum")
    return lambda x, lo, hi: binary(high, binary(low, x, lo, element), hi, element)


def _float_cast(op: Op, context: Context) -> Run:
    source, target = op.operand_types[0].element, result(op).element
    toward_zero = "rounding = rtz" in op.words
    cast = context.arithmetic.cast
    return lambda x: cast(x, source, target, toward_zero=toward_zero)


def _int_to_float(*, signed: bool) -> Maker:
    def maker(op: Op, context: Context) -> Run:
        source, target = op.operand_types[0].element, result(op).element
        from_integer = context.arithmetic.from_integer

        def run(x: Array) -> Array:
            if source == "i1":  # a true i1 is -1
                return from_integer(-x.astype(np.int8) if signed else x.astype(np.int8), target)
            return from_integer(x if signed else unsigned(x), target)

        return run

    return maker


def _float_to_int(*, signed: bool) -> Maker:
    def maker(op: Op, context: Context) -> Run:
        dtype, to_integer = INTEGERS[result(op).element], context.arithmetic.to_integer
        if signed:
            return lambda x: to_integer(x, dtype)
        unsigned_dtype = np.dtype(f"u{dtype.itemsize}")
        return lambda x: to_integer(x, unsigned_dtype).view(dtype)

    return maker


_COMPARE_INT: dict[str, Run] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


def _compare_float(op: Op, context: Context) -> Run:
    name, compare = op.words.split(",")[0].strip(), context.arithmetic.compare
    return lambda a, b: compare(name, a, b)


def unsigned(x: Array) -> Array:
    """The same bits of integers as unsigned ones."""
    return x if x.dtype == np.bool_ else np.ascontiguousarray(x).view(x.dtype.str.replace("i", "u"))


def _compare_int(op: Op, _: Context) -> Run:
    predicate = op.words.split(",")[0].strip()
    if predicate in ("eq", "ne"):
        return _COMPARE_INT[predicate]
    compare = _COMPARE_INT[predicate[1:]]
    if predicate[0] == "u":
        return lambda a, b: compare(unsigned(a), unsigned(b))
    if op.operand_types[0].element == "i1":  # a true i1 is -1
        return lambda a, b: compare(-a.astype(np.int8), -b.astype(np.int8))
    return compare


def _select(op: Op, _: Context) -> Run:
    rank = len(result(op).shape)
    if rank == len(op.operand_types[0].shape):
        return np.where
    return lambda c, a, b: np.where(c.reshape(c.shape[0], *(1,) * rank), a, b)  # one condition for a whole tile


# -- integers ----------------------------------------------------------------------------------------------------------


def _divide(a: Array, b: Array) -> Array:  # toward zero, as hardware does; numpy's // floors
    out: Array = (a - np.fmod(a, b)) // b
    return out


_INTEGER: dict[str, Run] = {
    "addi": np.add, "subi": np.subtract, "muli": np.multiply, "divsi": _divide, "remsi": np.fmod,
    "andi": np.bitwise_and, "ori": np.bitwise_or, "xori": np.bitwise_xor, "shli": np.left_shift,
    "shrsi": np.right_shift, "minsi": np.minimum, "maxsi": np.maximum,
    "ceildivsi": lambda a, b: -(-a // b), "floordivsi": np.floor_divide,
}  # fmt: skip
_UNSIGNED: dict[str, Run] = {
    "divui": np.floor_divide, "remui": np.fmod, "shrui": np.right_shift, "minui": np.minimum, "maxui": np.maximum,
    "ceildivui": lambda a, b: (a + b - 1) // b,
}  # fmt: skip


def _integer(name: str) -> Maker:
    f = _INTEGER[name]
    if name in ("addi", "subi", "muli"):  # one-bit integers wrap round, numpy's booleans do not

        def maker(op: Op, _: Context) -> Run:
            if result(op).element != "i1":
                return f
            return lambda a, b: (f(a.astype(np.int8), b.astype(np.int8)) & 1).astype(np.bool_)

        return maker
    return lambda _op, _context: f


def _unsigned_integer(name: str) -> Maker:
    f = _UNSIGNED[name]

    def maker(op: Op, _: Context) -> Run:
        dtype = integer(result(op))
        return lambda a, b: f(unsigned(a), unsigned(b)).view(dtype)

    return maker


def _integer_cast(*, signed: bool) -> Maker:
    def maker(op: Op, _: Context) -> Run:
        source, dtype = op.operand_types[0].element, integer(result(op))
        if source == "i1" and dtype != np.bool_:
            return lambda x: -x.astype(dtype) if signed else x.astype(dtype)
        if dtype == np.bool_:  # truncation keeps the lowest bit
            return lambda x: (x & 1).astype(np.bool_)
        if not signed:
            return lambda x: unsigned(x).astype(dtype)
        return lambda x: x.astype(dtype)

    return maker


def _mulhi_unsigned(op: Op, _: Context) -> Run:
    dtype = integer(result(op))
    if dtype.itemsize < 8:
        return lambda a, b: (
            ((unsigned(a).astype(np.uint64) * unsigned(b).astype(np.uint64)) >> np.uint64(8 * dtype.itemsize))
            .astype(dtype.str.replace("i", "u"))
            .view(dtype)
        )

    def run(a: Array, b: Array) -> Array:  # four 32-bit partial products
        x, y, low, s = unsigned(a), unsigned(b), np.uint64(0xFFFFFFFF), np.uint64(32)
        middle = (x >> s) * (y & low) + (((x & low) * (y & low)) >> s)
        out: Array = (x >> s) * (y >> s) + (middle >> s) + (((x & low) * (y >> s) + (middle & low)) >> s)
        return out.view(dtype)

    return run


def _bitcast(op: Op, context: Context) -> Run:
    source, target = op.operand_types[0], result(op)
    if source.is_pointer or target.is_pointer:
        return lambda x: x.astype(np.int64)
    arithmetic = context.arithmetic

    def run(x: Array) -> Array:
        if source.element in FLOATS:
            if arithmetic.wide:
                raise UnsupportedOperationError(f"the bits of a number, in {arithmetic}")
            x = encode(x, source.element)
        bits = np.ascontiguousarray(x).view(STORAGE[target.element])
        return arithmetic.load(decode(bits, target.element), target.element) if target.element in FLOATS else bits

    return run


ELEMENTWISE: dict[str, Maker] = {
    "arith.constant": _constant,
    "ub.poison": _poison,
    "tt.make_range": _make_range,
    **{f"arith.{n}f": _float_binary(n) for n in ("add", "sub", "mul", "div", "rem")},
    **{f"arith.{n}f": _float_binary(n) for n in ("maxnum", "minnum", "maximum", "minimum")},
    "tt.precise_divf": _float_binary("div"),
    "tt.precise_sqrt": _float_unary("sqrt"),
    "arith.negf": _float_unary("neg"),
    "math.absf": _float_unary("abs"),
    **{
        f"math.{n}": _float_unary(n)
        for n in ("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "tanh", "erf")
    },
    **{f"math.{n}": _float_unary(n) for n in ("floor", "ceil", "trunc", "roundeven")},
    "math.fma": _fma,
    "tt.clampf": _clamp,
    **dict.fromkeys(("arith.truncf", "arith.extf", "tt.fp_to_fp"), _float_cast),
    "arith.sitofp": _int_to_float(signed=True),
    "arith.uitofp": _int_to_float(signed=False),
    "arith.fptosi": _float_to_int(signed=True),
    "arith.fptoui": _float_to_int(signed=False),
    "arith.cmpf": _compare_float,
    "arith.cmpi": _compare_int,
    "arith.select": _select,
    **{f"arith.{n}": _integer(n) for n in _INTEGER},
    **{f"arith.{n}": _unsigned_integer(n) for n in _UNSIGNED},
    "math.absi": lambda _op, _: np.abs,
    **dict.fromkeys(("arith.extsi", "arith.trunci", "arith.index_cast"), _integer_cast(signed=True)),
    **dict.fromkeys(("arith.extui", "arith.index_castui"), _integer_cast(signed=False)),
    "tt.mulhiui": _mulhi_unsigned,
    **dict.fromkeys(("arith.bitcast", "tt.bitcast", "tt.int_to_ptr", "tt.ptr_to_int"), _bitcast),
}
