"""The rows of a record: one per case and tensor, the table that every statistic is taken from.

`Row` is the single source of truth for the columns: each field names its DuckDB type, and `COLUMNS`, the
shards (JSON lines, one file per worker, written as rows are made) and `results.parquet` follow from it.

A float that JSON cannot spell is written as the string NaN, Infinity or -Infinity, which DuckDB reads back
as a number.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, Self, get_args, get_type_hints

import duckdb
import pydantic_core

Text = Annotated[str | None, "VARCHAR"]
Integer = Annotated[int | None, "INTEGER"]
Long = Annotated[int | None, "BIGINT"]
Double = Annotated[float | None, "DOUBLE"]
Histogram = Annotated[tuple[int, ...] | None, "INTEGER[5]"]

#: parts of the rows of a tensor, as equal as can be: row i of n is in part 8 i // n
EIGHTHS = 8
Eighths = Annotated[tuple[float, ...] | None, f"DOUBLE[{EIGHTHS}]"]


class RecordError(ValueError):
    """A record that cannot be read or written; the message is one line that says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured of one tensor of one case; None is "not measured".

    A case that did not return has one row: no tensor, a `status` other than 'ok', the reason in `message`.
    Errors (`*_max`, `*_rms`) are absolute, against the truth.  Biases are in ulp of the truth, positive when
    the magnitude is too large.  Histograms count the elements with error 0, <= 0.5, <= 1, <= 2 and > 2 ulp.
    """

    case_id: Annotated[str, "VARCHAR"]
    phase: Annotated[str, "VARCHAR"]  # survey | comparison | hunt
    status: Annotated[str, "VARCHAR"]  # ok | raised | timeout | crashed | wrong-result | unsupported
    message: Text = None
    seconds: Double = None
    dtype: Text = None  # fp16 | bf16 | fp32
    regime: Text = None
    mask: Text = None  # kinds joined with '+', 'none' if there is no mask
    B: Integer = None
    H: Integer = None
    HK: Integer = None
    M: Integer = None
    N: Integer = None
    D: Integer = None
    scale: Double = None
    layout: Text = None
    seed: Long = None
    max_logit: Double = None  # largest |s| of a visible key
    tensor: Text = None  # out | lse | dq | dk | dv
    elements: Long = None
    nonfinite: Long = None  # NaN or Inf where the truth is finite, or the reverse
    kernel_max: Double = None
    kernel_rms: Double = None
    standard_max: Double = None
    standard_rms: Double = None
    rounded_max: Double = None
    rounded_rms: Double = None
    natural_scale: Double = None  # unit roundoff of the dtype times the RMS of the natural scale
    log_ratio: Double = None  # floored ln(RMSE kernel / RMSE standard)
    bound_ratio: Double = None  # max over elements of error / a priori bound; > 1 is a bug
    slack: Double = None  # median of a priori bound / error over elements that are not exact
    predictor_ratio: Double = None  # kernel_rms / the RMS that the flash arrangement predicts
    envelope_ratio: Double = None  # kernel_rms / the largest RMS that any arrangement it may have predicts
    kernel_bias: Double = None
    standard_bias: Double = None
    rounded_bias: Double = None
    kernel_ulp: Histogram = None
    standard_ulp: Histogram = None
    rounded_ulp: Histogram = None
    bitwise_standard: Double = None  # fraction of elements with the same bits as standard
    kernel_eighths: Eighths = None  # RMS error of each eighth of the rows / of the whole; of the survey alone, as below
    standard_eighths: Eighths = None
    kernel_worst_row: Integer = None  # the row (of M in out, lse, dq, of N in dk, dv) with the largest error
    standard_worst_row: Integer = None
    slope: Double = None  # <error, direction of a systematic error> / (elements natural_scale^2)
    slope_weight: Double = None  # <direction, direction> likewise: slope / slope_weight is the parameter's error
    failed: Text = None  # names of the checks that failed here, joined with ','
    case_json: Text = None  # the case's recipe, argument of `flashproof replay`


def _columns() -> dict[str, str]:
    hints = get_type_hints(Row, include_extras=True)
    return {field.name: get_args(hints[field.name])[-1] for field in fields(Row)}


COLUMNS: dict[str, str] = _columns()
"""Column name -> DuckDB type, in the order of the table."""

_REQUIRED = ("case_id", "phase", "status")


def encodable(text: str) -> str:
    """The text without halves of surrogate pairs: a message that quotes a path may have one, UTF-8 not."""
    return text.encode(errors="replace").decode()


_values = attrgetter(*COLUMNS)


def to_json(row: Row) -> str:
    """One line of JSON; columns that were not measured are left out."""
    measured = {name: value for name, value in zip(COLUMNS, _values(row), strict=True) if value is not None}
    try:
        return _json(measured)
    except pydantic_core.PydanticSerializationError:
        return _json({name: encodable(x) if isinstance(x, str) else x for name, x in measured.items()})


def _json(measured: dict[str, object]) -> str:
    return pydantic_core.to_json(measured, inf_nan_mode="strings").decode()


def from_json(line: str) -> Row:
    """Inverse of `to_json`.  Raises ValueError or TypeError for what is not a row."""
    values = json.loads(line)
    if not isinstance(values, dict):
        raise TypeError("not a JSON object")
    unknown = [name for name in values if name not in COLUMNS]
    missing = [name for name in _REQUIRED if values.get(name) is None]
    if unknown or missing:
        raise ValueError(f"unknown column {unknown[0]!r}" if unknown else f"no column {missing[0]!r}")
    for name, value in values.items():
        if COLUMNS[name].startswith("DOUBLE") and value is not None:
            values[name] = tuple(map(float, value)) if isinstance(value, list) else float(value)
        elif isinstance(value, list):
            values[name] = tuple(value)
    return Row(**values)


# ---------------------------------------------------------------------------------------------------- shards


class ShardWriter:
    """Appends rows to one JSON-lines file; what `append` was given survives the death of the process.

    A torn last line, left by a process that was killed while it wrote, is cut off before anything is added.
    """

    __slots__ = ("_file", "path")

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: IO[bytes] = path.open("ab+")
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows, and hand them to the operating system."""
        self._file.write("".join(to_json(row) + "\n" for row in rows).encode())
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_shards(paths: Iterable[Path]) -> Iterator[Row]:
    """The rows of these shards, file by file in the order given.

    A last line without its line feed is one that was being written when the run stopped: it is dropped.
    Any other line that is not a row raises RecordError.
    """
    for path in paths:
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                yield from_json(line.decode())
            except (ValueError, TypeError) as error:
                raise RecordError(
                    f"{path}, line {number}: not a row of this version ({_first_line(error)}): "
                    "restore the file, or delete that line",
                ) from error


