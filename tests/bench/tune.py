"""Times the bundled kernels in every schedule on this GPU: `python tests/bench/tune.py`.

Each schedule is compiled in one of several processes, then timed in this one, forward, dK/dV and dQ apart.  Prints
for each kernel, head dimension and mask the fastest schedules, and lines for the table in `kernels/schedules.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from pathlib import Path

import torch
from flashproof.kernels import attention as bundled
from triton.testing import do_bench

Schedule = tuple[int, int, int, int, int | None]
B, H, N = 4, 16, 4096


def choices(kernel: str) -> list[Schedule]:
    """Every schedule that is worth a try."""
    rows, columns = ((64, 128, 256), (32, 64, 128)) if kernel != "dkdv" else ((32, 64, 128), (64, 128))
    stages = (2, 3, 4) if kernel == "forward" else (1, 2, 3)
    every = itertools.product(rows, columns, (4, 8), stages, (None, 128))
    return [s for s in every if 4096 <= s[0] * s[1] <= 16384]


def tensors(head_dim: int, length: int, heads: int = H, batch: int = B) -> list[torch.Tensor]:
    return [torch.randn(batch, heads, length, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(4)]


def call(kernel: str, chosen: Schedule, x: list[torch.Tensor], causal: bool) -> Callable[[], object]:
    """A function that launches one kernel in one schedule; the backward kernels with tensor descriptors."""
    q, k, v, do = x
    launch = bundled.Launch(scale=q.shape[3] ** -0.5, mask=None, key_lengths=None, diagonal=0, left=None,
                            right=0 if causal else None, tiles=None)  # fmt: skip
    names = ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages", "maxnreg")
    launch = Fixed(launch, dict(zip(names, chosen, strict=True)))
    if kernel == "forward":
        return lambda: bundled.forward(q, k, v, launch)
    o, lse = torch.empty_like(q), torch.zeros(q.shape[:3], device="cuda")
    delta = torch.zeros_like(lse)
    common = launch.arguments(q, k, v, do)
    launch.chosen["DESCRIPTORS"] = True
    mask, lengths, strides = launch.pointers(lse)
    given = (*q.stride(), *k.stride(), *v.stride(), *do.stride(), *strides, *lse.stride())
    if kernel == "dq":
        grid = bundled._grid(q.shape[2], chosen[0], q.shape[1], q.shape[0])
        return lambda: bundled.launch_backward(bundled.backward_dq, grid, q, k, v, do, mask, lengths, lse, delta, o,
                                               *given, *o.stride(), **common, **launch.chosen)  # fmt: skip
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    grid = bundled._grid(k.shape[2], chosen[1], k.shape[1], k.shape[0])
    return lambda: bundled.launch_backward(bundled.backward_dkdv, grid, q, k, v, do, mask, lengths, lse, delta, dk, dv,
                                           *given, *dk.stride(), *dv.stride(), **common, **launch.chosen)  # fmt: skip


class Fixed:
    """A launch in a schedule of ours."""

    def __init__(self, launch: bundled.Launch, chosen: dict[str, int]) -> None:
        self._launch, self.chosen = launch, chosen
        self.arguments, self.pointers = launch.arguments, launch.pointers

    def schedule(self, kernel: str, q: torch.Tensor) -> dict[str, int]:
        return self.chosen


def compiles(task: tuple[str, int, bool, Schedule]) -> bool:
    kernel, head_dim, causal, chosen = task
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        try:
            call(kernel, chosen, tensors(head_dim, 256, 1, 1), causal)()
            torch.cuda.synchronize()
        except Exception:  # noqa: BLE001  (more shared memory than there is, or more than the compiler takes)
            return False
    return True


def rate(milliseconds: float, head_dim: int, causal: bool, products: int) -> float:
    return 2 * products * B * H * N * N * head_dim * (0.5 if causal else 1) / milliseconds * 1e-9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kernels", nargs="+", default=["forward", "dkdv", "dq"])
    parser.add_argument("--dims", nargs="+", type=int, default=[64, 128])
    a = parser.parse_args()
    tasks = [(kernel, d, causal, s) for kernel in a.kernels for d in a.dims for causal in (False, True)
             for s in choices(kernel)]  # fmt: skip
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        works = dict(zip(tasks, pool.map(compiles, tasks, chunksize=4), strict=True))
    print(f"{sum(works.values())} of {len(tasks)} compile", flush=True)
    times: dict[tuple[str, int, bool], list[tuple[float, Schedule]]] = {}
    for d in a.dims:
        for causal in (False, True):
            print(f"D {d} causal {causal}", flush=True)
            x = tensors(d, N)
            for kernel in a.kernels:
                found = times[kernel, d, causal] = sorted(
                    (do_bench(call(kernel, s, x, causal), warmup=10, rep=40, return_mode="median"), s)
                    for s in choices(kernel) if works[kernel, d, causal, s]
                )  # fmt: skip
                products = {"forward": 2, "dkdv": 4, "dq": 3}[kernel]
                print(f"  {kernel}", "; ".join(f"{s} {t:.3f} ms {rate(t, d, causal, products):.0f}"
                                               for t, s in found[:5]), flush=True)  # fmt: skip
    if a.out:
        a.out.write_text(json.dumps([[*key, value] for key, value in times.items()]))


if __name__ == "__main__":
    main()
