"""A kernel made ready to run: TTIR turned into a list of numpy calls over all program instances at once.

The front end has run once and for all; here each operation runs once for a whole batch of program instances ("lanes").
Where control flow differs between lanes, the batch is split: a loop goes on with the lanes that still loop, each branch
of an `if` runs with its own lanes, and the results are put together again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from .body import Body, Instruction, alone, captured, defined, mark_dead
from .errors import KernelError, UnsupportedOperationError
from .language.sites import Site, sites
from .language.ttir import Block, Function, Op, Region, Type
from .memory.memory import Memory
from .numbers.arithmetic import Arithmetic
from .numbers.formats import FLOATS, Array
from .operations.access import NEED_LANES
from .operations.combine import Combine, reduction, scan
from .operations.context import Context, Launch, integer
from .operations.table import OPS

Environment: TypeAlias = "list[Any]"  # slot -> array
#: a function may launch from many threads, and what is prepared once is shared by all of them
_ONE_AT_A_TIME = threading.RLock()
_TERMINATORS = frozenset(
    {
        "scf.yield", "scf.condition", "cf.br", "cf.cond_br",
        "tt.return", "tt.reduce.return", "tt.scan.return", "tt.map_elementwise.return",
    }
)  # fmt: skip
_GRID = ("%program_x", "%program_y", "%program_z", "%programs_x", "%programs_y", "%programs_z", "%lanes")
_LANES = _GRID.index("%lanes")  # the slot of the program instances' numbers, x fastest
_CONTROL = frozenset({"scf.for", "scf.if", "scf.while", "tt.call", "tt.map_elementwise"})
_LANE_ELEMENTS = 1 << 19  # tile elements in flight at once: keeps a batch of tiles near the caches


def _uniform(x: Array) -> Any | None:
    """The one value that all lanes share, or None."""
    first = x.flat[0]
    return first if x.size == 1 or (x == first).all() else None


def _take(x: Array, lanes: Array) -> Array:
    return x if x.shape[0] == 1 else x[lanes]


class Program:
    """A prepared kernel.  `run` executes it on a grid; a program is prepared once per arithmetic."""

    def __init__(self, function: Function, arithmetic: Arithmetic) -> None:
        self.function = function
        self._types: dict[str, Type] = dict(function.arguments)
        self._collect_types(function.body)
        self._launch, self._arithmetic = Launch(), arithmetic
        self._slots = {name: i for i, name in enumerate([*_GRID, *self._types])}
        self._blocks = [self._body(b) for b in function.body.blocks]
        largest = max((int(np.prod(t.shape)) for t in self._types.values()), default=1)
        by_itself = alone(function.body)
        self._batch = 1 if by_itself else max(1, _LANE_ELEMENTS // max(1, largest))

    # -- preparation ---------------------------------------------------------------------------------------------------

    def _collect_types(self, region: Region) -> None:
        for block in region.blocks:
            self._types.update(block.arguments)
            for op in block.ops:
                if len(op.results) != len(op.result_types):
                    raise UnsupportedOperationError(
                        f"operation {op.name} in a form this reader does not know", op.location
                    )
                self._types.update(zip(op.results, op.result_types, strict=True))
                for inner in op.regions:
                    self._collect_types(inner)

    def _body(self, block: Block) -> Body:
        instructions = []
        terminator = None
        for op in block.ops:
            if op.name in _TERMINATORS:
                terminator = op
            else:
                instructions.append(self._instruction(op))
        arguments = tuple(self._slots[name] for name, _ in block.arguments)
        returns = tuple(self._slots[name] for name in terminator.operands) if terminator else ()
        body = Body(block.label, arguments, instructions, terminator, returns, ())
        body.captured = captured(body)
        mark_dead(body)
        return body

    def _instruction(self, op: Op) -> Instruction:
        op.operand_types = [self._types[o] for o in op.operands]  # the printed form leaves some out
        ins = tuple(self._slots[o] for o in op.operands)
        outs = tuple(self._slots[r] for r in op.results)
        if op.name in ("tt.get_program_id", "tt.get_num_programs"):
            axis = "xyz".index(op.words.strip())
            name = _GRID[axis if op.name == "tt.get_program_id" else axis + 3]
            return Instruction(op, lambda x: x, (self._slots[name],), outs)
        regions = [self._body(b) for region in op.regions for b in region.blocks]
        if op.name in _CONTROL:
            return Instruction(op, None, ins, outs, regions)
        if op.name in ("tt.reduce", "tt.scan"):
            (body,) = regions
            known = body.instructions[0].op.name.removeprefix("arith.") if len(body.instructions) == 1 else None
            combine = self._combine(body)
            if op.name == "tt.scan":
                return Instruction(op, scan(op, combine), ins + body.captured, outs)
            if len(ins) > 1 or body.captured:
                known = None
            run = reduction(op, combine, known, self._context(op).arithmetic)
            return Instruction(op, run, ins + body.captured, outs)
        if op.name == "tt.print":
            ins = (0, 1, 2, *ins)  # the program ids
        maker = OPS.get(op.name)
        if maker is None:
            raise UnsupportedOperationError(f"operation {op.name} is not supported by the interpreter", op.location)
        if op.name in NEED_LANES:
            ins = (_LANES, *ins)
        return Instruction(op, maker(op, self._context(op)), ins, outs)

    def _context(self, op: Op) -> Context:
        if type(self._arithmetic).at is Arithmetic.at:  # all sites are one to it: no need to know them
            return Context(self._arithmetic, self._launch)
        return Context(self._arithmetic.at(sites(self.function).get(id(op), Site())), self._launch)

    def _combine(self, body: Body) -> Combine:
        """The combine region as a function of two tuples of arrays of any shape, and of what it reads from outside."""

        def combine(left: Sequence[Array], right: Sequence[Array], captured: Sequence[Array]) -> list[Array]:
            env: Environment = [None] * len(self._slots)
            for slot, x in zip((*body.arguments, *body.captured), [*left, *right, *captured], strict=True):
                env[slot] = x
            self._execute(body, env)
            return [env[r] for r in body.returns]

        return combine

    # -- execution -----------------------------------------------------------------------------------------------------

    def run(self, grid: tuple[int, int, int], arguments: Sequence[Array], memory: Memory) -> None:
        """Run every program instance of `grid`; `arguments` are arrays of shape (1,), pointers as int64 addresses.

        Raises `KernelError` (and its subclasses) with the kernel's source line.
        """
        total = grid[0] * grid[1] * grid[2]
        with _ONE_AT_A_TIME, np.errstate(all="ignore"):  # inf and NaN are results here, not accidents
            self._launch.memory = memory
            try:
                for start in range(0, total, self._batch):
                    linear = np.arange(start, min(start + self._batch, total))
                    env: Environment = [None] * len(self._slots)
                    x, rest = linear % grid[0], linear // grid[0]
                    ids = (x, rest % grid[1], rest // grid[1])
                    for axis in range(3):
                        env[axis] = (ids[axis] if grid[axis] > 1 else np.zeros(1)).astype(np.int32)
                        env[axis + 3] = np.array([grid[axis]], np.int32)
                    env[_LANES] = linear
                    for (name, _), value in zip(self.function.arguments, arguments, strict=True):
                        env[self._slots[name]] = value
                    self._walk(self._blocks, 0, env)
            finally:
                self._launch.memory = None

    def _walk(self, blocks: Sequence[Body], at: int, env: Environment) -> list[Array]:
        """Follow a control-flow graph from block `at`; returns what it returns.  Divergence splits the lanes."""
        while True:
            body = blocks[at]
            self._execute(body, env, keep=len(blocks) > 1)
            end = body.terminator
            if end is None or not end.successors:
                return [env[r] for r in body.returns]
            if end.name == "cf.br":
                at = self._jump(blocks, end, 0, env)
                continue
            condition = env[self._slots[end.operands[0]]]
            taken = _uniform(condition)
            if taken is not None:
                at = self._jump(blocks, end, 0 if taken else 1, env)
                continue
            parts = []
            for branch, lanes in ((0, np.flatnonzero(condition)), (1, np.flatnonzero(~condition))):
                part = [None if x is None else _take(x, lanes) for x in env]
                parts.append((lanes, self._walk(blocks, self._jump(blocks, end, branch, part), part)))
            return self._assemble(condition.shape[0], parts)

    def _jump(self, blocks: Sequence[Body], end: Op, branch: int, env: Environment) -> int:
        label, passed = end.successors[branch]
        target = next(i for i, b in enumerate(blocks) if b.label == label)
        values = [env[self._slots[name]] for name in passed]
        for slot, value in zip(blocks[target].arguments, values, strict=True):
            env[slot] = value
        return target

    def _call(self, i: Instruction, env: Environment) -> list[Array]:
        """`tt.call`: a function that was not to be inlined."""
        inner = list(env)
        for slot, x in zip(i.regions[0].arguments, [env[s] for s in i.ins], strict=True):
            inner[slot] = x
        return self._walk(i.regions, 0, inner)

    def _map(self, i: Instruction, env: Environment) -> list[Array]:
        """`tt.map_elementwise`: a scalar function, each (pack of) elements of each lane a lane of its own."""
        shape, pack = i.op.operand_types[0].shape, int(i.op.attributes["pack"])  # type: ignore[arg-type]
        lanes = max(env[s].shape[0] for s in i.ins)
        inner = list(env)
        packs = int(np.prod(shape)) // pack
        for slot in {slot for body in i.regions for slot in body.captured}.difference(*map(defined, i.regions)):
            inner[slot] = x if (x := env[slot]).shape[0] == 1 else np.repeat(x, packs)
        columns = [c for s in i.ins for c in np.broadcast_to(env[s], (lanes, *shape)).reshape(-1, pack).T]
        for slot, x in zip(i.regions[0].arguments, columns, strict=True):
            inner[slot] = x
        returned = [np.broadcast_to(x, lanes * packs) for x in self._walk(i.regions, 0, inner)]
        groups = (returned[k : k + pack] for k in range(0, len(returned), pack))
        return [np.stack(group, axis=-1).reshape(lanes, *shape) for group in groups]

    def _execute(self, body: Body, env: Environment, *, keep: bool = False) -> None:
        for i in body.instructions:
            try:
                if i.run is None:
                    self._control(i, env)
                else:
                    out = i.run(*[env[s] for s in i.ins])
                    if len(i.outs) == 1:
                        env[i.outs[0]] = out
                    else:
                        for slot, value in zip(i.outs, out or (), strict=True):
                            env[slot] = value
            except KernelError as e:
                raise e.located(i.op.location) from e.__cause__
            except Exception as e:
                raise KernelError(f"{i.op.name} failed: {type(e).__name__}: {e}", i.op.location) from e
            if not keep:
                for slot in i.dead:
                    env[slot] = None

    def _control(self, i: Instruction, env: Environment) -> None:
        if i.op.name == "scf.for":
            outs = self._for(i, env)
        elif i.op.name == "scf.if":
            outs = self._if(i, env)
        elif i.op.name == "tt.call":
            outs = self._call(i, env)
        elif i.op.name == "tt.map_elementwise":
            outs = self._map(i, env)
        else:
            outs = self._while(i, env)
        for slot, value in zip(i.outs, outs, strict=True):
            env[slot] = value

    @staticmethod
    def _assemble(lanes: int, parts: list[tuple[Array, list[Array]]]) -> list[Array]:
        """Results of groups of lanes, put back in their places."""
        outs = []
        for values in zip(*(p[1] for p in parts), strict=True):
            tile = np.broadcast_shapes(*(x.shape[1:] for x in values))
            out = np.empty((lanes, *tile), np.result_type(*values))
            for (where, _), x in zip(parts, values, strict=True):
                out[where] = x
            outs.append(out)
        return outs

    def _for(self, i: Instruction, env: Environment) -> list[Array]:
        (body,) = i.regions
        low, high, step = (env[s] for s in i.ins[:3])
        carried = [env[s] for s in i.ins[3:]]
        trips = np.maximum(0, -((low.astype(np.int64) - high) // step))
        count = _uniform(trips)
        if count is not None:
            for t in range(int(count)):
                carried = self._once(body, env, (low + t * step).astype(low.dtype), carried)
            return carried
        lanes, alive = trips.shape[0], np.arange(trips.shape[0])
        parts: list[tuple[Array, list[Array]]] = []
        inner, t = list(env), 0
        while True:
            done = trips[alive] <= t
            if done.any():
                parts.append((alive[done], [_take(c, done) for c in carried]))
                alive, left = alive[~done], ~done
                if alive.size == 0:
                    return self._assemble(lanes, parts)
                low, step = _take(low, left), _take(step, left)
                carried = [_take(c, left) for c in carried]
                for slot in body.captured:
                    inner[slot] = _take(inner[slot], left)
            carried = self._once(body, inner, (low + t * step).astype(low.dtype), carried)
            t += 1

    def _once(self, body: Body, env: Environment, index: Array, carried: list[Array]) -> list[Array]:
        for slot, value in zip(body.arguments, [index, *carried], strict=True):
            env[slot] = value
        self._execute(body, env)
        return [env[r] for r in body.returns]

    def _if(self, i: Instruction, env: Environment) -> list[Array]:
        condition = env[i.ins[0]]
        taken = _uniform(condition)
        if taken is not None:
            body = i.regions[0 if taken else 1]
            self._execute(body, env)
            return [env[r] for r in body.returns]
        parts = []
        for body, chosen in zip(i.regions, (condition, ~condition), strict=True):
            where = np.flatnonzero(chosen)
            inner = list(env)
            for slot in body.captured:
                inner[slot] = _take(inner[slot], where)
            self._execute(body, inner)
            parts.append((where, [inner[r] for r in body.returns]))
        return self._assemble(condition.shape[0], parts)

    def _while(self, i: Instruction, env: Environment) -> list[Array]:
        before, after = i.regions
        state = [env[s] for s in i.ins]
        inner = list(env)
        shared = set(before.captured) | set(after.captured)
        alive: Array | None = None  # None: all lanes are still together
        lanes, parts = 1, []
        while True:
            for slot, value in zip(before.arguments, state, strict=True):
                inner[slot] = value
            self._execute(before, inner)
            condition, passed = inner[before.returns[0]], [inner[r] for r in before.returns[1:]]
            going = _uniform(condition)
            if going is None:
                if alive is None:
                    lanes = condition.shape[0]
                    alive = np.arange(lanes)
                parts.append((alive[~condition], [_take(p, ~condition) for p in passed]))
                alive = alive[condition]
                passed = [_take(p, condition) for p in passed]
                for slot in shared:
                    inner[slot] = _take(inner[slot], condition)
            elif not going:
                if alive is None:
                    return passed
                parts.append((alive, passed))
                return self._assemble(lanes, parts)
            for slot, value in zip(after.arguments, passed, strict=True):
                inner[slot] = value
            self._execute(after, inner)
            state = [inner[r] for r in after.returns]


def argument(value: Any, type_: Type, arithmetic: Arithmetic) -> Array:
    """A host scalar as the array of shape (1,) that a program takes; floats stay what the host passes: fp32."""
    if type_.element not in FLOATS:
        return np.array([value], integer(type_))
    return arithmetic.constant(float(np.float64(value) if type_.element == "f64" else np.float32(value)), type_.element)
