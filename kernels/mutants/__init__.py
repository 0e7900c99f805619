"""Deliberate faults of the bundled kernels, and rearrangements of them that are right: how a verdict is judged."""

from __future__ import annotations

from . import conditional, gradients, host, indexing, lse, masking, memory, rounding, softmax, usage
from .source import Edit, Mutant, Variant, diff_of, load_module, source_of
from .variants import VARIANTS as _VARIANTS

_THEMES = (masking, softmax, rounding, lse, gradients, indexing, memory, conditional, host, usage)

#: by name
MUTANTS: dict[str, Mutant] = {m.name: m for theme in _THEMES for m in theme.MUTANTS}
VARIANTS: dict[str, Variant] = {v.name: v for v in _VARIANTS}

__all__ = ["MUTANTS", "VARIANTS", "Edit", "Mutant", "Variant", "diff_of", "load_module", "source_of"]
