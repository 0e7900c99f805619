"""Options that are misspelt, and cases that are none: one line that says so."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from .running import CASE, FAIL, PASS, assert_refused, assert_tidy, flashproof


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Missing command. (see `flashproof --help`)"),
        (("verify",), "Missing argument 'IMPL'. (see `flashproof verify --help`)"),
        (("verifi", "flash"), "No such command 'verifi'"),
        (("verify", "flash", "--seed", "-1"), "Invalid value for '--seed'"),
        (("verify", "flash", "--cases", "0"), "Invalid value for '--cases'"),
        (("verify", "flash", "--examples", "-1"), "Invalid value for '--examples'"),
        (("verify", "flash", "--sed", "1"), click.NoSuchOption("--sed").format_message().rstrip(".")),
        (
            ("verify", "flash", "--case-limit", "nan"),
            "'--case-limit': nan is not a number of seconds",
        ),
        (("verify", "flash", "--out", ""), "Invalid value for '--out': the path is empty"),
        (("verify", "flash", "--profile", "slow"), "'slow' is not one of 'quick', 'ci', 'deep'"),
    ],
)
def test_misspelt(place: Path, arguments: tuple[str, ...], says: str) -> None:
    assert_refused(flashproof(*arguments), says)
    assert not list(place.glob("flashproof-run*"))


def test_no_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert_refused(flashproof("verify", "flash", "--device", "cuda"), "no CUDA device", "--device cpu")


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ('{"B": 1,', "not a case: not JSON"),
        ("[1, 2]", "neither a JSON object nor a readable file"),
        ("nowhere.json", "neither a JSON object nor a readable file"),
        ("small.toml", "not a case: not JSON"),
        ("list.json", "expected a JSON object"),
        (json.dumps({**CASE, "M": "3"}), "M: Input should be a valid integer"),
        (json.dumps({**CASE, "mask": {"casual": True}}), "mask.casual: unknown key"),
        (json.dumps({**CASE, "regime": "weird"}), "unknown regime 'weird'; there are normal, "),
        (json.dumps({**CASE, "HK": 3}), "HK = 3 key/value heads must divide H = 2"),
        (json.dumps({**CASE, "M": -1}), "M must be at least 0"),
    ],
)
def test_replay_of_what_is_no_case(place: Path, case: str, says: str) -> None:
    (place / "list.json").write_text("[1, 2]")
    assert_refused(flashproof("replay", case, "kernels.py:attention"), says)


def test_replay(place: Path) -> None:
    (place / "case.json").write_text(json.dumps(CASE))
    good = flashproof("replay", "case.json", "kernels:attention")  # a module of the current folder
    assert_tidy(good, PASS)
    assert "pass all" in good.stdout
    bad = flashproof("replay", "case.json", "kernels.py:imprecise")
    assert_tidy(bad, FAIL)
    assert "FAIL bound out" in bad.stdout
    died = flashproof("replay", json.dumps({**CASE, "M": 121}), "kernels.py:dies")
    assert_tidy(died, FAIL)
    assert "killed by SIGSEGV" in died.stdout
