"""Tiles, warps, pipeline depth and registers of each kernel: they change its speed and the order of its sums alone."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch

Kernel = Literal["forward", "dkdv", "dq"]

#: (BLOCK_M, BLOCK_N, num_warps, num_stages, maxnreg) for fp16 and bf16 on compute capability 9.0, by kernel and
#: BLOCK_D: what `python tests/bench/tune.py` found fastest on an H200, with a causal mask and without
HOPPER: dict[tuple[Kernel, int], tuple[int, int, int, int, int | None]] = {
    ("forward", 64): (128, 64, 8, 4, None), ("forward", 128): (128, 128, 8, 2, None),
    ("dkdv", 64): (128, 64, 4, 2, None), ("dkdv", 128): (64, 64, 4, 2, None),
    ("dq", 64): (128, 64, 8, 3, 128), ("dq", 128): (128, 64, 8, 3, None),
}  # fmt: skip


def schedule(kernel: Kernel, block_d: int, dtype: torch.dtype, device: torch.device, masked: bool) -> dict[str, Any]:
    """Keyword arguments of a launch; `masked` means by a tensor, whose tiles take shared memory of their own.

    Interpreted kernels take small tiles, so that short sequences still cross tile edges.  The backward kernels are told
    whether to load by tensor descriptors, where rows are aligned; in the forward kernel these do not pay.
    """
    hopper = device.type == "cuda" and dtype.itemsize == 2 and not masked and _capability(device) == (9, 0)
    found = HOPPER.get((kernel, block_d)) if hopper else None
    descriptors = {} if kernel == "forward" else dict(DESCRIPTORS=found is not None)
    if device.type == "cpu":
        return dict(BLOCK_M=32, BLOCK_N=32) | descriptors
    names = ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages", "maxnreg")
    return dict(zip(names, found or _by_size(kernel, block_d, dtype.itemsize), strict=True)) | descriptors


def _by_size(kernel: Kernel, block_d: int, itemsize: int) -> tuple[int, int, int, int, int | None]:
    """Where nobody tuned: at most 99 KiB of shared memory, which every device since Ampere has."""
    if itemsize == 2:
        rows, columns = (64, 64) if block_d <= 64 else (64, 32) if block_d <= 128 else (32, 32)
        if kernel == "dkdv":  # whose logits are transposed: Hopper's instruction has at least 64 rows
            rows, columns = columns, rows
        return rows, columns, 4, 2, None
    rows, columns = (32, 32) if block_d <= 64 else (16, 32) if block_d <= 128 else (16, 16)
    return rows, columns, 4, 1, None


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
