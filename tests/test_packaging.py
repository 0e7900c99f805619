"""The folders are one import package: the tree is what the wheel holds, and who imports whom is kept."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import flashproof
import pytest

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("kernels", "reference", "reports", "verify")


def test_every_folder_with_modules_is_listed():
    found = {"flashproof"}
    for top in FOLDERS:
        for file in (ROOT / top).rglob("*.py"):
            if "_root" not in file.parts and "__pycache__" not in file.parts:
                found.add(".".join(("flashproof", *file.relative_to(ROOT).parent.parts)))
    assert set(CONFIG["tool"]["setuptools"]["packages"]) == found


def test_version_is_stated_once():
    assert flashproof.__version__ == CONFIG["project"]["version"]


def test_typed_marker_is_there():
    assert (ROOT / "verify" / "_root" / "py.typed").is_file()


@pytest.mark.parametrize(("folder", "allowed"), [("reference", set()), ("kernels", set()), ("reports", set())])
def test_who_imports_whom(folder, allowed):
    for file in (ROOT / folder).rglob("*.py"):
        depth = len(file.relative_to(ROOT / folder).parts)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level > depth:
                assert (node.module or "").split(".")[0] in allowed, f"{file}: {ast.unparse(node)}"
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module or "")
            assert not any(n.split(".")[0] == "flashproof" for n in names), f"{file}: absolute import of ourselves"
            if folder == "reports":
                assert not any(n.split(".")[0] in ("torch", "triton") for n in names), f"{file} imports {names}"
