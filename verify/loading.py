"""Finding an implementation: a built-in name, `package.module:function`, `path/to/file.py:function`, or a mutant."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .builtin import BUILTIN
from .implementation import Implementation, recognise
from .outputs import describe
from .problems import UsageError


def load(spec: str) -> Implementation:
    """A built-in name, `package.module:function`, `path/to/file.py:function`, `mutant:NAME` or `variant:NAME`.

    Raises:
        UsageError: in one line, for whatever cannot be found, imported or recognised.
    """
    if spec in BUILTIN:
        return BUILTIN[spec]()
    target, colon, attribute = spec.rpartition(":")
    if Path(spec.rstrip(":")).is_file():
        raise UsageError(f"{spec} names no function: give {spec.rstrip(':')}:function")
    if not colon or not target or not attribute:
        raise UsageError(
            f"unknown implementation {spec!r}: use one of {', '.join(BUILTIN)}, "
            "or package.module:function, or file.py:function"
        )
    if target in ("mutant", "variant"):
        return recognise(spec, _edited(target, attribute))
    module = _import_file(Path(target)) if target.endswith(".py") else _import_module(target)
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if found is None:
        own = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
        raise UsageError(f"{target} has no {attribute!r}; its functions are {', '.join(own[:20]) or 'none'}")
    if not callable(found):
        raise UsageError(f"{spec} is of type {type(found).__name__}; name a function")
    return recognise(spec, found)


def _edited(kind: str, name: str) -> Any:
    """The bundled kernel with a deliberate fault, or rearranged."""
    from ..kernels import mutants

    known: dict[str, Any] = dict(mutants.MUTANTS if kind == "mutant" else mutants.VARIANTS)
    if name not in known:
        near = difflib.get_close_matches(name, known, 4, 0.0)
        raise UsageError(f"no {kind} {name!r}; there are {', '.join(near)} and {len(known) - len(near)} more")
    return mutants.load_module(known[name]).attention


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"no such file: {path}; give path/to/file.py:function")
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # the file's own neighbours, as when it is run
        sys.path.insert(0, folder)
    name = _name_of(path)
    loader = importlib.util.spec_from_file_location(name, path)
    assert loader is not None and loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module
    with _importing(str(path)), np.errstate():  # what it asks of numpy's errors would hold for ours, too
        loader.loader.exec_module(module)
    return module


def _name_of(path: Path) -> str:
    """Its own, by which a process that it starts can import it; if another module is known by that, another."""
    known = sys.modules.get(path.stem)
    at: Any = getattr(known, "__file__", "") if known else getattr(_found(path.stem), "origin", None)
    return path.stem if at and Path(at).resolve() == path.resolve() else f"flashproof_user_{path.stem}"


def _found(name: str) -> Any:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _import_module(name: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:  # a script's path lacks the folder that one is in
        sys.path.insert(0, str(Path.cwd()))
    with _importing(name), np.errstate():
        return importlib.import_module(name)


@contextmanager
def _importing(name: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        hint = "; install that beside flashproof" if isinstance(e, ModuleNotFoundError) else ""
        raise UsageError(f"{name} does not import: {describe(e)}{hint}") from e
