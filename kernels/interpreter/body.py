"""The parts of a prepared kernel, and what can be told of them before they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .language.ttir import Op, Region, operations


@dataclass(slots=True)
class Instruction:
    """`outs = run(*ins)`; then the slots in `dead` are free."""

    op: Op
    run: Callable[..., Any] | None
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    regions: list[Body] = field(default_factory=list)
    dead: tuple[int, ...] = ()


@dataclass(slots=True)
class Body:
    """A block: its arguments' slots, its instructions, and what it hands back."""

    label: str
    arguments: tuple[int, ...]
    instructions: list[Instruction]
    terminator: Op | None
    returns: tuple[int, ...]
    captured: tuple[int, ...]  # slots defined outside and read inside


def defined(body: Body) -> set[int]:
    """The slots that a block and all blocks inside it define."""
    own = {slot for i in body.instructions for slot in i.outs}
    return own.union(body.arguments, *(defined(inner) for i in body.instructions for inner in i.regions))


def captured(body: Body) -> tuple[int, ...]:
    """The slots that a block reads and does not define."""
    own = set(body.arguments)
    read: set[int] = set(body.returns)
    for i in body.instructions:
        read.update(i.ins)
        own.update(i.outs)
        for inner in i.regions:
            read.update(inner.captured)
            own.update(defined(inner))
    return tuple(sorted(read - own))


def mark_dead(body: Body) -> None:
    """Tell each instruction which slots nothing reads after it."""
    own = {slot for i in body.instructions for slot in i.outs}
    seen = set(body.returns)
    for i in reversed(body.instructions):
        reads = set(i.ins).union(*(r.captured for r in i.regions))
        i.dead = tuple((own & (reads | set(i.outs))) - seen)
        seen |= reads


def alone(region: Region) -> bool:
    """Whether program instances must run one after the other.

    A lock held by one instance and awaited by another is never released while they march in step; and pointers that
    come out of memory point into other tensors in other instances.
    """
    for o in operations(region):
        if o.name == "tt.int_to_ptr" or (o.name == "tt.load" and o.result_types[0].is_pointer):
            return True
        if o.name == "scf.while" and any(_waits(c) for c in operations(o.regions[0])):
            return True
    return False


def _waits(op: Op) -> bool:
    return op.name.startswith("tt.atomic_") or (op.name == "tt.load" and "isVolatile = true" in op.words)
