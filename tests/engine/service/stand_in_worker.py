"""A worker that speaks the process protocol on the real database, and counts instead of training.

Its recipe says what it does: `steps` (how many), `pause` (seconds between two), `crash` (the step at which it dies).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import tomllib

from engine.log import Log, SeriesWriter
from engine.workspace import Workspace


def train(workspace: Workspace, name: str) -> int:
    log = Log(workspace.database)
    run = log.run(name)
    assert run is not None
    recipe = tomllib.loads(run["recipe"])
    log.update_run(name, pid=os.getpid(), heartbeat=time.time())
    if not log.transition(name, "starting", "training", started=time.time(), steps=recipe["steps"]):
        return 0
    with (workspace.run_folder(name) / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    writer = SeriesWriter(workspace.database, name, interval=0.05)
    loss = writer.series("train/loss")
    done_before = int(run["step"] or 0)
    idle = threading.Event()
    for step in range(done_before + 1, recipe["steps"] + 1):
        writer.add(loss, step, 1.0 / step)
        idle.wait(recipe.get("pause", 0.0))
        if step == recipe.get("crash"):
            print("the stand-in was told to crash", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if writer.requested == "pause":
            log.update_run(name, step=step)
            log.transition(name, "training", "paused")
            while writer.requested == "pause":
                idle.wait(0.02)
            log.transition(name, "paused", "training", request="")
        if writer.requested == "stop":
            return finish(log, writer, name, step, "stopped")
    return finish(log, writer, name, recipe["steps"], "done")


def finish(log: Log, writer: SeriesWriter, name: str, step: int, state: str) -> int:
    writer.close()
    log.transition(
        name, ["training"], state, step=step, ended=time.time(), weights="0" * 64, metrics={"test/score": 0.5}
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--run")
    parser.add_argument("--spare", action="store_true")
    options = parser.parse_args()
    if options.spare:
        print("ready", flush=True)
        options.run = sys.stdin.readline().strip()
    return train(Workspace(options.workspace), options.run) if options.run else 0


if __name__ == "__main__":
    sys.exit(main())
