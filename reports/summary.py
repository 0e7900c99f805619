"""A record as Markdown for a CI step's summary, and as annotations of the step.

GitHub drops a step summary above 1 MiB entirely, and all but the first ten errors of a step, in the order
printed: so the summary is cut, and the annotations are few and worst first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .markdown import block, inline, table
from .record import Allowed, Check, Finding, Run, Waived
from .rows import encodable
from .words import clip, count, duration, meaning, plural, sentence, worst_first

MAX_BYTES = 1_000_000
MAX_ANNOTATIONS = 9
_SIGNS = {
    "pass": "✅",
    "equal": "✅",
    "fail": "❌",
    "different": "❌",
}  # an answer's or a check's status; anything else is ➖
_CHECKS = 200
_FINDINGS = 5


def summary(run: Run) -> str:
    """Verdict, the three answers, the checks, the worst findings with their replay commands."""
    blocks = [*_head(run), _checks(run.verdict.checks), *_findings(run.findings)]
    if run.verdict.waived:
        blocks.append(_waived(run.verdict.waived))
    if run.verdict.allowed:
        blocks.append(allowed_table(run.verdict.allowed))
    if run.verdict.not_covered:
        items = "\n".join(f"- {inline(item)}" for item in run.verdict.not_covered[:50])
        blocks.append(f"<details><summary>Not covered</summary>\n\n{items}\n\n</details>")
    text = ""
    for part in map(encodable, filter(None, blocks)):
        if len((text + part).encode()) > MAX_BYTES:
            return text + "\nThe rest does not fit here: see the report.\n"
        text += part + "\n\n"
    return text


def _head(run: Run) -> Iterable[str]:
    verdict, exactness = run.verdict, run.verdict.exactness
    word = verdict.verdict.replace("-", " ") if run.judged else "not judged"
    yield f"## {_SIGNS.get(word, '➖')} flashproof {inline(run.manifest.implementation)}: {word}"
    yield inline(verdict.sentence)
    if run.manifest.interrupted or not run.judged:
        yield "**The run was interrupted: these results are partial.**"
    answers = (
        ("algebraic", exactness.algebraic),
        ("bitwise", exactness.bitwise),
        ("accuracy", exactness.accuracy),
    )
    yield table(
        ("exact?", "answer", "evidence"),
        ((name, f"{_SIGNS.get(a.status, '➖')} {inline(a.status)}", inline(a.evidence)) for name, a in answers),
    )
    counts = verdict.counts
    yield (
        f"{plural(counts.cases, 'case')} ({count(counts.survey)} survey, {count(counts.comparison)} comparison, "
        f"{count(counts.hunt)} hunt) in "
        f"{duration(verdict.seconds)}, profile {inline(run.manifest.profile)}, "
        f"{inline(run.manifest.device)}."
    )


def _checks(checks: Iterable[Check]) -> str:
    ranks = {"fail": 0, "waived": 1, "pass": 2, "skipped": 3}
    ranked = sorted(checks, key=lambda check: ranks[check.status])
    rows = (
        (
            f"{_SIGNS.get(c.status, '➖')} {c.status}",
            inline(c.name),
            c.tensor or "all",
            count(c.n),
            inline(c.detail),
        )
        for c in ranked[:_CHECKS]
    )
    made = table(("", "check", "tensor", "cases", "detail"), rows) if ranked else "No check was made."
    return made + (f"\n\nand {count(len(ranked) - _CHECKS)} more." if len(ranked) > _CHECKS else "")


def _waived(waived: Sequence[Waived]) -> str:
    rows = ((inline(w.scope), count(w.cases), inline(w.reason), inline(w.expires)) for w in waived[:_CHECKS])
    return f"### Waived\n\n{table(('failure', 'cases', 'reason', 'until'), rows)}"


def allowed_table(allowed: Sequence[Allowed]) -> str:
    """What the budgets allow beyond the defaults, and why."""
    rows = ((inline(a.what), inline(a.reason)) for a in allowed[:_CHECKS])
    return f"### Allowed beyond the default budgets\n\n{table(('what', 'reason'), rows)}"


def _findings(findings: Iterable[Finding]) -> Iterable[str]:
    ranked = worst_first(tuple(findings))
    if ranked:
        yield "### Findings"
    for f in ranked[:_FINDINGS]:
        what = f"**{inline(f.check)}**" + (f" of `{f.tensor}`" if f.tensor else "")
        line = f"{what}: {inline(sentence(f))}"
        said = meaning(f.check, f.detail)
        yield f"{line}\n\n{said + chr(10) * 2 if said else ''}{block(f.replay)}"
    if len(ranked) > _FINDINGS:
        yield f"{plural(len(ranked) - _FINDINGS, 'more finding')} in the report."


def github_annotations(run: Run) -> list[str]:
    """At most MAX_ANNOTATIONS workflow commands, worst first; the last says how many are left out."""
    said = [(f"{f.check} {f.tensor or ''}".strip(), f"{sentence(f)}\n{f.replay}") for f in worst_first(run.findings)]
    found = {(f.check, f.tensor) for f in run.findings}
    said += [
        (f"{c.name} {c.tensor or ''}".strip(), c.detail or "the check failed")
        for c in run.verdict.checks
        if c.status == "fail" and (c.name, c.tensor) not in found
    ]
    if not run.judged or run.verdict.verdict == "nothing-measured":
        said.insert(0, ("no verdict", run.verdict.sentence))
    return workflow_commands(said)


def workflow_commands(said: Sequence[tuple[str, str]]) -> list[str]:
    """Workflow commands for these (title, message), as many as are shown."""
    lines = [_annotation(title, message) for title, message in said]
    if len(lines) <= MAX_ANNOTATIONS:
        return lines
    kept = lines[: MAX_ANNOTATIONS - 1]
    return [*kept, _annotation("more", f"{len(lines) - len(kept)} more failures are in the report")]


def _annotation(title: str, message: str) -> str:
    """A workflow command; its values must not end the line or the property."""
    escaped = encodable(clip(message, 3000)).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    name = encodable(clip(f"flashproof: {title}", 200)).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::error title={name.replace(':', '%3A').replace(',', '%2C')}::{escaped}"
