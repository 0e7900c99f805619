"""A record as JUnit XML, for the test view of a CI system: one test case per check and tensor.

A run that measured nothing, or was interrupted, has an error in it: an empty suite would show as green.
"""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

from .record import Check, Finding, Run
from .words import clip, meaning, sentence, worst_first

# What XML 1.0 cannot carry, not even escaped (section 2.2 of the recommendation).
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LONGEST = 20_000


def junit(run: Run) -> str:
    """The run as a `testsuites` document; well-formed whatever the record's messages hold."""
    manifest, verdict = run.manifest, run.verdict
    suite = ET.Element("testsuite", name=f"flashproof {_text(manifest.implementation)}")
    properties = ET.SubElement(suite, "properties")
    for name in ("profile", "device", "command", "seed"):
        ET.SubElement(properties, "property", name=name, value=_text(str(getattr(manifest, name))))
    findings = worst_first(run.findings)
    for check in verdict.checks:
        _check(suite, manifest.implementation, check, [f for f in findings if _concerns(f, check)])
    for finding in findings:
        if not any(_concerns(finding, check) for check in verdict.checks):
            check = Check(name=finding.check, status="fail", tensor=finding.tensor, detail=finding.detail)
            _check(suite, manifest.implementation, check, [finding])
    if manifest.interrupted or not run.judged:
        _error(
            suite,
            manifest.implementation,
            "run completed",
            "the run was interrupted: its results are partial",
        )
    if verdict.verdict == "nothing-measured":
        _error(suite, manifest.implementation, "something was measured", verdict.sentence)
    counts = {
        "tests": len(suite.findall("testcase")),
        "failures": len(suite.findall("testcase/failure")),
        "errors": len(suite.findall("testcase/error")),
        "skipped": len(suite.findall("testcase/skipped")),
    }
    seconds = verdict.seconds if math.isfinite(verdict.seconds) else 0.0
    totals = {**{name: str(n) for name, n in counts.items()}, "time": f"{seconds:.3f}"}
    suite.attrib |= {**totals, "timestamp": _text(manifest.created)}
    root = ET.Element("testsuites", {"name": "flashproof", **totals})
    root.append(suite)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _concerns(finding: Finding, check: Check) -> bool:
    return finding.check == check.name and finding.tensor == check.tensor


def _check(suite: ET.Element, implementation: str, check: Check, findings: list[Finding]) -> None:
    case = _case(suite, implementation, check.name, check.tensor)
    if check.status in ("skipped", "waived"):
        ET.SubElement(case, "skipped", message=_text(_skipped(check)))
    elif check.status == "fail":
        message = sentence(findings[0]) if findings else check.detail or "the check failed"
        failure = ET.SubElement(case, "failure", type=_text(check.name), message=_text(message))
        failure.text = _text("\n\n".join([check.detail, *map(_told, findings[:10])]).strip())
    elif check.detail:
        ET.SubElement(case, "system-out").text = _text(f"n = {check.n}: {check.detail}")


def _skipped(check: Check) -> str:
    return f"waived: {check.detail}" if check.status == "waived" else check.detail or "not applicable"


def _error(suite: ET.Element, implementation: str, name: str, message: str) -> None:
    ET.SubElement(
        _case(suite, implementation, name, None),
        "error",
        type="incomplete",
        message=_text(message),
    )


def _case(suite: ET.Element, implementation: str, name: str, tensor: str | None) -> ET.Element:
    label = f"{name}[{tensor}]" if tensor else name
    return ET.SubElement(
        suite,
        "testcase",
        classname=_text(f"flashproof.{implementation}"),
        name=_text(label),
        time="0",
    )


def _told(finding: Finding) -> str:
    return "\n".join(filter(None, (meaning(finding.check, finding.detail), sentence(finding), finding.replay)))


def _text(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", clip(text, _LONGEST))
