"""`python -m engine.service --workspace DIR`: the background service of a workspace, once."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

from filelock import FileLock, Timeout

from engine.errors import AthanorError
from engine.service.service import IDLE_MINUTES, Service
from engine.workspace import Workspace

LOCK_PATIENCE = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.service", description=__doc__)
    parser.add_argument("--workspace", required=True, metavar="DIR", help="the folder of the database and the runs")
    parser.add_argument("--client", type=int, action="append", default=[], metavar="PID", help="a process to stay for")
    parser.add_argument("--idle-minutes", type=float, default=IDLE_MINUTES, help="end after so long without work")
    parser.add_argument("--slots", type=int, default=None, help="how many runs train on the processor at a time")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        workspace = Workspace(options.workspace)
        with FileLock(workspace.folder / "engine.lock", timeout=LOCK_PATIENCE):
            _serve(workspace, options)
    except Timeout:
        logging.info("a service of this workspace lives already")
    except AthanorError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _serve(workspace: Workspace, options: argparse.Namespace) -> None:
    service = Service(workspace, idle_minutes=options.idle_minutes, clients=options.client, slots=options.slots)
    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), lambda *_: service.end())
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    service.run()


if __name__ == "__main__":
    sys.exit(main())
