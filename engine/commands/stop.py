"""`main.py stop`: ends a run with a checkpoint, whoever started it."""

from __future__ import annotations

import argparse
import threading
import time

from engine.commands.cli import DONE, FAILED, PROGRAM, add_json, add_workspace, open_workspace
from engine.commands.output import print_json
from engine.log import Log
from engine.service import verbs
from engine.service.states import TERMINAL


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the id of a run, or its start")
    parser.add_argument("--wait", type=float, default=60.0, metavar="SECONDS", help="how long to wait for its end")
    parser.add_argument("--force", action="store_true", help="end its process at once, also one that hangs")
    add_workspace(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    with Log(open_workspace(options.workspace).database) as log:
        name = verbs.find(log, options.run)["id"]
        if options.force:
            verbs.end(log, verbs.find(log, name))
        else:
            verbs.stop(log, verbs.find(log, name))
        deadline = time.monotonic() + options.wait
        pause = threading.Event()
        while (row := verbs.find(log, name))["state"] not in TERMINAL and time.monotonic() < deadline:
            if not verbs.has_process(row) and row["pid"]:
                verbs.stop(log, row)  # its process died instead
            pause.wait(0.05)
    if options.json:
        print_json({"id": name, "state": row["state"], "step": row["step"]})
    elif row["state"] in TERMINAL:
        print(f"Run {name} is {row['state']}. `python {PROGRAM} resume {name}` goes on with it.")
    else:
        print(f"Run {name} was asked to stop, and is {row['state']} still. `--force` ends its process at once.")
    return DONE if row["state"] in TERMINAL else FAILED
