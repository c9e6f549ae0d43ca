"""How much of a lesson refuses instead of computing: `python tools/checks/count_checks.py [names]`.

Counted is the exported module: lines that are not blank and no comment alone. A line is a check if it belongs to
an `if` or `try` that raises, to a statement that calls `store.checks` (except `floats`, which is a cast), or to an
assignment whose names only such lines read.
"""

import ast
import sys
from pathlib import Path

LIB = Path(__file__).resolve().parents[2] / "imagen_nb"
LESSONS = ("diffusion", "sampling", "guidance", "thresholding")
CHECKS = {"check", "check_among", "per_sample", "as_whole", "alike"}
WHOLE = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.With)


def is_check(statement: ast.stmt) -> bool:
    "Does this statement refuse something?"
    inside = list(ast.walk(statement))
    if isinstance(statement, (ast.If, ast.Try, ast.Raise, ast.Assert)):
        return any(isinstance(node, (ast.Raise, ast.Assert)) for node in inside)
    calls = (node.func for node in inside if isinstance(node, ast.Call))
    return any(isinstance(f, ast.Name) and f.id in CHECKS for f in calls)


def names(nodes, context) -> set:
    "Variables that are read or written."
    found = (node for top in nodes for node in ast.walk(top))
    return {n.id for n in found if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


def check_lines(function: ast.FunctionDef) -> set:
    "Lines of one function that check."
    statements = [s for s in ast.walk(function) if isinstance(s, ast.stmt)]
    simple = [s for s in statements if not isinstance(s, WHOLE) and s is not function]
    checks = [s for s in simple if is_check(s)]
    for s in (s for s in simple if isinstance(s, ast.Assign) and s not in checks):
        mine, rest = names([s], ast.Store), [o for o in simple if o is not s and o not in checks]
        if mine & names(checks, ast.Load) and not mine & names(rest, ast.Load):
            checks.append(s)
    return {line for s in checks for line in range(s.lineno, s.end_lineno + 1)}


def share(source: str) -> tuple[int, int]:
    "Lines that check, and all lines of code."
    lines = source.splitlines()
    code = {i for i, l in enumerate(lines, 1) if l.strip() and not l.lstrip().startswith("#")}
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    return len(code & {line for f in functions for line in check_lines(f)}), len(code)


if __name__ == "__main__":
    for name in sys.argv[1:] or LESSONS:
        checks, code = share((LIB / f"{name}.py").read_text(encoding="utf-8"))
        print(f"{name:14} {checks:3} of {code:3} lines check: {checks / code:.1%}")
