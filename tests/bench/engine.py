"""One engine in a process of its own: `python engine.py ours` or, with TRITON_INTERPRET=1, `python engine.py triton`.

Requests come as lines of JSON, answers go back the same way.  Each is worked off in a fork, in which no kernel has been
translated, prepared or cached yet: the first call there is a first call.  What Triton and torch import at the very
first launch and gradient of a process, whichever the engine, has been imported.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import triton.experimental.gluon
import triton.tools.tensor_descriptor  # noqa: F401
from operations import NAMES, UNARY, run

from kernels import WORKLOADS


def _timed(name: str, cache: str, seconds: float) -> dict[str, Any]:
    """Wall seconds of the first call, and of those after it for as long as there is time; outputs; what was run."""
    os.environ["TRITON_CACHE_DIR"] = cache
    call = next(w for w in WORKLOADS if w.name == name).make()
    start = time.perf_counter()
    outputs = call()
    first = time.perf_counter() - start
    warm, outputs = _repeated(call, seconds)
    tracked = []
    if sys.argv[1] == "ours":
        from flashproof.kernels.interpreter import Tracked, interpret

        with interpret(memory=Tracked(unwritten=False)):  # outputs made once, out here, are written again and again
            tracked, _ = _repeated(call, seconds)
    return {"first": first, "warm": warm, "tracked": tracked, "outputs": outputs, "operations": _operations()}


def _repeated(call: Callable[[], Any], seconds: float) -> tuple[list[float], Any]:
    times: list[float] = []
    while not times or sum(times) < seconds:
        start = time.perf_counter()
        outputs = call()
        times.append(time.perf_counter() - start)
    return times, outputs


def _operations() -> list[str]:
    """Of the kernels that our engine has prepared, the operations of TTIR."""
    from flashproof.kernels.interpreter import runtime

    if not runtime.installed():
        return []

    def names(region: Any) -> set[str]:
        ops = [op for block in region.blocks for op in block.ops]
        return {op.name for op in ops}.union(*(names(inner) for op in ops for inner in op.regions))

    prepared = runtime._installed.kernels.values()  # type: ignore[union-attr]
    return sorted(set().union(*(names(k.ttir.body) for k in prepared)))


def _answer(request: dict[str, Any]) -> None:
    if request["task"] == "operations":
        answer: dict[str, Any] = {name: run(name) for name in NAMES}
    else:
        if request["replace"]:
            from flashproof.kernels.interpreter.numbers import arithmetic

            arithmetic.UNARY.update({name: UNARY[name] for name in request["replace"]})
        answer = _timed(request["task"], request["cache"], request["seconds"])
    torch.save(answer, request["file"])


class _Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g


def main() -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(1)
    if sys.argv[1] == "ours":
        from flashproof.kernels import interpreter

        interpreter.install()
    x = torch.zeros(1, requires_grad=True)
    torch.autograd.grad(_Nothing.apply(x), x, torch.ones(1))
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _answer(json.loads(line))
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status)}), flush=True)


main()
