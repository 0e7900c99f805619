# /// script
# dependencies = ["nox>=2025.2.9"]
# ///
"""The project's sessions: `nox -l` lists them, `nox -s NAME -- ARGUMENTS` passes arguments on."""

from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"  # pip, so that constraints.txt decides which torch is installed
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
CONSTRAINTS = ("-c", "constraints.txt")


def install(session: nox.Session, *groups: str) -> None:
    """The project, editable, with dependency groups of pyproject.toml, pinned."""
    session.install(*CONSTRAINTS, "-e", ".", *nox.project.dependency_groups(PYPROJECT, *groups))


@nox.session
def verify(session: nox.Session) -> None:
    """Verify an attention function: `nox -s verify -- path/to/file.py:function` (the bundled kernel by default)."""
    install(session)
    session.run("flashproof", "verify", *(session.posargs or ["flash", "--force"]))


@nox.session(default=False)
def gate(session: nox.Session) -> None:
    """Judge a recorded run, or compare two: `nox -s gate -- RUN --budgets FILE`, `nox -s gate -- BASE HEAD`."""
    install(session)
    folders = [a for a in session.posargs if (Path(a) / "manifest.json").is_file()]
    session.run("flashproof", "compare" if len(folders) > 1 else "gate", *session.posargs)


@nox.session(default=False)
def report(session: nox.Session) -> None:
    """Records to one HTML page: `nox -s report -- RUN... --out FILE`."""
    install(session)
    session.run("flashproof", "report", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite on two processes, with the kernels of other people that it can get."""
    install(session, "tests")
    session.install(*CONSTRAINTS, "--no-deps", *nox.project.dependency_groups(PYPROJECT, "third-party"))
    session.run("pytest", "-n", "2", "--dist", "worksteal", "--timeout", "600", *session.posargs)


@nox.session(default=False, venv_backend="none")
def gpu(session: nox.Session) -> None:
    """Run the tests that need a CUDA device, in the environment that nox is called from: its torch, its Triton."""
    session.run("python", "-m", "pytest", "-m", "gpu", *session.posargs)


@nox.session(default=False)
def selftest(session: nox.Session) -> None:
    """Deliberate faults must fail the gate, right kernels pass it: `nox -s selftest -- --quick` for a short one."""
    install(session)
    session.run("flashproof", "selftest", *(session.posargs or ["--out", "flashproof-selftest"]))


@nox.session(default=False)
def reproduce(session: nox.Session) -> None:
    """What publications say of attention's numerics, measured again: `nox -s reproduce -- golden` for one of them."""
    install(session)
    session.run("flashproof", "reproduce", *(session.posargs or ["--out", "flashproof-reproduce"]))


@nox.session(default=False)
@nox.parametrize("triton", ["3.6.0", "3.7.1", "3.8.0", "3.9.0"])
def tritons(session: nox.Session, triton: str) -> None:
    """Run the interpreter's and the kernels' tests on each supported Triton: `nox -s "tritons(triton='3.9.0')"`."""
    install(session, "tests")
    session.install(*CONSTRAINTS, "--no-deps", *nox.project.dependency_groups(PYPROJECT, "third-party"))
    session.install("--no-deps", f"triton=={triton}")
    session.run("pytest", "-n", "2", *(session.posargs or ["tests/interpreter", "tests/test_kernels.py"]))


@nox.session(default=False)
def minimums(session: nox.Session) -> None:
    """Run tests on the oldest versions that pyproject.toml allows of everything but torch and Triton."""
    install(session, "tests")
    ranges = [r.split(";")[0] for r in PYPROJECT["project"]["dependencies"]]
    oldest = [r.split(",")[0].replace(">=", "==") for r in ranges if not r.startswith(("torch", "triton"))]
    session.install(*oldest)
    session.run("pytest", "-n", "2", *(session.posargs or ["tests/test_record.py", "tests/cli"]))


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Write kernels/interpreter/COVERAGE.md from the tests."""
    session.run("python", "tests/interpreter/coverage_table.py")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style with ruff."""
    session.install(*CONSTRAINTS, *nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, strictly."""
    # not editable: an import hook is what mypy cannot follow
    session.install(*CONSTRAINTS, ".", *nox.project.dependency_groups(PYPROJECT, "types"))
    session.run("mypy", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Time our interpreter beside Triton's own, and compare their bits (`-- -k flash` for a part); or `-- truth`."""
    install(session)
    truth = session.posargs[:1] == ["truth"]
    session.run(
        "python", *(["tests/bench/truth.py", *session.posargs[1:]] if truth else ["tests/bench", *session.posargs])
    )


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel and the source archive, and try the wheel in a fresh environment."""
    session.run("python", "-c", "import shutil; [shutil.rmtree(d, ignore_errors=True) for d in ('build', 'dist')]")
    session.install("build")
    session.run("python", "-m", "build", *session.posargs)
    session.install(*CONSTRAINTS, "--force-reinstall", "--no-deps", "--find-links", "dist", "--no-index", "flashproof")
    session.install(*CONSTRAINTS, *PYPROJECT["project"]["dependencies"])
    session.chdir(session.create_tmp())
    session.run(
        "flashproof", "replay", '{"B":1,"H":1,"HK":1,"M":5,"N":7,"D":8,"dtype":"fp16","regime":"normal","seed":0}'
    )


@nox.session(default=False)
def picture(session: nox.Session) -> None:
    """Make the README's picture: verify the bundled kernel and photograph the report."""
    install(session, "tests")
    session.run("flashproof", "verify", "flash", "--out", "runs/picture", "--force", *session.posargs)
    session.run("python", "-m", "flashproof.reports.picture", "runs/picture", "reports/example.png")
