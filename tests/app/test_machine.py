"""Machine: the strips show the samples, and the bars the runs that used a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PySide6.QtCore import QPoint, Qt

from app.curves import MachineCache
from app.places import Context
from app.places.machine import LABELS, WINDOW, MachinePlace, Strip, _stretches, read_machine
from engine.log import Log
from engine.workspace import Workspace

GPU = {"name": "One", "utilization": 80.0, "memory": 10e9, "memory_total": 40e9, "power": 300.0, "temperature": 60.0,
       "clock": 1700.0}  # fmt: skip


def sample(cpu: float, gpus: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"cpu": cpu, "cpus": [cpu, cpu], "memory": 8e9, "memory_total": 16e9, "load": 1.5, "disk_free": 10e9,
            "disk_total": 100e9, "gpus": gpus or [], "processes": {}}  # fmt: skip


@pytest.fixture
def now(workspace: Workspace) -> float:
    """Ten minutes of samples, one a second, the last of them now."""
    end = time.time()
    with Log(workspace.database) as log, log.transaction():
        for second in range(700):
            log.add_machine(sample(second / 7, [GPU]), time=end - 699 + second)
    return end


def test_the_strips_hold_the_last_ten_minutes(workspace: Workspace, now: float) -> None:
    with Log(workspace.database, readonly=True) as log:
        reading = read_machine(log, MachineCache(), now)
    assert [device.id for device in reading.devices] == ["cpu", "gpu0"]
    assert reading.times[0] > now - WINDOW and reading.times[-1] == pytest.approx(now)
    processor, gpu = reading.devices
    assert processor.title == "Processor, 2 cores" and gpu.title == "GPU 0, One"
    np.testing.assert_allclose(processor.lanes[0].values, (reading.times - now + 699) / 7, atol=1e-3)
    assert [lane.name for lane in gpu.lanes] == ["Utilization", "Memory", "Power", "Temperature", "Clock"]
    assert gpu.lanes[1].ceiling == 40e9 and reading.disk.startswith("10.0 GB of 100.0 GB free")


def test_the_cache_reads_on_and_reaches_back(workspace: Workspace, now: float) -> None:
    cache = MachineCache()
    with Log(workspace.database) as log:
        late = cache.since(log, now - 10)
        assert len(late) == 10
        assert len(cache.since(log, now - 100)) == 100
        log.add_machine(sample(5.0), time=now + 1)
        assert cache.since(log, now - 10)[-1]["cpu"] == 5.0
        assert len(cache.since(log, now - 10)) == 11


def test_what_a_card_does_not_tell_has_no_lane(workspace: Workspace) -> None:
    silent = {**GPU, "power": None, "clock": None}
    with Log(workspace.database) as log:
        for second in range(3):
            log.add_machine(sample(1.0, [silent]), time=1000.0 + second)
        reading = read_machine(log, MachineCache(), 1003.0)
    assert [lane.name for lane in reading.devices[1].lanes] == ["Utilization", "Memory", "Temperature"]


def test_bars_show_which_run_used_which_device(workspace: Workspace, now: float, write_run: Callable[..., str]) -> None:
    on_cpu = write_run("on the processor", started=now - 300, ended=now - 200)
    on_gpu = write_run("on the card", state="training", started=now - 100, device="cuda:0", heartbeat=now)
    write_run("long ago", started=now - 9000, ended=now - 8000)
    with Log(workspace.database, readonly=True) as log:
        processor, gpu = read_machine(log, MachineCache(), now).devices
    assert {bar.run for bar in processor.bars} == {on_cpu, on_gpu}
    assert [(bar.run, bar.start, bar.end, bar.live) for bar in gpu.bars] == [(on_gpu, now - 100, now, True)]


def test_a_line_is_broken_where_nothing_was_measured() -> None:
    times = np.array([0.0, 1, 2, 60, 61, 62, 63])
    finite = np.array([True, True, True, True, True, False, True])
    assert _stretches(times, finite) == [(0, 3), (3, 5)]


def test_the_place_draws_and_a_bar_leads_to_its_run(
    qtbot: Any, frame_context: Context, workspace: Workspace, now: float, write_run: Callable[..., str]
) -> None:
    run = write_run("a run", started=now - 400, ended=now - 100)
    place = MachinePlace(frame_context)
    qtbot.addWidget(place)
    place.resize(1000, 700)
    place.show()
    place.refresh()
    qtbot.waitUntil(lambda: len(place.strips) == 2)
    strip: Strip = place.strips["cpu"][2]
    qtbot.waitUntil(lambda: bool(strip.device.bars) and strip.width() > 600)
    assert "Utilization 100 %" in strip.accessibleName()
    area = strip._bar_area(strip.device.bars[0], 0)
    share = (area.left() - LABELS) / strip._width()
    assert share == pytest.approx(200 / 600, abs=0.02) and area.width() / strip._width() == pytest.approx(0.5, abs=0.02)
    picture = strip.grab().toImage()
    seen = picture.pixelColor(round(strip._x(strip.times[-3])) - 2, 40)
    assert seen != picture.pixelColor(LABELS - 5, 40)  # the area below the line is filled
    went: list[tuple[str, dict[str, Any]]] = []
    frame_context.went.connect(lambda where, what: went.append((where, what)))
    top = sum((54 if lane.tall else 34) + 6 for lane in strip.device.lanes)
    qtbot.mouseClick(strip, Qt.MouseButton.LeftButton, pos=QPoint(round(area.center().x()), top + 8))
    assert went == [("runs", {"run": run})]


def test_without_samples_it_says_what_to_do(qtbot: Any, frame_context: Context) -> None:
    place = MachinePlace(frame_context)
    qtbot.addWidget(place)
    place.refresh()
    qtbot.wait(200)
    assert place._stack.currentWidget() is place._empty
    assert "once a second" in place._empty.sentence.text()
