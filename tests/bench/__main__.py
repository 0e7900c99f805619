"""Our interpreter beside Triton's own: speed, and whether the bits are the same.  Prints Markdown; see `nox -s bench`.

Each engine has a process of its own, the two take turns, and every figure is the median over the rounds.  "First" is
the first call of a process: Triton's interpreter needs nothing for it, ours translates the kernel (`first`) or finds
it translated by an earlier process (`first, translated`).  "Warm" is any call after that; "tracked / ours" is what
tracking memory costs a warm call of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flashproof.verify.errors import ulps_between
from operations import NAMES, STANDS_FOR, UNARY, candidates
from torch import Tensor

from kernels import WORKLOADS, Workload

_HERE = Path(__file__).parent


class Engine:
    """A process that times kernels."""

    def __init__(self, name: str, folder: Path) -> None:
        interpret = {"TRITON_INTERPRET": "1" if name == "triton" else "0"}
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._file = folder / f"{name}.pt"
        self._process = subprocess.Popen(
            [sys.executable, str(_HERE / "engine.py"), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **interpret, **single},
        )  # fmt: skip

    def ask(self, task: str, cache: Path, seconds: float, replace: Sequence[str] = ()) -> dict[str, Any]:
        """Our engine computes the functions named in `replace` as numpy does.

        Raises RuntimeError when the engine fails at the task.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"task": task, "cache": str(cache), "seconds": seconds, "file": str(self._file),
                   "replace": replace}  # fmt: skip
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer or json.loads(answer)["exit"] != 0:
            raise RuntimeError(f"{' '.join(map(str, self._process.args[1:]))} failed at {task!r}")  # type: ignore[union-attr,index]
        result: dict[str, Any] = torch.load(self._file, weights_only=True)
        return result

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@dataclass(slots=True)
class Times:
    """Seconds of one workload, a value per round."""

    first: list[float] = field(default_factory=list)
    translated: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    tracked: list[float] = field(default_factory=list)  # warm, with memory tracked

    def add(self, answer: dict[str, Any]) -> None:
        self.first.append(answer["first"])
        self.warm.append(min(answer["warm"]))
        self.tracked += [min(answer["tracked"])] if answer["tracked"] else []


def difference(a: Tensor, b: Tensor) -> tuple[int, int, float]:
    """Elements that differ in their bits, the largest distance in ulp, and that distance over the RMS of the tensor."""
    kind = {2: torch.int16, 4: torch.int32}[a.element_size()]
    bits = [x.contiguous().view(kind).long() for x in (a, b)]
    unequal = int((bits[0] != bits[1]).sum())
    distance = ulps_between(a, b) if a.is_floating_point() else (bits[0] - bits[1]).abs()
    apart, size = (a.double() - b.double()).abs().max(), b.double().square().mean().sqrt()
    return unequal, int(distance.max()), float(apart / size) if unequal else 0.0


def _bits(pairs: list[tuple[Tensor, Tensor]]) -> str:
    found = [difference(a, b) for a, b in pairs]
    differ, total = sum(f[0] for f in found), sum(a.numel() for a, _ in pairs)
    if differ == 0:
        return "the same"
    return f"{differ} of {total} differ, by up to {max(f[1] for f in found)} ulp or {max(f[2] for f in found):.1g} RMS"


def _pairs(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(a["outputs"], b["outputs"], strict=True))


def _time(seconds: float) -> str:
    size, unit = next((s, u) for s, u in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")) if seconds >= s or s == 1e-6)
    return f"{seconds / size:.3g} {unit}"


def _row(w: Workload, ours: Times, theirs: Times, bits: str) -> tuple[str, float]:
    a, b = ({n: statistics.median(getattr(t, n)) for n in ("first", "warm")} for t in (ours, theirs))
    translated = statistics.median(ours.translated)
    ratios = (b["warm"] / a["warm"], b["first"] / translated, b["first"] / a["first"])
    watched = f"{statistics.median(ours.tracked) / a['warm']:.2f}"
    cells = (w.name, _time(b["warm"]), _time(a["warm"]), f"**{ratios[0]:.3g}**", watched, _time(b["first"]),
             _time(translated), f"{ratios[1]:.3g}", _time(a["first"]), f"{ratios[2]:.3g}", bits)  # fmt: skip
    return f"| {' | '.join(cells)} |", ratios[0]


def _operation_rows(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[list[str], set[str]]:
    """A table of the operations alone, and those in which the engines differ."""
    rows, differ = [], set()
    for name in NAMES:
        if not torch.equal(ours[name], theirs[name]):
            differ.add(name)
        ways = candidates(name)
        like = [
            ", ".join(way for way, value in ways.items() if np.array_equal(value, result.numpy())) or "none of these"
            for result in (theirs[name], ours[name])
        ]
        rows.append(f"| {name} | {_bits([(ours[name], theirs[name])])} | {' | '.join(like if ways else ('', ''))} |")
    return rows, differ


def main() -> int:
    """Time, compare, print.  The exit code is 0 unless an engine fails: slow is a finding, not an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3, help="of warm calls per workload, engine and round")
    parser.add_argument("-k", default="", help="only workloads whose name contains this")
    options = parser.parse_args()
    chosen = [w for w in WORKLOADS if options.k in w.name]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, theirs = Engine("ours", folder), Engine("triton", folder)
        try:
            return _bench(ours, theirs, folder, chosen, options.rounds, options.seconds)
        finally:
            ours.close()
            theirs.close()


def _bench(ours: Engine, theirs: Engine, folder: Path, chosen: list[Workload], rounds: int, seconds: float) -> int:
    alone = [engine.ask("operations", folder / "operations", 0) for engine in (ours, theirs)]
    table, differ = _operation_rows(*alone)
    columns = ("kernel", "Triton warm", "ours warm", "ratio", "tracked / ours", "Triton first",
               "ours first, translated", "ratio", "ours first", "ratio", "bits")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    slower, missed = [], []
    for w in chosen:
        own, other = Times(), Times()
        for r in range(rounds):
            a = ours.ask(w.name, folder / f"{w.name}-{r}", seconds)
            own.translated.append(ours.ask(w.name, folder / f"{w.name}-{r}", 0)["first"])
            b = theirs.ask(w.name, folder / "unused", seconds)
            own.add(a)
            other.add(b)
        bits = _bits(_pairs(a, b))
        if bits != "the same":
            guilty = [n for op in a["operations"] for n in STANDS_FOR.get(op, ()) if n in differ]
            bits += f"; its operations that differ alone: {', '.join(guilty) or 'none'}"
            if replaced := [n for n in guilty if n in UNARY]:
                changed = ours.ask(w.name, folder / f"{w.name}-replaced", 0, replaced)
                bits += f"; with numpy's {', '.join(replaced)} in ours {_bits(_pairs(changed, b))}"
        line, ratio = _row(w, own, other, bits)
        print(line, flush=True)
        missed += [w.name] if ratio < w.wanted else []
        firsts = (statistics.median(x) for x in (other.first, own.translated, own.first))
        slower += [w.name] if next(firsts) < max(firsts) else []
    print(f"\nWarm ratio below what is promised (20, 10, else 1): {', '.join(missed) or 'none'}")
    print(f"First call slower than Triton's interpreter: {', '.join(slower) or 'none'}")
    print("\n| operation alone | bits | Triton's interpreter computes it as | ours computes it as |\n|---|---|---|---|")
    print("\n".join(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
