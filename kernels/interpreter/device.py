"""What libraries ask torch.cuda at import and at launch, answered for the device that the interpreter stands for.

A library that sees a CUDA driver asks torch for its name, capability and stream, and torch without a GPU raises.
Only questions and empty gestures are answered: `torch.cuda.is_available()` and `device_count()` stay as they are.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch

from .target import PROPERTIES, TARGET

_CAPABILITY = divmod(int(TARGET.arch), 10)
_NAME = "flashproof interpreter"
_STREAM = SimpleNamespace(cuda_stream=0, synchronize=lambda: None, wait_stream=lambda _stream: None)
_PROPERTIES = SimpleNamespace(
    name=_NAME,
    major=_CAPABILITY[0],
    minor=_CAPABILITY[1],
    total_memory=1 << 34,
    multi_processor_count=PROPERTIES["multiprocessor_count"],
    warp_size=PROPERTIES["warpSize"],
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=PROPERTIES["max_shared_mem"],
    shared_memory_per_multiprocessor=PROPERTIES["max_shared_mem"],
    regs_per_multiprocessor=PROPERTIES["max_num_regs"],
    max_threads_per_multi_processor=1536,
    L2_cache_size=1 << 25,
    gcnArchName="",  # torch.compile asks for it on every build without CUDA, also to compile for the CPU
)


class _Device(nullcontext[None]):
    """`with torch.cuda.device(index)`: there is one device, so nothing changes."""

    def __init__(self, _device: Any = None) -> None:
        super().__init__()


_ANSWERS: dict[str, Any] = {
    "get_device_name": lambda _device=None: _NAME,
    "get_device_capability": lambda _device=None: _CAPABILITY,
    "get_device_properties": lambda _device=None: _PROPERTIES,
    "current_device": lambda: 0,
    "set_device": lambda _device: None,
    "synchronize": lambda _device=None: None,
    "current_stream": lambda _device=None: _STREAM,
    "device": _Device,
    "device_of": _Device,
}
_originals: dict[str, Any] = {}


def answer() -> None:
    """Answer torch.cuda's questions from now on; with a real GPU, torch goes on answering them."""
    if _originals or torch.cuda.is_available():
        return
    for name, stand_in in _ANSWERS.items():
        _originals[name] = getattr(torch.cuda, name)
        setattr(torch.cuda, name, stand_in)


def restore() -> None:
    """Undo `answer`."""
    for name, original in _originals.items():
        setattr(torch.cuda, name, original)
    _originals.clear()
