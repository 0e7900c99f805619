"""Reports: a run's record (versioned data) -> HTML, JUnit, Markdown.

Everything here is a pure function of the record: no torch, no kernel, no measuring.

    run = load(Path("flashproof-run"))
    Path("report.html").write_text(render([run]), encoding="utf-8")

The functions of `junit` and `summary` have the names of their modules, and are imported from there.
"""

from .html import render
from .record import SCHEMA, RecordError, Row, Run, load, write_json_atomic
from .rows import ShardWriter, read_shards, write_parquet_atomic

__all__ = [
    "SCHEMA",
    "RecordError",
    "Row",
    "Run",
    "ShardWriter",
    "load",
    "read_shards",
    "render",
    "write_json_atomic",
    "write_parquet_atomic",
]
