"""All checks in one command: `python -m tests [pytest arguments]`. Lint, format, types, then the tests, headless."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from engine.commands.display import obstacle

ROOT = Path(__file__).resolve().parent.parent
CHECKS = (
    ("lint", ["ruff", "check", "--quiet", "."]),
    ("format", ["ruff", "format", "--check", "--quiet", "."]),
    ("types", ["mypy"]),
)


def main(arguments: list[str]) -> int:
    """Runs every check; the exit code is that of the first one that fails."""
    message = obstacle()
    if message:
        print(message, file=sys.stderr)
        return 2
    worst = 0
    for name, command in CHECKS:
        print(f"-- {name}", flush=True)
        worst = worst or subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode
    print("-- tests", flush=True)
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    pytest = [sys.executable, "-m", "pytest", *(arguments or ["-n", "2", "-q"])]
    return subprocess.run(pytest, cwd=ROOT, env=environment).returncode or worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
