"""`python -m tests.benchmarks {log,loop,start} [--json]`: one table, measured now."""

from __future__ import annotations

import argparse
import importlib
import sys

from tests.benchmarks.rows import show

TABLES = ("log", "loop", "start")


def main(arguments: list[str]) -> int:
    ask = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measures speed against peers.")
    ask.add_argument("table", choices=TABLES)
    ask.add_argument("--json", action="store_true", help="one JSON document")
    given = ask.parse_args(arguments)
    show(importlib.import_module(f"tests.benchmarks.{given.table}").rows(), given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
