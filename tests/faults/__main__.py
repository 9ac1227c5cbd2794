"""Faults tried many times: `python -m tests.faults [TIMES] [pytest arguments]`: each TIMES (50) as often as usual."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    times, rest = ("50", arguments) if not arguments or not arguments[0].isdigit() else (arguments[0], arguments[1:])
    command = [sys.executable, "-m", "pytest", str(FOLDER), "-q", "-s", *rest]
    environment = {**os.environ, "ATHANOR_FAULTS": times, "QT_QPA_PLATFORM": "offscreen"}
    return subprocess.run(command, cwd=FOLDER.parent.parent, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
