"""The bundled kernels compile for NVIDIA GPUs that are not there, within the shared memory that these have."""

from __future__ import annotations

import itertools

import pytest
import torch
import triton
from flashproof.kernels import schedules
from flashproof.kernels.backward import backward_dkdv, backward_dq
from flashproof.kernels.forward import flash_forward
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

KERNELS = {"forward": flash_forward, "dkdv": backward_dkdv, "dq": backward_dq}
SHARED = {
    80: 163 * 1024,
    86: 99 * 1024,
    90: 227 * 1024,
}  # bytes of a block, CUDA C++ Programming Guide, table of capabilities
_ELEMENTS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
_TILED = ("q", "k", "v", "o", "do", "dq", "dk", "dv")


def compiled(name: str, capability: int, dtype: torch.dtype, constants: dict, **options):
    kernel, types, values = KERNELS[name], {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument in constants:
            types[argument], values[(i,)] = "constexpr", constants[argument]
        elif argument in _TILED:
            types[argument] = _ELEMENTS[dtype]
        else:
            types[argument] = {"key_lengths": "*i32", "mask": _ELEMENTS[dtype], "lse": "*fp32", "delta": "*fp32",
                               "scale": "fp32"}.get(argument, "i32")  # fmt: skip
    source = ASTSource(kernel, types, constexprs=values)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.fixture
def device_of(monkeypatch):
    def stand_in(capability: int) -> torch.device:
        monkeypatch.setattr(schedules, "_capability", lambda _: divmod(capability, 10))
        return torch.device("cuda")

    return stand_in


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("capability", "block_d", "dtype"), [
    *itertools.product((80, 90), (64, 128), (torch.bfloat16,)),
    (86, 256, torch.float16), (86, 256, torch.float32), (90, 16, torch.float32),
])  # fmt: skip
@pytest.mark.parametrize("mask", [0, 2])
def test_it_compiles_and_fits(device_of, name, capability, block_d, dtype, mask):
    chosen = schedules.schedule(name, block_d, dtype, device_of(capability), masked=mask != 0)
    told = {n: chosen.pop(n) for n in ("BLOCK_M", "BLOCK_N", "DESCRIPTORS") if n in chosen}
    constants = {**told, "BLOCK_D": block_d, "BAND": True, "MASK_KIND": mask, "PADDED": False, "ALIGNED": True}
    done = compiled(name, capability, dtype, constants, **chosen)
    assert done.metadata.shared <= SHARED[capability]
    if capability == 90 and dtype == torch.bfloat16:
        assert "wgmma" in done.asm["ptx"], "not on the tensor cores' own instructions"
    assert ("cp.async.bulk.tensor" in done.asm["ptx"]) == told.get("DESCRIPTORS", False)
    assert told.get("DESCRIPTORS", False) == (name != "forward" and capability == 90 and block_d >= 64 and mask == 0)


def test_rows_that_are_aligned_move_in_wide_accesses():
    """16 bytes at once: eight elements."""
    constants = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": 64, "BAND": False, "MASK_KIND": 0, "PADDED": True}
    wide, narrow = (
        compiled("forward", 80, torch.bfloat16, constants | {"ALIGNED": a}).asm["ptx"].count("ld.global")
        for a in (True, False)
    )
    assert wide < narrow / 4
