"""Triton's intermediate representation (TTIR), read from its printed form into plain Python objects.

TTIR is what Triton's own front end makes of a kernel before anything is known of the hardware: nested functions are
inlined, constexprs folded, types settled.  Its printed form is stable over the supported Triton versions, and every
operation carries the source line it came from.  The grammar is MLIR's (mlir.llvm.org/docs/LangRef).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count

from .mlir import (
    LOCATION_DEFINITION,
    LOCATION_USE,
    STRING,
    VALUE,
    Attribute,
    Location,
    Locations,
    ParseError,
    Type,
    matching,
    parse_attribute,
    parse_attributes,
    parse_type,
    parse_types,
    split_top,
    unescape,
)

__all__ = ["Block", "Function", "Location", "Op", "ParseError", "Region", "Type", "parse"]


@dataclass(slots=True)
class Op:
    """One operation: `results = name operands, attributes : types { regions }`."""

    name: str
    results: list[str]
    operands: list[str]
    words: str  # the text between the name and the types, without operands' types: flags and keywords
    attributes: dict[str, Attribute]
    operand_types: list[Type]
    result_types: list[Type]
    regions: list[Region] = field(default_factory=list)
    successors: list[tuple[str, list[str]]] = field(default_factory=list)
    location: Location = field(default_factory=Location)


@dataclass(slots=True)
class Block:
    """Operations that run one after the other; the last is the terminator."""

    label: str
    arguments: list[tuple[str, Type]]
    ops: list[Op] = field(default_factory=list)


@dataclass(slots=True)
class Region:
    """The body of a function, a loop, a branch or a combine function."""

    blocks: list[Block] = field(default_factory=list)


def operations(region: Region) -> Iterator[Op]:
    """Every operation of a region, each before those inside it."""
    for block in region.blocks:
        for op in block.ops:
            yield op
            for inner in op.regions:
                yield from operations(inner)


@dataclass(slots=True, eq=False)
class Function:
    """A kernel, everything that it calls inlined."""

    name: str
    arguments: list[tuple[str, Type]]
    body: Region


class _Reader:
    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        defined = [m for line in lines if line.startswith("#loc") and (m := LOCATION_DEFINITION.match(line))]
        self.locations = Locations({m[1]: m[2] for m in defined})
        self.lines = [line for line in lines if line and not line.startswith("#loc")]
        self.at = 0

    def next(self) -> str:
        if self.at >= len(self.lines):
            raise ParseError("TTIR ends in the middle of an operation")
        self.at += 1
        return self.lines[self.at - 1]

    def functions(self) -> list[Function]:
        found = []
        while self.at < len(self.lines):
            line = self.next()
            if line.startswith("tt.func"):
                found.append(self.function(line))
        return found

    def function(self, line: str) -> Function:
        name, open_at = _symbol(line)
        close_at = matching(line, open_at)
        arguments = [self.argument(a) for a in split_top(line[open_at + 1 : close_at])]
        body = self.region()[0] if line.rstrip().endswith("{") else Region()
        return Function(name, arguments, body)

    def argument(self, text: str) -> tuple[str, Type]:
        name, _, rest = text.partition(":")
        rest = re.sub(r"\s*loc\(.*\)\s*$", "", rest)  # one argument per call, so greedy is right
        rest = re.sub(r"\s*\{.*\}\s*$", "", rest)
        return name.strip(), parse_type(rest)

    def region(self) -> tuple[Region, str]:
        """Read up to the closing brace; returns the region and the closing line."""
        region = Region([Block("^entry", [])])
        while True:
            line = self.next()
            if line.startswith("}"):
                if not region.blocks[0].ops and not region.blocks[0].arguments and len(region.blocks) > 1:
                    region.blocks.pop(0)  # the region opened with an explicit ^bb0
                return region, line
            if line.startswith("^"):
                label = re.match(r"\^\w+", line)
                assert label is not None
                arguments = []
                if line[label.end()] == "(":
                    close = matching(line, label.end())
                    arguments = [self.argument(a) for a in split_top(line[label.end() + 1 : close])]
                region.blocks.append(Block(label[0], arguments))
                continue
            region.blocks[-1].ops.append(self.op(line))

    def strip_location(self, line: str) -> tuple[str, Location]:
        m = LOCATION_USE.search(line)
        if m is None:
            return line, Location()
        return line[: m.start()], self.locations[m[1].removeprefix("#loc")]

    def op(self, line: str) -> Op:
        text, location = self.strip_location(line)
        m = re.match(r'^(?:(%.*?) = )?"?([A-Za-z_][\w.]*)"?(.*)$', text)
        if m is None:
            raise ParseError(f"not an operation: {line}")
        results, name, rest = _result_names(m[1] or ""), m[2], m[3].strip()
        reader = _SPECIAL.get(name)
        op = reader(self, name, results, rest) if reader else self.plain(name, results, rest)
        if op.regions:
            location = self.strip_location(self.lines[self.at - 1])[1]
        op.location = location
        return op

    def plain(self, name: str, results: list[str], rest: str) -> Op:
        """Everything without a form of its own: `operands, keywords {attributes} : types`."""
        regions: list[Region] = []
        if rest.endswith("({"):  # "tt.reduce"(%x) <{axis = 1 : i32}> ({ ... }) : (types) -> types
            head = rest[:-2]
            region, closing = self.region()
            regions.append(region)
            while closing.startswith("}, {"):
                region, closing = self.region()
                regions.append(region)
            rest = head + self.strip_location(closing)[0].removeprefix("})")
        operands, words, attributes, operand_types, result_types = _plain(name, len(results), rest)
        types = list(operand_types), list(result_types)
        return Op(name, results, list(operands), words, dict(attributes), *types, regions)

    def constant(self, name: str, results: list[str], rest: str) -> Op:
        if rest in ("true", "false"):
            return Op(name, results, [], rest, {"value": rest}, [], [Type("i1")])
        if rest.startswith("{"):
            rest = rest[matching(rest, 0) + 1 :].strip()
        value, _, type_text = rest.rpartition(" : ")
        return Op(name, results, [], value, {"value": value.strip()}, [], [parse_type(type_text)])

    def for_loop(self, name: str, results: list[str], rest: str) -> Op:
        m = re.match(r"(?:unsigned )?(%\S+) = (%\S+) to (%\S+) step (%\S+)\s*(.*)\{$", rest)
        if m is None:
            raise ParseError(f"scf.for {rest}")
        tail = m[5]
        initial: list[str] = []
        carried: list[str] = []
        types: list[Type] = []
        if tail.startswith("iter_args("):
            close = matching(tail, 9)
            for pair in split_top(tail[10:close]):
                inner, _, outer = pair.partition("=")
                carried.append(inner.strip())
                initial.append(outer.strip())
            arrow, _, index = tail[close + 1 :].strip().removeprefix("->").rpartition(" : ")
            types = list(parse_types(arrow or index))
            tail = " : " + index if arrow else ""
        index_type = parse_type(tail.split(":")[-1]) if ":" in tail else Type("index")
        region, _ = self.region()
        region.blocks[0].arguments = [(m[1], index_type), *zip(carried, types, strict=True)]
        words = "unsigned" if rest.startswith("unsigned") else ""
        return Op(name, results, [m[2], m[3], m[4], *initial], words, {}, [index_type] * 3 + types, types, [region])

    def if_op(self, name: str, results: list[str], rest: str) -> Op:
        m = re.match(r"(%\S+)\s*(?:->\s*(.*))?\{$", rest)
        if m is None:
            raise ParseError(f"scf.if {rest}")
        types = list(parse_types(m[2])) if m[2] else []
        then, closing = self.region()
        otherwise = self.region()[0] if closing.startswith("} else {") else Region([Block("^entry", [])])
        return Op(name, results, [m[1]], "", {}, [Type("i1")], types, [then, otherwise])

    def while_op(self, name: str, results: list[str], rest: str) -> Op:
        close = matching(rest, 0) if rest.startswith("(") else -1
        pairs = [p.partition("=") for p in split_top(rest[1 : max(close, 1)])]
        operand_types, result_types = _signature(rest[close + 1 :].strip().removeprefix(":").rstrip("{"), len(results))
        before, closing = self.region()
        if not closing.startswith("} do {"):
            raise ParseError(f"scf.while without a body: {closing}")
        before.blocks[0].arguments = [(p[0].strip(), t) for p, t in zip(pairs, operand_types, strict=True)]
        after, _ = self.region()
        return Op(name, results, [p[2].strip() for p in pairs], "", {}, operand_types, result_types, [before, after])

    def call(self, name: str, results: list[str], rest: str) -> Op:
        callee, _ = _symbol(rest)
        op = self.plain(name, results, rest)
        op.attributes["callee"] = callee
        return op

    def branch(self, name: str, results: list[str], rest: str) -> Op:
        targets = re.finditer(r"(\^\w+)(?:\(([^)]*)\))?", rest)
        successors = [(m[1], VALUE.findall((m[2] or "").split(":")[0])) for m in targets]
        operands = VALUE.findall(rest.split("^")[0])
        return Op(name, results, operands, "", {}, [], [], successors=successors)


@lru_cache(maxsize=1 << 16)  # variants of a kernel, and its translations for other arguments, share most of their lines
def _plain(name: str, results: int, rest: str) -> tuple[list[str], str, dict[str, Attribute], list[Type], list[Type]]:
    """Operands, words, attributes, and types of operands and results; nobody changes these."""
    literals = [unescape(m[1]) for m in STRING.finditer(rest)]  # set aside while the rest is taken apart
    numbers = count()
    rest = STRING.sub(lambda _: f'"{next(numbers)}"', rest)
    parts = split_top(rest, " : ")
    signature = parts[-1] if len(parts) > 1 else ""
    words = " : ".join(parts[:-1]) if len(parts) > 1 else rest
    if not signature and (m := re.match(r"^(.*?)\s*:\s*(\(.*)$", rest)):
        words, signature = m[1], m[2]
    attributes: dict[str, Attribute] = {}
    for a in re.finditer(r"<?\{", words):
        end = matching(words, a.end() - 1)
        attributes |= parse_attributes(words[a.end() : end], literals)
        words_end = end + (2 if a[0] == "<{" else 1)
        words = words[: a.start()] + " " * (words_end - a.start()) + words[words_end:]
    if m := re.search(r"(\w+) = (array<.*?>)", words):
        attributes[m[1]] = parse_attribute(m[2])
    if m := re.search(r'"(\d+)"', words):
        attributes["text"] = literals[int(m[1])]
    operands = VALUE.findall(words)
    operand_types, result_types = _signature(signature, results)
    if infer := _INFERRED.get(name):  # the printed form names an operand's type, not the result's
        result_types = [infer(operand_types[0])]
    return operands, words, attributes, operand_types, result_types


_INFERRED: dict[str, Callable[[Type], Type]] = {
    "arith.cmpi": lambda t: Type("i1", t.shape),
    "arith.cmpf": lambda t: Type("i1", t.shape),
    "tt.addptr": lambda t: t,
    "tt.load": lambda t: Type(t.pointee, t.shape),
}

_SPECIAL = {
    "arith.constant": _Reader.constant,
    "scf.for": _Reader.for_loop,
    "scf.if": _Reader.if_op,
    "scf.while": _Reader.while_op,
    "tt.call": _Reader.call,
    "cf.br": _Reader.branch,
    "cf.cond_br": _Reader.branch,
}


def _symbol(text: str) -> tuple[str, int]:
    """The name of a function after its `@`, and where the parenthesis behind it opens."""
    m = re.search(r'@(?:"([^"]*)"|([^(]+))\(', text)
    if m is None:
        raise ParseError(f"no function name in: {text}")
    return m[1] or m[2], m.end() - 1


def _result_names(text: str) -> list[str]:
    names: list[str] = []
    for item in split_top(text):
        name, _, n = item.partition(":")
        names += [f"{name}#{i}" for i in range(int(n))] if n else [name]
    return names


def _signature(text: str, results: int) -> tuple[list[Type], list[Type]]:
    """Operand and result types from what stands after the colon; MLIR leaves out what can be inferred."""
    text = text.strip()
    if not text:
        return [], []
    for separator in ("->", " to "):
        if separator in text:
            source, _, result = text.rpartition(separator)
            operands = [t for part in split_top(source, " * ") for t in parse_types(part)]
            types = list(parse_types(result))
            return operands, types * results if len(types) == 1 < results else types  # tt.split: one type for both
    types = list(parse_types(text))
    return types, types[-1:] * results


def parse(text: str) -> dict[str, Function]:
    """The functions of a printed TTIR module, by name.

    Raises `ParseError` for text that is not TTIR as Triton 3.6 to 3.9 print it.
    """
    functions = _Reader(text).functions()
    known = {f.name: f for f in functions}
    for f in functions:
        _attach_callees(f.body, known)
    for f in functions:
        names = {name: name for name, _ in f.arguments}
        _make_unique(f.body, names, set(names))
    return known


def _attach_callees(region: Region, known: dict[str, Function]) -> None:
    """Give each `tt.call` a copy of the function that it calls as its region; Triton has no recursion."""
    for block in region.blocks:
        for op in block.ops:
            if op.name == "tt.call":
                callee = known[str(op.attributes["callee"])]
                body = copy.deepcopy(callee.body)
                body.blocks[0].arguments = list(callee.arguments)
                op.regions = [body]
            for inner in op.regions:
                _attach_callees(inner, known)


def _make_unique(region: Region, outer: dict[str, str], taken: set[str]) -> None:
    """Rename in place, so that a name means one value in the whole function: MLIR reuses names in sibling regions."""
    names = dict(outer)

    def define(name: str) -> str:
        fresh = name
        while fresh in taken:
            fresh += "'"
        taken.add(fresh)
        names[name] = fresh
        return fresh

    for block in region.blocks:
        block.arguments = [(define(name), type_) for name, type_ in block.arguments]
        for op in block.ops:
            op.operands = [names[o] for o in op.operands]
            for inner in op.regions:
                _make_unique(inner, names, taken)
            op.results = [define(r) for r in op.results]
    for block in region.blocks:  # a branch may pass values to a block that stands above it
        for op in block.ops:
            op.successors = [(label, [names[v] for v in passed]) for label, passed in op.successors]
