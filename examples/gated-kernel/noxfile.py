"""The gate, as CI and developers run it: `nox -s attention`, and `nox -s attention -- base` to compare with a run."""

from pathlib import Path

import nox

FLASHPROOF = "../.."  # in a repository of your own: "flashproof"
KERNEL = "attention.py:attention"
BUDGETS = ("--budgets", "budgets.toml")


@nox.session(venv_backend="virtualenv")
def attention(session: nox.Session) -> None:
    """Verify the kernel into the folder `head`; then compare it with the base run, if one is named."""
    session.install("-c", f"{FLASHPROOF}/constraints.txt", FLASHPROOF)
    session.install("--no-deps", "fla-core", "einops")  # they would bring a torch of their own
    session.run("flashproof", "verify", KERNEL, *BUDGETS, "--out", "head", "--force")
    for base in session.posargs:
        if (Path(base) / "manifest.json").is_file():
            session.run("flashproof", "compare", base, "head", *BUDGETS, "--out", "drift")
        else:
            session.log(f"no run in {base}: nothing to compare with yet")
