"""What a mutant is, and how it becomes a module: a few edits of the bundled kernels' text, joined into one file.

The edited text is a complete kernel that somebody could have written: one module, no imports of ours.  It is never
on disk.  The module's loader hands its text to `inspect`, which is where Triton reads a kernel from.
"""

from __future__ import annotations

import difflib
import importlib.abc
import importlib.util
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Protocol

from triton.runtime.jit import JITFunction

from .. import backward, forward, tiles

PARTS = ("tiles.py", "schedules.py", "forward.py", "backward.py", "attention.py")
TILES, SCHEDULES, FORWARD, BACKWARD, ATTENTION = PARTS
#: which tensors a finding may name: a wrong forward is found there, whatever it does to the gradients
OUTPUTS, GRADIENTS = ("out", "lse"), ("dq", "dk", "dv")

_KERNELS = Path(__file__).parents[1]
#: imports among the parts, and of what Python 3.11 does without (Triton's annotations must stay objects)
_DROPPED = re.compile(r"^from (\.\w+|__future__) import (\([^)]*\)|.*)\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Edit:
    """In `file`, the text `sound`, which is there exactly once, becomes `faulty`."""

    file: str
    sound: str
    faulty: str

    def apply(self, text: str) -> str:
        """The edited text.

        Raises:
            ValueError: `sound` is not there, or more than once.
        """
        if (times := text.count(self.sound)) != 1:
            raise ValueError(f"{self.file} has {times} times {self.sound!r}, not once")
        return text.replace(self.sound, self.faulty)


class Edited(Protocol):
    """What `source_of` and its neighbours take: a `Mutant` or a `Variant`."""

    @property
    def name(self) -> str: ...
    @property
    def edits(self) -> tuple[Edit, ...]: ...


@dataclass(frozen=True, slots=True)
class Mutant:
    """A kernel with one defect.

    name: as in `mutant:NAME`.
    mirrors: the published bug that it repeats in small, or "own: ..." with why it is likely.
    what: the defect, in one sentence.
    tensors: those that a finding may rightly name; none when the fault is in what the call does, not in a result.
    reading: which inputs show it, where that is not nearly all.
    subtle: on ordinary inputs its largest error is within twice standard attention's; measured by the tests.
    use: what shows it when no single call does that hands out all gradients of `out`; else empty.
    """

    name: str
    mirrors: str
    what: str
    tensors: tuple[str, ...]
    edits: tuple[Edit, ...]
    reading: str = ""
    subtle: bool = False
    use: str = ""


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel that computes the same in another way, and is right."""

    name: str
    what: str
    edits: tuple[Edit, ...]


def sound_source() -> str:
    """The bundled kernels as one module, unedited."""
    return _joined({part: (_KERNELS / part).read_text() for part in PARTS})


def source_of(mutant: Edited) -> str:
    """The whole text of a mutant or variant.

    Raises:
        ValueError: for an edit that names no part or does not apply exactly once.
    """
    texts = {part: (_KERNELS / part).read_text() for part in PARTS}
    for edit in mutant.edits:
        if edit.file not in texts:
            raise ValueError(f"no part {edit.file!r}; there are {', '.join(PARTS)}")
        texts[edit.file] = edit.apply(texts[edit.file])
    return _joined(texts)


def _joined(texts: dict[str, str]) -> str:
    return "\n\n".join(_DROPPED.sub("", texts[part]) for part in PARTS)


def diff_of(mutant: Edited) -> str:
    """What the edits change, as a unified diff."""
    sound, edited = (text.splitlines(keepends=True) for text in (sound_source(), source_of(mutant)))
    return "".join(difflib.unified_diff(sound, edited, "sound/kernel.py", f"{mutant.name}/kernel.py"))


class _FromMemory(importlib.abc.SourceLoader):
    """A module whose file exists nowhere but here."""

    def __init__(self, path: str, text: str) -> None:
        self._path, self._text = path, text

    def get_filename(self, fullname: str) -> str:  # noqa: ARG002  (the interface's)
        return self._path

    def get_data(self, path: str) -> bytes:
        if path != self._path:  # its byte code, which is kept nowhere either
            raise OSError(path)
        return self._text.encode()


@cache
def load_module(mutant: Edited) -> ModuleType:
    """The module of a mutant or variant, imported once; `attention` in it is the function.

    Its file name holds the mutant's, so that whatever is cached by a kernel's file is the mutant's own.
    """
    name = f"{__package__}.{type(mutant).__name__.lower()}_{mutant.name.replace('-', '_')}"
    loader = _FromMemory(f"<{type(mutant).__name__.lower()} {mutant.name}>/kernel.py", source_of(mutant))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect finds a function's module by its name
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _share_what_is_sound(module)
    return module


def _share_what_is_sound(module: ModuleType) -> None:
    """Put the bundled kernels themselves where the edits changed nothing: Triton need not translate them once more."""
    sound = {n: k for part in (tiles, forward, backward) for n, k in vars(part).items()}

    @cache
    def unchanged(name: str) -> bool:
        own, bundled = getattr(module, name), sound.get(name)
        if not isinstance(own, JITFunction):
            value = getattr(own, "value", own)  # of a constexpr
            return bool(value == getattr(bundled, "value", bundled))
        if not isinstance(bundled, JITFunction) or own.src != bundled.src:
            return False
        return all(unchanged(n) for n in own.fn.__code__.co_names if n in vars(module))

    shared = [n for n, k in vars(module).items() if isinstance(k, JITFunction) and unchanged(n)]
    for name in shared:
        setattr(module, name, sound[name])
