"""The record of a run: what its folder holds, and how it is read and written.

    manifest.json     what was run, with what, where
    results.parquet   one row per case and tensor (`rows.Row`)
    shards/*.jsonl    the same rows as the workers made them; all there is of an interrupted run
    verdict.json      the verdict, the checks and the cells it rests on
    findings/NNN.json failed checks with their smallest case; NNN.py, where there can be one, is a standalone script

The record is versioned: `SCHEMA` is what this code writes and the newest that it reads.  Unknown keys are
errors, so that a misspelt or newer field is never silently dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from .rows import (
    COLUMNS,
    RecordError,
    Row,
    ShardWriter,
    read_parquet,
    read_shards,
    write_parquet_atomic,
    write_text_atomic,
)

__all__ = [
    "COLUMNS",
    "SCHEMA",
    "Algebra",
    "Allowed",
    "Answer",
    "Cell",
    "Check",
    "Comparison",
    "Counts",
    "Exactness",
    "Finding",
    "Git",
    "Manifest",
    "Mismatch",
    "RecordError",
    "Row",
    "Run",
    "ShardWriter",
    "Share",
    "Standing",
    "Verdict",
    "Waived",
    "load",
    "read_json",
    "read_shards",
    "write",
    "write_json_atomic",
    "write_parquet_atomic",
]

SCHEMA = 1
PHASES = ("survey", "comparison", "hunt")

_NAMED = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}

# JSON has no NaN or infinity, and both are what a broken kernel returns: they travel as strings.
Number = Annotated[float, BeforeValidator(lambda x: _NAMED.get(x, x) if isinstance(x, str) else x)]
Tensor = Literal["out", "lse", "dq", "dk", "dv"]
TENSORS: tuple[Tensor, ...] = get_args(Tensor)
#: the tensors in the inputs' dtype: the LSE is fp32 whatever they are
IN_DTYPE: tuple[Tensor, ...] = tuple(t for t in TENSORS if t != "lse")
Recipe = dict[str, JsonValue]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, ser_json_inf_nan="strings")


class Git(_Model):
    """The commit that was measured; `dirty` when the working tree differed from it."""

    commit: str
    dirty: bool


class Manifest(_Model):
    """What was run, with what, where: manifest.json."""

    version: int = Field(default=SCHEMA, alias="schema")
    implementation: str
    profile: str
    seed: int
    created: str  # ISO 8601, with its offset
    command: str
    device: str
    versions: dict[str, str]
    machine: dict[str, JsonValue]
    git: Git | None = None
    interrupted: bool = False
    conventions: dict[str, JsonValue] = {}
    profile_settings: dict[str, JsonValue] = {}


class Answer(_Model):
    """One of the three answers: its status, and the evidence in words."""

    status: str
    evidence: str


class Exactness(_Model):
    """The three kinds of "exact", answered separately."""

    algebraic: Answer
    bitwise: Answer
    accuracy: Answer


class Check(_Model):
    """One question, its status, and the numbers behind it; `n` is how many cases it rests on."""

    name: str
    status: Literal["pass", "fail", "skipped", "waived"]
    tensor: Tensor | None = None
    n: int = 0
    detail: str = ""


class Waived(_Model):
    """A waiver, and in how many cases it let a check fail; `scope` is what it covers, in words."""

    check: str
    scope: str
    cases: int
    reason: str
    expires: str  # ISO 8601


class Allowed(_Model):
    """What the budgets of a run allow beyond the defaults, and why."""

    what: str
    reason: str


class Finding(_Model):
    """A failed check with its smallest case.  `script` is where its standalone script lies, if it has one; it is not
    written into the record.
    """

    check: str
    tensor: Tensor | None = None
    case: Recipe
    replay: str
    observed: Number
    allowed: Number
    detail: str = ""
    original_case: Recipe | None = None
    shrink_steps: int = 0
    script: str = Field(default="", exclude=True)


class Cell(_Model):
    """RMSE of the kernel / RMSE of standard in one cell: geometric mean over n cases, with its interval."""

    dtype: str
    tensor: Tensor
    mask: str
    regime: str
    n: int
    ratio: Number | None = None
    low: Number | None = None
    high: Number | None = None
    allowed: Number | None = None
    status: str


class Standing(_Model):
    """RMSE of the kernel / RMSE of standard on one kind of input: geometric mean over n plain cases of all dtypes.

    `status` says whether that is surely half as much error again; `needs` is how many cases with such a spread it takes
    to tell; `predicted`, whether the kernel's roundings explain its error.
    """

    regime: str
    tensor: Tensor
    n: int
    ratio: Number
    low: Number
    high: Number
    status: Literal["worse", "not worse", "open"]
    needs: int | None
    predicted: bool


class Mismatch(_Model):
    """Where one tensor of a kernel run in exact arithmetic is not the definition's.

    `deviation` is the largest |kernel - definition| relative to the largest |definition|.
    """

    tensor: Tensor
    count: int
    elements: int
    where: str
    deviation: Number


class Comparison(_Model):
    """One case in exact arithmetic against the definition; `digits` are (digits, log10 of the largest difference)."""

    case: Recipe
    arithmetic: str
    status: Literal["equal", "different", "unavailable", "refused"]
    tiles: tuple[int, int] | None = Field(default=None, strict=False)
    elements: int = 0
    mismatches: tuple[Mismatch, ...] = Field(default=(), strict=False)
    detail: str = ""
    digits: tuple[tuple[int, Number], ...] = Field(default=(), strict=False)


class Share(_Model):
    """What the roundings at one site contribute to a tensor's error: its RMS alone, and its part of the whole MSE.

    Both are of the mean over n cases; None: an earlier version did not say.
    """

    dtype: str
    tensor: Tensor
    site: str
    rms: Number
    part: Number
    lines: str = ""  # of the kernel's source
    n: int | None = None


class Algebra(_Model):
    """The kernel's own source in other arithmetics: is it the definition, and where does its rounding error arise?"""

    comparisons: tuple[Comparison, ...] = Field(default=(), strict=False)
    shares: tuple[Share, ...] = Field(default=(), strict=False)


