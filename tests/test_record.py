"""The record: what is written is what is read, and what cannot be read is refused in one clear line."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import duckdb
import pytest
from flashproof.reports import record, rows
from flashproof.reports.record import (
    COLUMNS,
    SCHEMA,
    Answer,
    Cell,
    Check,
    Exactness,
    Finding,
    Manifest,
    RecordError,
    Row,
    ShardWriter,
    Verdict,
    load,
    read_shards,
    write_json_atomic,
    write_parquet_atomic,
)

HOSTILE = "</script><b>&\"' \u2028 \x00 \ud800 naïve 注意"


def row(case_id: str = "a", **values: Any) -> Row:
    defaults = {"phase": "survey", "status": "ok", "tensor": "out", "dtype": "bf16", "kernel_rms": 0.5}
    return Row(case_id=case_id, **(defaults | values))


def manifest(**values: Any) -> Manifest:
    defaults: dict[str, Any] = {
        "implementation": "flash",
        "profile": "quick",
        "seed": 0,
        "created": "2026-11-20T11:00:00+00:00",
        "command": "flashproof verify flash",
        "device": "cpu (interpreted)",
        "versions": {"python": "3.11.7"},
        "machine": {"cpu": "x", "cores": 2},
    }
    return Manifest(**(defaults | values))


def verdict(**values: Any) -> Verdict:
    answer = Answer(status="pass", evidence="12 cases")
    defaults: dict[str, Any] = {
        "implementation": "flash",
        "verdict": "pass",
        "sentence": "Exact.",
        "exactness": Exactness(algebraic=answer, bitwise=answer, accuracy=answer),
        "checks": (Check(name="bound", status="pass", tensor="dq", n=7, detail="0.4 of 1"),),
        "cells": (Cell(dtype="bf16", tensor="dq", mask="none", regime="normal", n=7, ratio=math.inf, status="fail"),),
    }
    return Verdict(**(defaults | values))


FINDING = Finding(
    check="bound",
    tensor="dq",
    case={"B": 1, "mask": {"kind": "causal"}},
    replay="flashproof replay '{}'",
    observed=math.inf,
    allowed=1,
    original_case={"B": 2},
    shrink_steps=3,
)


def write_run(folder: Path, *, parquet: bool = True) -> Path:
    (folder / "findings").mkdir(parents=True)
    write_json_atomic(folder / "manifest.json", manifest())
    write_json_atomic(folder / "verdict.json", verdict(findings=(FINDING,)))
    write_json_atomic(folder / "findings" / "001.json", FINDING)
    if parquet:
        write_parquet_atomic(folder / "results.parquet", [row("a"), row("b")])
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(RecordError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------------------ round trips


def test_columns_are_the_fields_of_a_row() -> None:
    assert list(COLUMNS) == [field.name for field in fields(Row)]
    assert COLUMNS["B"] == "INTEGER"
    assert COLUMNS["seed"] == "BIGINT"
    assert COLUMNS["kernel_ulp"] == "INTEGER[5]"


def test_a_run_reads_back_as_written(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run"))
    assert run.manifest == manifest()
    assert run.verdict == verdict(findings=(FINDING,))
    assert run.findings == (FINDING,)
    assert run.rows == (row("a"), row("b"))
    assert run.judged


def test_a_finding_has_the_script_that_lies_beside_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert load(folder).findings[0].script == ""
    (folder / "findings" / "001.py").write_text("")
    assert load(folder).findings[0].script == "findings/001.py"
    write_json_atomic(folder / "findings" / "001.json", load(folder).findings[0])
    assert "script" not in json.loads((folder / "findings" / "001.json").read_text())


@pytest.mark.parametrize("way", ["parquet", "shard"])
def test_every_column_survives(tmp_path: Path, way: str) -> None:
    samples: dict[str, object] = {
        "VARCHAR": "text",
        "INTEGER": 2**31 - 1,
        "BIGINT": 2**62,
        "DOUBLE": 1e-310,
        "INTEGER[5]": (1, 2, 3, 4, 5),
        "DOUBLE[8]": (0.0, 0.123, 1.0, 2.83, 1e-310, 0.1, 0.2, 0.3),
    }
    full = Row(**{name: samples[kind] for name, kind in COLUMNS.items()})  # type: ignore[arg-type]
    bare = Row(case_id="b", phase="hunt", status="raised")
    eighths = (math.inf, *7 * (1.0,))
    infinite = row("c", kernel_max=math.inf, standard_max=-math.inf, message=HOSTILE, kernel_eighths=eighths)
    path = tmp_path / "rows"
    if way == "parquet":
        write_parquet_atomic(path, [full, bare, infinite])
        found = rows.read_parquet(path)
    else:
        with ShardWriter(path) as shard:
            shard.append([full])
            shard.append([bare, infinite])
        found = tuple(read_shards([path]))
    assert found[:2] == (full, bare)
    assert found[2].kernel_max == math.inf
    assert found[2].standard_max == -math.inf
    assert found[2].kernel_eighths == eighths
    assert found[2].message == HOSTILE.replace("\ud800", "?")


def test_nan_survives(tmp_path: Path) -> None:
    write_parquet_atomic(tmp_path / "x", [row(kernel_rms=math.nan)])
    (found,) = rows.read_parquet(tmp_path / "x")
    assert found.kernel_rms is not None
    assert math.isnan(found.kernel_rms)


def test_a_table_without_rows_is_a_table(tmp_path: Path) -> None:
    write_parquet_atomic(tmp_path / "x", [])
    assert rows.read_parquet(tmp_path / "x") == ()


def test_the_table_has_its_types_for_other_readers(tmp_path: Path) -> None:
    write_parquet_atomic(tmp_path / "x", [row()])
    with duckdb.connect() as database:
        table = database.read_parquet(str(tmp_path / "x"))
        kinds = dict(zip(table.columns, map(str, table.types), strict=True))
    assert kinds["kernel_rms"] == "DOUBLE"
    assert kinds["message"] == "VARCHAR"  # all NULL here, and still text
    assert kinds["seed"] == "BIGINT"


def test_json_that_is_written_is_standard_json(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "finding.json", FINDING)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "finding.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse)["observed"] == "Infinity"


# ---------------------------------------------------------------------------------------------------- atomic


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    write_parquet_atomic(path, [row("old")])

    def broken() -> Any:
        yield row("new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_parquet_atomic(path, broken())
    assert [found.case_id for found in rows.read_parquet(path)] == ["old"]
    assert [file.name for file in tmp_path.iterdir()] == ["results.parquet"]


def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot be written.*choose another folder"):
        write_json_atomic(tmp_path / "none" / "manifest.json", manifest())
    with pytest.raises(RecordError, match=r"cannot be written.*choose another folder"):
        write_parquet_atomic(tmp_path / "none" / "results.parquet", [row()])


# ---------------------------------------------------------------------------------------------------- shards


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    shard = tmp_path / "0.jsonl"
    shard.write_bytes((rows.to_json(row("a")) + "\n").encode() + b'{"case_id": "b", "mess\xc3')
    assert [found.case_id for found in read_shards([shard])] == ["a"]


def test_a_writer_cuts_a_torn_line_off_before_it_goes_on(tmp_path: Path) -> None:
    shard = tmp_path / "0.jsonl"
    shard.write_bytes((rows.to_json(row("a")) + "\n").encode() + b'{"case_id": "b"')
    with ShardWriter(shard) as writer:
        writer.append([row("c")])
    assert [found.case_id for found in read_shards([shard])] == ["a", "c"]


def test_a_shard_is_on_disk_after_each_append(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "0.jsonl") as writer:
        writer.append([row("a")])
        assert [found.case_id for found in read_shards([writer.path])] == ["a"]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"case_id": "a"}', '{"case_id": "a", "phase": "survey", "status": "ok", "rms": 1}'],
)
def test_a_broken_line_in_the_middle_is_refused(tmp_path: Path, line: str) -> None:
    shard = tmp_path / "0.jsonl"
    shard.write_text(f"{line}\n{rows.to_json(row())}\n", encoding="utf-8")
    with pytest.raises(RecordError, match=r"0\.jsonl, line 1: not a row"):
        list(read_shards([shard]))


def test_an_interrupted_run_is_read_from_its_shards(tmp_path: Path) -> None:
    write_run(tmp_path / "run", parquet=False)
    for worker in (0, 1):
        with ShardWriter(tmp_path / "run" / "shards" / f"{worker}.jsonl") as shard:
            shard.append([row(f"case {worker}")])
    assert [found.case_id for found in load(tmp_path / "run").rows] == ["case 0", "case 1"]


def test_a_run_without_a_verdict_is_never_a_pass(tmp_path: Path) -> None:
    (write_run(tmp_path / "run") / "verdict.json").unlink()
    run = load(tmp_path / "run")
    assert not run.judged
    assert run.verdict.verdict == "nothing-measured"
    assert run.verdict.counts.cases == 2
    assert "flashproof gate" in run.verdict.sentence


# ------------------------------------------------------------------------------------------------- refusals


def test_what_is_not_a_run(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "none")
    assert "no manifest.json" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "verdict.json", "findings/001.json"])
def test_truncated_json(tmp_path: Path, name: str) -> None:
    path = write_run(tmp_path / "run") / name
    path.write_bytes(path.read_bytes()[:40])
    assert f"{name} is damaged or cut short" in refusal(tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"null garbage"])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    (write_run(tmp_path / "run") / "manifest.json").write_bytes(content)
    assert "is damaged" in refusal(tmp_path / "run")


def test_truncated_parquet(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run") / "results.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert "is not a whole parquet file" in refusal(tmp_path / "run")


@pytest.mark.parametrize("column", ["SELECT 1 AS case_id", "SELECT *, 1 AS extra FROM '{}'"])
def test_a_parquet_with_other_columns(tmp_path: Path, column: str) -> None:
    path = write_run(tmp_path / "run") / "results.parquet"
    other = tmp_path / "other.parquet"
    duckdb.sql(column.format(path)).write_parquet(str(other))
    other.replace(path)
    assert "column" in refusal(tmp_path / "run")


def edited(folder: Path, name: str, **changes: object) -> Path:
    path = write_run(folder) / name
    value = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(value), encoding="utf-8")
    return folder


def test_a_newer_schema_says_upgrade(tmp_path: Path) -> None:
    for name in ("manifest.json", "verdict.json"):
        message = refusal(edited(tmp_path / name, name, schema=SCHEMA + 1, novelty=1))
        assert (
            f"this record has schema {SCHEMA + 1}, this flashproof reads up to {SCHEMA}: upgrade flashproof" in message
        )


@pytest.mark.parametrize("schema", [None, "1", 0, True])
def test_no_schema(tmp_path: Path, schema: object) -> None:
    assert "has no schema number" in refusal(edited(tmp_path / "run", "manifest.json", schema=schema))


def test_unknown_and_wrong_keys(tmp_path: Path) -> None:
    assert "unknown key 'sede'" in refusal(edited(tmp_path / "a", "manifest.json", sede=1))
    assert "seed: Input should be a valid integer" in refusal(
        edited(tmp_path / "b", "manifest.json", seed="0"),
    )
    wrong = [{"name": "x", "status": "passed"}]
    assert "checks.0.status" in refusal(edited(tmp_path / "c", "verdict.json", checks=wrong))
    assert "unknown key 'why'" in refusal(edited(tmp_path / "d", "findings/001.json", why=""))


def test_a_missing_key(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run") / "manifest.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    del value["device"]
    path.write_text(json.dumps(value), encoding="utf-8")
    assert "key 'device' is missing" in refusal(tmp_path / "run")


def test_reports_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, flashproof.reports; print([m for m in ('torch', 'triton', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_record_exports_everything_it_lists() -> None:
    assert all(hasattr(record, name) for name in record.__all__)
