"""Strangers' functions: tried out, and held."""

from __future__ import annotations

import time

import pytest

from engine.kit.sandbox import BUILTINS, METHODS, refused, try_out

PLAIN = "def double(x):\n    return [2 * v for v in x]\n"


def test_tests_are_told_apart() -> None:
    found = try_out(PLAIN, ["double([1]) == [2]", "double([]) == [1]", "double(3) == 6", "len(double([1, 2])) == 2"])
    assert found[0] == "" and found[1] == "it is not so" and found[2].startswith("TypeError") and found[3] == ""
    assert try_out("def f(x):\n    return 1 / x\n", ["f(1) == 1", "f(0) == 1"])[1].startswith("ZeroDivisionError")
    assert try_out("def f(:", ["f()"]) == ["it is no Python: invalid syntax"]


@pytest.mark.parametrize(
    "source",
    [
        "import os",
        "from os import path",
        "x = ().__class__",
        "x = f'{().__class__}'",
        "x = '{0.__class__}'.format(1)",
        "x = str.format",
        "x = __builtins__",
        "x = __import__('os')",
        "def f(__x): pass",
        "class A: pass",
        "with open('x') as f: pass",
        "async def f(): pass",
        "try:\n    x = 1\nexcept Exception as e:\n    pass",
        "match 1:\n    case int(real=x): pass",
        "global x",
        "def f():\n    yield from x",
        "x = (y for y in z).gi_frame",
        "f.append = 1",
        "del x",
        "@a\nclass B: pass",
        "type X = int",
        "x = 1" + " + 1" * 20_000,
    ],
)
def test_what_reaches_out_is_not_run(source: str) -> None:
    assert refused(source)
    assert all(try_out(source, ["True"]))


@pytest.mark.parametrize(
    "name", ["open", "eval", "exec", "getattr", "type", "vars", "globals", "input", "print", "object"]
)
def test_builtins_that_reach_out_are_not_there(name: str) -> None:
    (said,) = try_out(f"x = {name}", ["True"])
    assert said.startswith("NameError") and name not in BUILTINS


def test_no_allowed_method_leads_to_attributes_by_name() -> None:
    assert not {"format", "format_map", "mro", "with_traceback", "send", "throw", "encode", "decode"} & set(METHODS)
    assert not any(name.startswith("_") for name in (*METHODS, *BUILTINS))


def test_what_never_ends_or_takes_all_memory_is_ended() -> None:
    began = time.perf_counter()
    assert try_out("def f():\n    while True:\n        pass\n", ["True", "f()"], 0.5) == [
        "",
        "it takes longer than 0.5 seconds",
    ]
    assert time.perf_counter() - began < 5
    assert try_out("x = [0] * (10 ** 10)", ["True"]) == ["it needs too much memory"]
    assert try_out("def f():\n    return f()\n", ["f()"]) == ["it calls itself without end"]
    assert try_out("x = 9 ** 9 ** 9", ["True"], 0.5) == ["it takes longer than 0.5 seconds"]


def test_a_test_is_held_by_the_same_rules() -> None:
    assert try_out(PLAIN, ["__import__('os')"]) == ["names that begin with an underscore may not be used here"]
    assert try_out(PLAIN, ["1"]) == ["it is not so"], "true and nothing like it"
