"""Tensor descriptors that hardware would refuse.

For an older GPU Triton lowers a descriptor to plain pointers, which is what the interpreter runs; any address and any
strides would do.  A GPU that has descriptors wants a base and strides that are multiples of 16 bytes and a last stride
of 1 (CUDA driver API, cuTensorMapEncodeTiled).  So the conditions are written into the kernel as assertions, before
the descriptors disappear from it.
"""

from __future__ import annotations

import re
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from triton._C.libtriton import ir

from .numbers.formats import STORAGE

#: how the assertions' messages begin; they matter where memory is tracked
MISALIGNED = "misaligned tensor descriptor"
_MADE = re.compile(
    r"^ *%\S+ = tt\.make_tensor_descriptor (?P<base>%\S+), \[[^\]]*\], \[(?P<strides>[^\]]*)\](?P<rest>.*?)"
    r"(?P<at> loc\(.*\))?$",
    re.MULTILINE,
)
_ALIGNMENT = 16  # bytes


def with_assertions(module: Any, context: Any) -> Any:
    """The module with assertions after each descriptor made in the kernel; itself, if it makes none."""
    text = str(module)
    if "tt.make_tensor_descriptor" not in text:
        return module
    numbers = count()

    def followed(made: re.Match[str]) -> str:
        lines = _assertions(made, next(numbers))
        return "\n".join([made[0], *(line + (made["at"] or "") for line in lines)])

    text = _MADE.sub(followed, text)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ttir"
        path.write_text(text)
        checked = ir.parse_mlir_module(str(path), context)
    checked.context = context
    return checked


def _assertions(made: re.Match[str], number: int) -> list[str]:
    element = re.search(r"<(\w+)>", made["rest"])
    size = STORAGE[element[1]].itemsize if element is not None and element[1] in STORAGE else 1
    name = f"%descriptor_{number}"
    lines = [
        f"{name}_a = tt.ptr_to_int {made['base']} : !tt.ptr<{element[1] if element else 'i8'}> -> i64",
        f"{name}_m = arith.constant {_ALIGNMENT - 1} : i64",
        f"{name}_z = arith.constant 0 : i64",
        f"{name}_s = arith.constant {size} : i64",
        f"{name}_1 = arith.constant 1 : i64",
        *_multiple(name, "a", f"{name}_a", f"its base is no multiple of {_ALIGNMENT} bytes"),
    ]
    *outer, last = [s.strip() for s in made["strides"].split(",")]
    for i, stride in enumerate(outer):
        lines.append(f"{name}_b{i} = arith.muli {stride}, {name}_s : i64")
        lines += _multiple(name, f"b{i}", f"{name}_b{i}", f"stride {i} is no multiple of {_ALIGNMENT} bytes")
    lines.append(f"{name}_l = arith.cmpi eq, {last}, {name}_1 : i64")
    lines.append(f'tt.assert {name}_l, "{MISALIGNED}: its last stride is not 1" : i1')
    return lines


def _multiple(name: str, tag: str, value: str, message: str) -> list[str]:
    return [
        f"{name}_r{tag} = arith.andi {value}, {name}_m : i64",
        f"{name}_c{tag} = arith.cmpi eq, {name}_r{tag}, {name}_z : i64",
        f'tt.assert {name}_c{tag}, "{MISALIGNED}: {message}" : i1',
    ]
