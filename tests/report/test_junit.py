"""JUnit, for CI."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from flashproof.reports.junit import junit

from .synthetic import UNUSUAL, make_run, nothing


def test_junit_has_a_case_per_check_and_tensor() -> None:
    suite = ET.fromstring(junit(make_run(broken=True))).find("testsuite")
    assert suite is not None
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "11",
        "failures": "2",
        "errors": "0",
        "skipped": "1",
    }
    (failed,) = (case for case in suite.iter("testcase") if case.get("name") == "bound[dq]")
    failure = failed.find("failure")
    assert failure is not None
    assert "15.9 observed, 1 allowed" in str(failure.get("message"))
    assert "flashproof replay '{\"B\": 1}' flash" in str(failure.text)


@pytest.mark.parametrize("name", UNUSUAL)
def test_junit_is_well_formed(name: str) -> None:
    for run in UNUSUAL[name]():
        root = ET.fromstring(junit(run))
        assert len(list(root.iter("testcase"))) == int(root.attrib["tests"])


def test_junit_is_not_green_when_nothing_was_measured() -> None:
    assert ET.fromstring(junit(nothing([]))).attrib["errors"] == "1"
    assert ET.fromstring(junit(replace(make_run(20), judged=False))).attrib["errors"] == "1"


def test_junit_keeps_a_finding_that_belongs_to_no_check() -> None:
    run = make_run(20, broken=True)
    orphan = replace(run, verdict=run.verdict.model_copy(update={"checks": ()}))
    assert ET.fromstring(junit(orphan)).attrib["failures"] == "2"
