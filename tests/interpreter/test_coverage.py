"""The table of what the interpreter runs says what the tests say."""

from __future__ import annotations

import runpy
from pathlib import Path


def test_the_coverage_table_is_up_to_date():
    script = runpy.run_path(str(Path(__file__).with_name("coverage_table.py")))
    assert script["TABLE"].read_text() == script["table"](), "run `nox -s coverage`"
