"""Rounding sites: what part an operation plays in an attention kernel, read off the kernel's own data flow.

A kernel rounds in many places.  To say how much each contributes, its operations are told apart by what becomes of
their results: the logits (whatever leads to an exponential), P and dS (what a matrix product takes), the accumulators
(what a loop carries on), the output (what is stored).  No names and no line numbers are looked at, so that any kernel
can be taken apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from .ttir import Function, Op, Region

#: kinds of sites, in the order in which a forward pass meets them
KINDS = ("scores", "exp", "P", "dP", "dS", "operands", "accumulators", "output")
_EXPONENTIALS = frozenset({"math.exp", "math.exp2"})
_NARROWING = frozenset({"arith.truncf", "tt.fp_to_fp"})
_ROUNDING = ("arith.addf", "arith.subf", "arith.mulf", "arith.divf", "arith.truncf", "math.", "tt.dot", "tt.reduce",
             "tt.scan", "tt.fp_to_fp", "tt.precise", "tt.extern", "tt.atomic")  # fmt: skip
_LOOPS = frozenset({"scf.for", "scf.while"})


@dataclass(frozen=True, slots=True)
class Site:
    """Where a result is rounded: in which kernel, in what role, on which source line (`file.py:61`)."""

    kernel: str = ""
    kind: str = "output"
    line: str = ""

    def matches(self, name: str) -> bool:
        """`P`, `flash_forward`, `flash_forward:P` or `forward.py:61`."""
        return name in (self.kind, self.kernel, f"{self.kernel}:{self.kind}", self.line)


@lru_cache(maxsize=2)  # asked for many times in a row: by the operations of a program
def sites(function: Function) -> dict[int, Site]:
    """The site of every operation of a kernel, by the operation's `id`."""
    graph = _Graph(function)
    found: dict[int, Site] = {}
    for op in _walk(function.body):
        frame = op.location.user_frame()
        line = f"{frame[0].rpartition('/')[2]}:{frame[1]}" if frame else ""
        site = Site(function.name, graph.kind(op), line)
        found[id(op)] = site
        if op.name in ("tt.reduce", "tt.scan"):
            for region in op.regions:
                found.update((id(inner), site) for inner in _walk(region))
    return found


def rounding_sites(function: Function) -> frozenset[Site]:
    """The sites at which a kernel may round: those of operations that make new floating-point numbers."""
    by_op = sites(function)
    return frozenset(
        by_op[id(op)] for op in _walk(function.body)
        if op.result_types and op.result_types[0].is_float and op.name.startswith(_ROUNDING)
    )  # fmt: skip


def _walk(region: Region) -> Iterator[Op]:
    for block in region.blocks:
        for op in block.ops:
            yield op
            if op.name not in ("tt.reduce", "tt.scan"):
                for inner in op.regions:
                    yield from _walk(inner)


class _Graph:
    """Who uses and who makes each value; a loop's next iteration is not followed."""

    def __init__(self, function: Function) -> None:
        self._users: dict[str, list[tuple[Op, int]]] = defaultdict(list)
        self._maker: dict[str, Op] = {}
        self._alias: dict[str, list[str]] = defaultdict(list)  # values that are handed on under another name
        self._carried: set[str] = set()  # values that a loop carries on
        self._known: dict[int, set[str]] = {}  # of operations by their `id`: their ends
        for op in _walk(function.body):
            for i, name in enumerate(op.operands):
                self._users[name].append((op, i))
            for name in op.results:
                self._maker[name] = op
            self._hand_on(op)

    def _hand_on(self, op: Op) -> None:
        for region in op.regions if op.name in _LOOPS or op.name == "scf.if" else ():
            for block in region.blocks:
                if op.name == "scf.for":
                    for start, (inside, _) in zip(op.operands[3:], block.arguments[1:], strict=False):
                        self._alias[start].append(inside)
                end = block.ops[-1] if block.ops else None
                if end is None or not end.name.startswith("scf."):
                    continue
                passed = end.operands[1:] if end.name == "scf.condition" else end.operands
                if op.name in _LOOPS:
                    self._carried.update(passed)
                for inside, outside in zip(passed, op.results, strict=False):
                    self._alias[inside].append(outside)

    def kind(self, op: Op) -> str:
        if op.name in _EXPONENTIALS:
            return "exp"
        ends = self._ends(op)
        if "exp" in ends:
            return "scores"
        if op.name == "tt.dot":
            if "carried" in ends or ("stored" in ends and "operand" not in ends):
                return "accumulators"
            return "dP"
        narrows = op.name in _NARROWING  # what is rounded for a product may be summed as well
        if "operand" in ends and (narrows or "carried" not in ends):
            return self._operand(op)
        return "accumulators" if "carried" in ends else "output"

    def _ends(self, op: Op) -> set[str]:
        """What the results become: `exp`, `operand` (of a matrix product), `carried` (by a loop), `stored`."""
        if id(op) in self._known:
            return self._known[id(op)]
        ends: set[str] = set()
        seen, todo = set(op.results), list(op.results)
        while todo:
            value = todo.pop()
            if value in self._carried:
                ends.add("carried")
            reached = list(self._alias[value])
            for user, position in self._users[value]:
                if user.name in _EXPONENTIALS:
                    ends.add("exp")
                elif user.name == "tt.dot" and position < 2:
                    ends.add("operand")
                    if self._leads_to_exponential(user):
                        ends.add("exp")
                elif user.name.startswith(("tt.store", "tt.atomic")):
                    ends.add("stored")
                else:
                    reached += user.results
            todo += [v for v in reached if v not in seen]
            seen.update(reached)
        self._known[id(op)] = ends
        return ends

    def _leads_to_exponential(self, dot: Op) -> bool:
        """Whether a matrix product yields logits."""
        return "exp" in self._ends(dot) if dot.operands[2] not in self._carried else False

    def _operand(self, op: Op) -> str:
        """P, dS or another operand of a matrix product: by whether an exponential, and a product, lie behind it."""
        behind, todo = set(), [*op.operands]
        exponential = product = False
        while todo:
            value = todo.pop()
            maker = self._maker.get(value)
            if value in behind or maker is None:
                continue
            behind.add(value)
            if maker.name in _EXPONENTIALS:
                exponential = True  # what lies behind it are the scores
            elif maker.name == "tt.dot":
                product = True
            elif maker.name not in _LOOPS:
                todo += maker.operands
        if product:
            return "dS"
        return "P" if exponential else "operands"
