"""Samples of the machine, GPUs included: through a card that NVML describes, whole or in part."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from engine.service import machine
from engine.service.machine import Gpus, Meter
from engine.workspace import Workspace


class NvmlError(Exception):
    pass


def unsupported(*_: Any) -> Any:
    raise NvmlError("not supported")


def nvml(**answers: Any) -> SimpleNamespace:
    names = ("MemoryInfo", "UtilizationRates", "Name", "PowerUsage", "Temperature", "ClockInfo")
    questions = {f"nvmlDeviceGet{name}": unsupported for name in names}
    return SimpleNamespace(
        NVMLError=NvmlError,
        NVML_TEMPERATURE_GPU=0,
        NVML_CLOCK_SM=1,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        **{**questions, **{f"nvmlDeviceGet{name}": answer for name, answer in answers.items()}},
    )


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda **answers: monkeypatch.setitem(__import__("sys").modules, "pynvml", nvml(**answers))


def test_a_card_in_the_units_of_the_log(card: Any) -> None:
    card(
        MemoryInfo=lambda _: SimpleNamespace(used=3 << 30, total=8 << 30),
        UtilizationRates=lambda _: SimpleNamespace(gpu=0, memory=5),
        Name=lambda _: b"A card",
        PowerUsage=lambda _: 65_500,
        Temperature=lambda *_: 41,
        ClockInfo=lambda *_: 1410,
    )
    assert Gpus().sample() == [
        {
            "name": "A card",
            "utilization": 0.0,
            "memory": 3 << 30,
            "memory_total": 8 << 30,
            "power": 65.5,
            "temperature": 41,
            "clock": 1410,
        }
    ]


def test_what_a_card_does_not_tell_is_none(card: Any) -> None:
    card(Name=lambda _: "A card")
    sample = Gpus().sample()[0]
    assert sample.pop("name") == "A card" and set(sample.values()) == {None}


def test_a_machine_without_the_library_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert Gpus().sample() == [] and machine.gpu_count() == 0


def test_a_process_is_measured_from_one_sample_to_the_next(workspace: Workspace) -> None:
    meter = Meter(workspace)
    meter.sample({os.getpid(): "run"})
    before = psutil.Process().cpu_times()
    while psutil.Process().cpu_times().user - before.user < 0.1:
        sum(range(10_000))
    found = meter.sample({os.getpid(): "run", 2**22 + 1: "gone"})["processes"]
    meter.close()
    assert list(found) == [str(os.getpid())]
    assert found[str(os.getpid())]["cpu"] > 5 and found[str(os.getpid())]["run"] == "run"
    assert found[str(os.getpid())]["memory"] > psutil.Process().memory_info().rss / 2