class Counts(_Model):
    """Cases measured: independent ones (survey), plain ones of every regime, and those of the search for the worst."""

    cases: int = 0
    survey: int = 0
    comparison: int = 0
    hunt: int = 0


class Verdict(_Model):
    """Pass, fail, or nothing measured, and everything that this rests on: verdict.json."""

    version: int = Field(default=SCHEMA, alias="schema")
    implementation: str
    verdict: Literal["pass", "fail", "nothing-measured"]
    sentence: str
    exactness: Exactness
    checks: tuple[Check, ...] = Field(default=(), strict=False)
    findings: tuple[Finding, ...] = Field(default=(), strict=False)
    cells: tuple[Cell, ...] = Field(default=(), strict=False)
    standings: tuple[Standing, ...] = Field(default=(), strict=False)
    not_covered: tuple[str, ...] = Field(default=(), strict=False)
    waived: tuple[Waived, ...] = Field(default=(), strict=False)
    allowed: tuple[Allowed, ...] = Field(default=(), strict=False)
    counts: Counts = Counts()
    algebra: Algebra | None = None
    seconds: Number = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """A record in memory.  `judged` is False when the run stopped before it wrote a verdict."""

    folder: Path
    manifest: Manifest
    verdict: Verdict
    findings: tuple[Finding, ...]
    rows: tuple[Row, ...]
    judged: bool = True


# -------------------------------------------------------------------------------------------------- reading


def load(folder: Path) -> Run:
    """Read a run's folder.  Raises RecordError, with one line that says what to do."""
    if not folder.is_dir():
        raise RecordError(f"{folder} is not a folder: give the folder that `flashproof verify --out` wrote")
    if not (folder / "manifest.json").is_file():
        raise RecordError(
            f"{folder} is not a run (no manifest.json): give what `flashproof verify --out` wrote",
        )
    manifest = read_json(folder / "manifest.json", Manifest, schema="schema")
    rows = _rows(folder)
    judged = (folder / "verdict.json").is_file()
    verdict = (
        read_json(folder / "verdict.json", Verdict, schema="schema") if judged else _unjudged(folder, manifest, rows)
    )
    findings = tuple(
        read_json(path, Finding).model_copy(update={"script": _script(path)})
        for path in sorted((folder / "findings").glob("*.json"))
    )
    return Run(folder, manifest, verdict, findings or verdict.findings, rows, judged)


