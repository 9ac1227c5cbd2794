"""Clocks that jump, forwards and back, while a run is logged."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.log import Log, SeriesWriter
from engine.log import writer as module


class Jumping:
    """A clock that is set to another time at random; how long something took is not its business."""

    def __init__(self, chance: random.Random):
        self.chance = chance
        self.offset = 0.0
        self.jumps = 0

    def time(self) -> float:
        if self.chance.random() < 0.2:
            self.offset = self.chance.choice([0.0, 3600.0, -3600.0, 86400.0 * 365, -86400.0 * 20000, 0.5, -0.5])
            self.jumps += 1
        return time.time() + self.offset

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def test_clocks_that_jump_while_it_is_written(tmp_path: Path, times: Callable[[int], int], monkeypatch: Any) -> None:
    chance = random.Random(int(os.environ.get("ATHANOR_SEED", "1")))
    clock = Jumping(chance)
    monkeypatch.setattr(module, "clock", clock)
    with Log(tmp_path / "athanor.db") as log:
        run = log.create_run("")
        step = 0
        for _ in range(times(3)):
            with SeriesWriter(log.path, run, interval=0.005) as writer:
                handle = writer.series("loss")
                first = step
                for _ in range(30):
                    for _ in range(chance.randrange(1, 200)):
                        writer.add(handle, step, step / 7)
                        step += 1
                    writer.event("said", step=step)
                    writer.flush()
                    log.request(run, "pause")
                    writer.flush()
                    assert writer.requested == "pause", "a person is heard whatever the clock says"
                    writer.answered("pause")
            found = log.points(run, "loss")
            assert (found.steps == np.arange(step)).all() and (found.values == found.steps / 7).all()
            assert np.isfinite(found.times).all()
            assert (np.diff(found.times[first:]) >= 0).all(), "within one process time does not run backwards"
            thin = log.points(run, "loss", width=100)
            assert (np.diff(thin.steps) > 0).all() and thin.steps[-1] == step - 1
        assert [event["step"] for event in log.events(run, 1, 10**6)] == sorted(
            event["step"] for event in log.events(run, 1, 10**6)
        )
        assert log._rows("PRAGMA integrity_check")[0]["integrity_check"] == "ok"
    assert clock.jumps > 20 * times(3)
    print(f"{clock.jumps} jumps")
