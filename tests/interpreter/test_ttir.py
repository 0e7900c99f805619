"""Reading TTIR."""

from __future__ import annotations

import pytest
from flashproof.kernels.interpreter.language import ttir


def test_names_are_unique_across_regions():
    text = """
    tt.func public @k(%n: i32) {
      scf.for %i = %n to %n step %n  : i32 {
        %a = arith.addi %i, %n : i32
      }
      scf.for %i = %n to %n step %n  : i32 {
        %a = arith.muli %i, %n : i32
      }
      tt.return
    }"""
    (function,) = ttir.parse(text).values()
    inner = [op.regions[0].blocks[0].ops[0] for op in function.body.blocks[0].ops if op.regions]
    assert inner[0].results != inner[1].results
    assert inner[0].operands != inner[1].operands


def test_truncated_text_is_an_error():
    with pytest.raises(ttir.ParseError):
        ttir.parse("tt.func public @k(%n: i32) {\n %a = arith.addi %n, %n : i32")