def _script(finding: Path) -> str:
    """`findings/001.py`, or nothing: what only other arithmetics can show has no script."""
    return f"findings/{finding.stem}.py" if finding.with_suffix(".py").is_file() else ""


def _rows(folder: Path) -> tuple[Row, ...]:
    if (folder / "results.parquet").is_file():
        return read_parquet(folder / "results.parquet")
    if (folder / "verdict.json").is_file() and not (folder / "shards").is_dir():
        raise RecordError(
            f"{folder / 'results.parquet'} is missing, and the verdict rests on it: copy the whole folder"
        )
    try:
        return tuple(read_shards(sorted((folder / "shards").glob("*.jsonl"))))
    except OSError as error:
        raise RecordError(f"{folder / 'shards'} cannot be read ({error.strerror})") from error


def _unjudged(folder: Path, manifest: Manifest, rows: tuple[Row, ...]) -> Verdict:
    """What is said of a run that stopped before its verdict: never a pass, whatever its rows say."""
    answer = Answer(status="not judged", evidence="the run stopped before its verdict")
    by_phase = {phase: len({r.case_id for r in rows if r.phase == phase}) for phase in PHASES}
    cases = sum(by_phase.values())
    return Verdict(
        implementation=manifest.implementation,
        verdict="nothing-measured",
        sentence=f"The run stopped before it reached a verdict; {cases} cases were recorded. "
        f"Judge them with: flashproof gate {folder}",
        exactness=Exactness(algebraic=answer, bitwise=answer, accuracy=answer),
        counts=Counts(cases=cases, **by_phase),
    )


M = TypeVar("M", bound=BaseModel)


def read_json(path: Path, model: type[M], *, schema: str | None = None) -> M:
    """A file as a model; `schema` is the key of its schema number, if it has one.

    Raises:
        RecordError: it cannot be read, is no JSON, or not this model; one line says which and why.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise RecordError(
            f"{path} is damaged or cut short ({error}): restore it, or measure again",
        ) from error
    if schema is not None:
        _refuse_newer(path, value, schema)
    try:
        return model.model_validate_json(json.dumps(value))
    except ValidationError as error:
        raise RecordError(f"{path}: {_explain(error)}") from error


def _refuse_newer(path: Path, value: object, key: str) -> None:
    schema = value.get(key) if isinstance(value, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise RecordError(f"{path} has no schema number: it was not written by flashproof")
    if schema > SCHEMA:
        raise RecordError(
            f"{path}: this record has schema {schema}, this flashproof reads up to {SCHEMA}: upgrade flashproof",
        )


def _explain(error: ValidationError) -> str:
    """The first thing wrong, in one line."""

    def sentences() -> Iterator[str]:
        for problem in error.errors(include_url=False, include_input=False, include_context=False):
            where = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                yield f"unknown key {where!r}: upgrade flashproof, or remove it"
            elif problem["type"] == "missing":
                yield f"key {where!r} is missing: measure again"
            else:
                yield f"{where}: {problem['msg'].splitlines()[0]}"

    found = list(sentences())
    return found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")


# -------------------------------------------------------------------------------------------------- writing


def write(run: Run) -> None:
    """A record as a folder, which is there already; its findings are in its verdict.

    Raises RecordError when the folder cannot be written to.
    """
    write_json_atomic(run.folder / "manifest.json", run.manifest)
    write_parquet_atomic(run.folder / "results.parquet", run.rows)
    write_json_atomic(run.folder / "verdict.json", run.verdict)


def write_json_atomic(path: Path, model: BaseModel) -> None:
    """Write a model as JSON: either the whole file is there under its name, or nothing is new.

    Raises RecordError when the folder cannot be written to.
    """
    text = json.dumps(json.loads(model.model_dump_json(by_alias=True)), indent=2, ensure_ascii=False) + "\n"
    try:
        write_text_atomic(path, text, errors="backslashreplace")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RecordError(f"{path} cannot be written ({reason}): choose another folder") from error
