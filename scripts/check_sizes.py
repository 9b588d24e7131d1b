# ruff: noqa: T201, INP001 - a script speaks on standard output and belongs to no package
"""Refuse files over 400 lines and functions over 40: whatever grows beyond wants splitting.

A function is counted from its ``def`` to its last line, without its docstring. Tests and tools are held to the file
limit only: a test tells its story from top to bottom.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE, MAX_FUNCTION = 400, 40


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a function's lines without decorators and docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node, clean=False) is not None:
        doc = node.body[0]
        lines -= (doc.end_lineno or doc.lineno) - doc.lineno + 1
    return lines


def complaints(path: Path, root: Path = ROOT, *, functions: bool) -> Iterator[str]:
    """Name everything in one file that is too long."""
    text = path.read_text()
    name = path.relative_to(root)
    if (count := len(text.splitlines())) > MAX_FILE:
        yield f"{name}: {count} lines, at most {MAX_FILE}"
    if not functions:
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and function_lines(node) > MAX_FUNCTION:
            yield f"{name}:{node.lineno}: {node.name} has {function_lines(node)} lines, at most {MAX_FUNCTION}"


def main() -> int:
    """Print every complaint; tell whether there was one."""
    found = [
        line
        for top in ("src", "tests", "bench", "scripts")
        for path in sorted((ROOT / top).rglob("*.py"))
        for line in complaints(path, functions=top in {"src", "bench", "scripts"})
    ]
    print("\n".join(found) if found else "sizes: every file and function is within its limit")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
