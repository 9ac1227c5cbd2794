"""Runs small Python functions that somebody else has written, such as a language model, against tests.

Two fences stand one inside the other. The outer one is a process of its own, isolated, in an empty folder, without the
environment, with limits on time, memory, files and processes. The inner one is the language: only what stands on the
lists below may be written at all. There is no import, no attribute but the named methods of plain values, no name that
begins with an underscore, and no builtin that reaches beyond its arguments; so no file or network can be named.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

SECONDS = 2.0
NEEDED = ("SYSTEMROOT",)  # what Python itself does not start without, on Windows
MEMORY = 512 << 20
LONGEST = 20_000  # characters of a source

NODES = (
    *(ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Assign, ast.AugAssign, ast.For, ast.While),
    *(ast.If, ast.Raise, ast.Assert, ast.Expr, ast.Pass, ast.Break, ast.Continue, ast.BoolOp, ast.NamedExpr, ast.BinOp),
    *(ast.UnaryOp, ast.Lambda, ast.IfExp, ast.Dict, ast.Set, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
    *(ast.comprehension, ast.Yield, ast.Compare, ast.Call, ast.keyword),
    *(ast.JoinedStr, ast.FormattedValue, ast.Constant),
    *(ast.Attribute, ast.Subscript, ast.Starred, ast.Name, ast.List, ast.Tuple, ast.Slice, ast.Load, ast.Store),
    *(ast.boolop, ast.operator, ast.unaryop, ast.cmpop, ast.AnnAssign),
)
BUILTINS = (
    *("abs", "all", "any", "bool", "chr", "dict", "divmod", "enumerate", "filter", "float", "int", "isinstance", "len"),
    *("list", "map", "max", "min", "ord", "pow", "range", "repr", "reversed", "round", "set", "sorted", "str", "sum"),
    *("tuple", "zip", "ValueError", "ZeroDivisionError", "TypeError", "IndexError", "KeyError"),
)
# Not among them: format and format_map, whose texts reach attributes.
METHODS = (
    *("append", "add", "capitalize", "clear", "copy", "count", "discard", "endswith", "extend", "find", "get", "index"),
    *("insert", "intersection", "isalnum", "isalpha", "isdigit", "islower", "isspace", "isupper", "items", "join"),
    *("keys", "ljust", "lower", "lstrip", "partition", "pop", "remove", "replace", "reverse", "rjust", "rpartition"),
    *("rstrip", "setdefault", "sort", "split", "splitlines", "startswith", "strip", "swapcase", "title", "union"),
    *("update", "upper", "values", "zfill", "difference", "bit_length"),
)

RUNNER = """
import builtins, json, sys
given = json.load(sys.stdin)
try:
    import resource
    wanted = (("RLIMIT_CPU", given["seconds"]), ("RLIMIT_AS", given["memory"]), ("RLIMIT_FSIZE", 0),
              ("RLIMIT_NOFILE", 3), ("RLIMIT_NPROC", 0), ("RLIMIT_CORE", 0))
    for name, limit in wanted:
        kind = getattr(resource, name, None)
        if kind is not None:
            try:
                resource.setrlimit(kind, (limit, limit))
            except (ValueError, OSError):
                pass
except ImportError:
    pass
sys.setrecursionlimit(300)
space = {"__builtins__": {name: getattr(builtins, name) for name in given["builtins"]}}
out = []
def attempt(act):
    try:
        return act()
    except MemoryError:
        return "it needs too much memory"
    except RecursionError:
        return "it calls itself without end"
    except BaseException as error:
        return type(error).__name__ + ": " + str(error)[:200]
def define():
    exec(compile(given["source"], "answer", "exec"), space)
    return ""
broken = attempt(define)
for test in given["tests"]:
    def look():
        got = eval(compile(test, "test", "eval"), space)
        return "" if got is True else "it is not so"
    sys.stdout.write(json.dumps(broken or attempt(look)) + "\\n")
    sys.stdout.flush()
"""


def refused(source: str) -> str:
    """Why a source is not run; empty where it may be."""
    if len(source) > LONGEST:
        return f"it is longer than {LONGEST:,} characters"
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"it is no Python: {getattr(error, 'msg', None) or error}"
    for node in ast.walk(tree):
        if not isinstance(node, NODES):
            return f"{type(node).__name__.lower()} may not be used here"
        names = [getattr(node, field, None) for field in ("id", "arg", "name")]
        if any(isinstance(name, str) and name.startswith("_") for name in names):
            return "names that begin with an underscore may not be used here"
        if isinstance(node, ast.Attribute) and (node.attr not in METHODS or not isinstance(node.ctx, ast.Load)):
            return f"the attribute {node.attr} may not be used here"
    return ""


def try_out(source: str, tests: Sequence[str], seconds: float = SECONDS) -> list[str]:
    """What is wrong by each test, an expression that must be true; empty where it holds. Raises nothing."""
    reason = refused(source) or next((r for test in tests if (r := refused(test))), "")
    if reason:
        return [reason] * len(tests)
    given: dict[str, object] = {"source": source, "tests": list(tests), "builtins": BUILTINS}
    given |= {"seconds": max(int(seconds) + 1, 1), "memory": MEMORY}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", RUNNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={name: os.environ[name] for name in NEEDED if name in os.environ},
        )
        try:
            said, _ = process.communicate(json.dumps(given).encode(), timeout=seconds)
            ending = "it ended the process"
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            ending = f"it takes longer than {seconds:g} seconds"
    found = [str(json.loads(line)) for line in said.decode(errors="replace").splitlines()]
    return [*found, *[ending] * len(tests)][: len(tests)]
