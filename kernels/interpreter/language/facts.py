"""What is known of a kernel before it runs: which arguments it writes through, whether its instances are ordered."""

from __future__ import annotations

from collections import defaultdict

from .ttir import Function, Op, Region, operations

_WRITES = ("tt.store", "tt.atomic_rmw", "tt.atomic_cas")
_ELSEWHERE = ("tt.int_to_ptr", "tt.call")


def written_arguments(function: Function) -> set[int]:
    """Positions of the arguments that a store or an atomic may write through; all, where it cannot be told."""
    makers: dict[str, list[str]] = defaultdict(list)
    targets: list[str] = []
    unknown: set[str] = set()  # addresses from elsewhere

    def visit(region: Region) -> None:
        for block in region.blocks:
            for op in block.ops:
                if op.name in _WRITES:
                    targets.append(op.operands[0])
                for result in op.results:
                    makers[result] += op.operands
                unknown.update(op.results if op.name in _ELSEWHERE else ())
                _follow_jumps(makers, op, region)
                for inner in op.regions:
                    _through(makers, op, inner)
                    visit(inner)

    visit(function.body)
    seen, todo = set(targets), list(targets)
    while todo:
        for name in makers[todo.pop()]:
            if name not in seen:
                seen.add(name)
                todo.append(name)
    if seen & unknown:
        return set(range(len(function.arguments)))
    return {i for i, (name, _) in enumerate(function.arguments) if name in seen}


def _follow_jumps(makers: dict[str, list[str]], op: Op, region: Region) -> None:
    for label, passed in op.successors:
        arguments = next(b.arguments for b in region.blocks if b.label == label)
        _bind(makers, passed, [name for name, _ in arguments])


def _bind(makers: dict[str, list[str]], passed: list[str], names: list[str]) -> None:
    for value, name in zip(passed, names, strict=False):
        makers[name].append(value)


def _through(makers: dict[str, list[str]], op: Op, region: Region) -> None:
    """Values that enter a region, go round in it, and leave it."""
    for block in region.blocks:
        names = [name for name, _ in block.arguments]
        if op.name == "scf.for":
            _bind(makers, op.operands[3:], names[1:])
        elif op.name == "scf.while":
            _bind(makers, op.operands, names)
        end = block.ops[-1] if block.ops else None
        if end is None:
            continue
        passed = end.operands[1:] if end.name == "scf.condition" else end.operands
        _bind(makers, passed, op.results)
        if op.name == "scf.for":
            _bind(makers, passed, names[1:])
        if end.name == "scf.condition":  # what the first region of a while hands to the second
            for other in op.regions[1].blocks:
                _bind(makers, passed, [name for name, _ in other.arguments])
        elif op.name == "scf.while":  # and the second to the first, again
            for other in op.regions[0].blocks:
                _bind(makers, passed, [name for name, _ in other.arguments])


def atomics_order(function: Function) -> bool:
    """Whether instances may wait for one another: an atomic whose old value is used builds locks and counters."""
    everything = list(operations(function.body))
    used = {name for op in everything for name in op.operands}
    return any(r in used for op in everything if op.name in ("tt.atomic_rmw", "tt.atomic_cas") for r in op.results)


def widens(function: Function) -> bool:
    """Whether the kernel makes wider integers of narrow ones."""
    return any(
        op.name in ("arith.extsi", "arith.extui") and op.operand_types[0].element in ("i8", "i16")
        for op in operations(function.body)
    )
