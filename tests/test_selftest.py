"""The judge judged: every check has a mutant that only it kills, and a selftest that finds a fault in us says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from flashproof.kernels.mutants import MUTANTS
from flashproof.reports.kills import CleanResult, Kill, MutantResult, SelfTest
from flashproof.verify.gates import GATES
from flashproof.verify.pool import Pool
from flashproof.verify.selftest import LIMIT, mutants_tried, problems_of

COMMAND = str(Path(sys.executable).with_name("flashproof"))
#: per check a mutant that nothing else kills
ALONE = {
    "returns": "output-in-fp32",
    "finite": "fp16-gradients-overflow",
    "bound": "key-lengths-one-too-many",
    "inputs-unchanged": "do-changed",
    "repeat": "tiles-at-random",
    "memory": "maximum-starts-from-memory",
    "kept": "returned-lse-kept",
    "invariance": "dq-alone",
    "inference": "inference-ignores-causality",
    "ratio": "narrow-between-passes",
    "predictor": "ds-of-ten-bits",
    "bias": "dk-truncated",
    "systematic": "p-truncated",
    "algebra": "small-epsilon-in-the-denominator",
    "accumulators": "dq-accumulated-in-half",
}


def selftest(mutants=(), clean=(), *, quick=False):
    return SelfTest(
        created="", command="", seed=0, quick=quick, seconds=1.0, versions={}, gates=GATES, mutants=tuple(mutants),
        clean=tuple(clean),
    )  # fmt: skip


def mutant(name, *checks):
    kills = tuple(Kill(check=c, tensors=("out",), phase="survey", cases=1) for c in checks)
    return MutantResult(name=name, mirrors="", what="", tensors=("out",), kills=kills, cases=1, worst=1.0)


COMPLETE = [mutant(f"only-{gate}", gate) for gate in GATES]


@pytest.mark.slow
def test_without_any_one_check_a_mutant_survives():
    pool = Pool("flash", "cpu", 2, LIMIT)
    try:
        names = list(dict.fromkeys(ALONE.values()))
        result = selftest(mutants_tried(pool, 0, lambda *_: None, quick=False, names=names))
    finally:
        pool.stop()
    assert not result.survivors()
    survivors = {gate: [m.name for m in result.without(gate).survivors()] for gate in GATES}
    assert {gate: ALONE[gate] for gate in GATES if ALONE[gate] not in survivors[gate]} == {}
    assert all(problems_of(result.without(gate)) for gate in GATES)


def test_a_survivor_fails_a_selftest():
    assert not problems_of(selftest(COMPLETE))
    (said,) = problems_of(selftest([*COMPLETE, mutant("immortal")]))
    assert "immortal" in said


def test_a_quick_selftest_may_miss_one_in_ten():
    killed = [mutant(f"m{i}", "bound") for i in range(9)]
    assert not problems_of(selftest([*killed, mutant("immortal")], quick=True))
    assert problems_of(selftest([*killed, mutant("immortal"), mutant("another")], quick=True))


def test_a_flagged_clean_kernel_fails_a_selftest():
    clean = [CleanResult(name="flash", what="", cases=10, alarms=("bound of out: ...",))]
    assert any("flash" in line for line in problems_of(selftest(COMPLETE, clean)))


def test_a_check_that_nobody_would_miss_fails_a_selftest():
    said = problems_of(selftest([mutant("both", "bound", "finite"), *COMPLETE[3:]]))
    assert len(said) == 1 and "bound" in said[0] and "finite" in said[0]


# -- the command -------------------------------------------------------------------------------------------------------


def run(*arguments, cwd):
    return subprocess.run(
        [COMMAND, "selftest", *arguments], capture_output=True, text=True, cwd=cwd, timeout=300, check=False
    )


def test_one_mutant_through_the_command(tmp_path):
    done = run("--quick", "--mutant", "causal-ignored-in-backward", "--out", "here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 mutants killed" in done.stdout
    recorded = SelfTest.model_validate(json.loads((tmp_path / "here/selftest.json").read_text()))
    assert recorded.mutants[0].killers() >= {"bound"}


def test_a_mutant_is_shown_as_a_difference(tmp_path):
    done = run("--show", "row-sum-not-rescaled", cwd=tmp_path)
    assert done.returncode == 0 and "\n-" in done.stdout and "\n+" in done.stdout


def test_mutants_are_written_as_files_that_verify_takes(tmp_path):
    assert run("--write", "mutants", cwd=tmp_path).returncode == 0
    files = sorted(p.name for p in (tmp_path / "mutants").glob("*.py"))
    assert len(files) == len(MUTANTS) and "row_sum_not_rescaled.py" in files
    done = subprocess.run(
        [COMMAND, "survey", "mutants/row_sum_not_rescaled.py:attention", "--cases", "8"], capture_output=True,
        text=True, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--mutant", "nobody"), "no mutant 'nobody'"), (("--without", "nothing"), "no check 'nothing'"),
     (("--show", "nobody"), "no mutant 'nobody'"), (("--write", "/proc/none"), "cannot be written")],
)  # fmt: skip
def test_rubbish_is_one_line(tmp_path, arguments, words):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 4 and words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