# --------------------------------------------------------------------------------------------------- parquet


def write_parquet_atomic(path: Path, rows: Iterable[Row]) -> None:
    """Write `results.parquet` (zstd): either the whole table is there under its name, or nothing is new.

    Raises RecordError when the folder cannot be written to.
    """
    lines = _temporary(path)
    try:
        with lines.open("w", encoding="utf-8") as file:
            file.writelines(to_json(row) + "\n" for row in rows)

        def fill(part: Path) -> None:
            with closing(duckdb.connect()) as database:
                table = database.read_json(str(lines), columns=COLUMNS, format="newline_delimited")
                table.write_parquet(str(part), compression="zstd")

        replace_atomic(path, fill)
    except OSError as error:
        raise RecordError(
            f"{path} cannot be written ({_first_line(error)}): choose another folder",
        ) from error
    finally:
        lines.unlink(missing_ok=True)


def read_parquet(path: Path) -> tuple[Row, ...]:
    """The rows of a table that `write_parquet_atomic` wrote.  Raises RecordError for anything else."""
    try:
        with closing(duckdb.connect()) as database:
            table = database.read_parquet(str(path))
            unknown = [name for name in table.columns if name not in COLUMNS]
            missing = [name for name in _REQUIRED if name not in table.columns]
            if unknown or missing:
                which = f"unknown column {unknown[0]!r}" if unknown else f"no column {missing[0]!r}"
                raise RecordError(f"{path}: {which}: it was written by another flashproof, use that version")
            known = set(table.columns)  # an earlier version may have had fewer
            values = table.project(
                ", ".join(
                    f'CAST({name if name in known else "NULL"} AS {kind}) AS "{name}"' for name, kind in COLUMNS.items()
                ),
            ).fetchall()
    except duckdb.Error as error:
        raise RecordError(
            f"{path} is not a whole parquet file ({_first_line(error)}): restore it, or measure again",
        ) from error
    lists = [index for index, kind in enumerate(COLUMNS.values()) if kind.endswith("]")]
    rows = []
    for value in values:
        cells = list(value)
        for index in lists:
            cells[index] = None if cells[index] is None else tuple(cells[index])
        rows.append(Row(**dict(zip(COLUMNS, cells, strict=True))))
    return tuple(rows)


# ---------------------------------------------------------------------------------------------------- atomic


def replace_atomic(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a temporary file beside `path`, sync it to the disk, and give it its name."""
    part = _temporary(path)
    try:
        fill(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write UTF-8: either the whole text is there under its name, or nothing is new."""
    replace_atomic(path, lambda part: part.write_text(text, encoding="utf-8", errors=errors))


def _temporary(path: Path) -> Path:
    """A new empty file in the folder of `path`: a rename is atomic only within one file system."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise RecordError(
            f"{path} cannot be written ({error.strerror or _first_line(error)}): choose another folder",
        ) from error
    os.close(handle)
    Path(name).chmod(0o644)  # mkstemp's 0600 would hide the record from everyone else
    return Path(name)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
