"""`python -m engine.service --workspace DIR`: the background service of a workspace, once."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from filelock import FileLock, Timeout

from engine.errors import AthanorError
from engine.log import Log
from engine.service.processes import lives
from engine.service.service import IDLE_MINUTES, Service
from engine.workspace import Workspace

LOCK_PATIENCE = 15.0


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return locked(parser().parse_args(argv))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.service", description=__doc__)
    parser.add_argument("--workspace", required=True, metavar="DIR", help="the folder of the database and the runs")
    parser.add_argument("--client", type=int, action="append", default=[], metavar="PID", help="a process to stay for")
    parser.add_argument("--idle-minutes", type=float, default=IDLE_MINUTES, help="end after so long without work")
    parser.add_argument("--slots", type=int, default=None, help="how many runs train on the processor at a time")
    return parser


def locked(options: argparse.Namespace, **parts: Any) -> int:
    """Serves under the workspace's lock; a second service ends at once. `parts` go to the Service."""
    try:
        workspace = Workspace(options.workspace)
        lock = FileLock(workspace.folder / "engine.lock", mode=0o600)
        if not _acquire(lock, workspace):
            logging.info("a service of this workspace lives already")
            return 0
        try:
            _serve(workspace, options, parts)
        finally:
            lock.release()
    except AthanorError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _acquire(lock: FileLock, workspace: Workspace) -> bool:
    """Takes the lock. One that says goodbye right now is waited for: it may not do what it has not seen."""
    patience_ends = time.monotonic() + LOCK_PATIENCE
    with Log(workspace.database) as log:
        while True:
            try:
                lock.acquire(timeout=0.3)
                return True
            except Timeout:
                state = log.meta("service") or {}
                if lives(state.get("pid"), state.get("heartbeat")) or time.monotonic() > patience_ends:
                    return False


def _serve(workspace: Workspace, options: argparse.Namespace, parts: dict[str, Any]) -> None:
    service = Service(
        workspace, idle_minutes=options.idle_minutes, clients=options.client, slots=options.slots, **parts
    )
    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), lambda *_: service.end())
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    service.run()


if __name__ == "__main__":
    sys.exit(main())
