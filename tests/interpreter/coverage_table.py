"""Write kernels/interpreter/COVERAGE.md from the tests' `covers` marks: `python tests/interpreter/coverage_table.py`.

The marks are read from the source, so that the table needs no run; that it holds is what the tests' success says.
"""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).parent
TABLE = FOLDER.parents[1] / "kernels" / "interpreter" / "COVERAGE.md"
HEAD = """# What of Triton's language the interpreter runs

Made from the tests by `nox -s coverage`; do not edit. Whatever is not known is refused, with the operation's name and
the kernel's source line: never a wrong number.
"""


def marks(file: Path) -> list[tuple[str, str, bool, str]]:
    """(feature, note, supported, test) of every `covers` mark in a test file."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.FunctionDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.covers":
                options = {k.arg: ast.literal_eval(k.value) for k in mark.keywords}
                feature = ast.literal_eval(mark.args[0])
                where = f"{file.name}::{node.name}"
                found.append((feature, options.get("note", ""), options.get("supported", True), where))
    return found


def table() -> str:
    """The whole file."""
    rows: dict[tuple[bool, str], tuple[list[str], list[str]]] = {}
    for file in sorted(FOLDER.glob("test_*.py")):
        for feature, note, supported, test in marks(file):
            notes, tests = rows.setdefault((supported, feature), ([], []))
            notes += [note] if note and note not in notes else []
            tests.append(test)
    lines = [HEAD]
    for supported, title, column in ((True, "Runs", "how"), (False, "Refused", "why")):
        lines += [f"## {title}\n", f"| feature | {column} | tests |", "|---|---|---|"]
        for (kind, feature), (notes, tests) in sorted(rows.items(), key=lambda row: row[0][1].lower()):
            if kind == supported:
                cells = (f"`{feature}`", "; ".join(notes), ", ".join(f"`{t}`" for t in tests))
                lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    TABLE.write_text(table())
