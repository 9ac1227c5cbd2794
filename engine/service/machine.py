"""What the machine does: processor, memory, disk and GPUs, once a second on a fixed beat."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import Any

import psutil

from engine.log import Log
from engine.service.states import ACTIVE
from engine.workspace import Workspace

logger = logging.getLogger(__name__)

BEAT = 1.0


class Gpus:
    """NVIDIA's GPUs through NVML. None are there when the driver is not; what a card does not tell is None."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self.handles: list[Any] = []
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            self.handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except Exception as error:  # no driver, no permission, no library: a machine without GPUs
            logger.info("no GPU monitoring: %s", error)

    def sample(self) -> list[dict[str, Any]]:
        return [self._one(handle) for handle in self.handles]

    def _one(self, handle: Any) -> dict[str, Any]:
        nvml = self._nvml
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        name = self._ask(nvml.nvmlDeviceGetName, handle)
        power = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        return {
            "name": name.decode() if isinstance(name, bytes) else name,
            "utilization": rates and float(rates.gpu),
            "memory": memory and int(memory.used),
            "memory_total": memory and int(memory.total),
            "power": None if power is None else power / 1000.0,
            "temperature": self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            "clock": self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        }

    def _ask(self, question: Any, *arguments: Any) -> Any:
        try:
            return question(*arguments)
        except self._nvml.NVMLError:
            return None

    def close(self) -> None:
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()


def gpu_count() -> int:
    """How many GPUs the driver shows."""
    gpus = Gpus()
    try:
        return len(gpus.handles)
    finally:
        gpus.close()


class Meter:
    """Takes one sample. Rates count from the sample before, so keep the meter."""

    def __init__(self, workspace: Workspace):
        self.folder = str(workspace.folder)
        self.gpus = Gpus()
        self._processes: dict[int, psutil.Process] = {}
        psutil.cpu_percent(percpu=True)

    def sample(self, runs: dict[int, str]) -> dict[str, Any]:
        """The machine now; `runs` says which process trains which run."""
        cores = psutil.cpu_percent(percpu=True)
        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(self.folder)
        return {
            "cpu": round(sum(cores) / max(1, len(cores)), 1),
            "cpus": cores,
            "memory": memory.total - memory.available,
            "memory_total": memory.total,
            "swap": psutil.swap_memory().used,
            "disk_free": disk.free,
            "disk_total": disk.total,
            "load": round(psutil.getloadavg()[0], 2),
            "gpus": self.gpus.sample(),
            "processes": self._trainers(runs),
        }

    def _trainers(self, runs: dict[int, str]) -> dict[str, dict[str, Any]]:
        """Each run's process together with those that it started (data loaders, one per GPU)."""
        seen: dict[int, psutil.Process] = {}
        found: dict[str, dict[str, Any]] = {}
        for pid, run in runs.items():
            try:
                family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            except psutil.Error:
                continue
            cpu, memory = 0.0, 0
            for member in family:
                # The same object as before, where it is the same process: its rate counts from the last sample.
                known = self._processes.get(member.pid)
                process = known if known == member else member
                seen[process.pid] = process
                try:
                    cpu += process.cpu_percent()
                    memory += process.memory_info().rss
                except psutil.Error:
                    continue
            found[str(pid)] = {"cpu": round(cpu, 1), "memory": memory, "run": run}
        self._processes = seen
        return found

    def close(self) -> None:
        self.gpus.close()


class Monitor(threading.Thread):
    """Writes a sample a second into the workspace's database until it is stopped."""

    def __init__(self, workspace: Workspace, beat: float = BEAT):
        super().__init__(name="machine monitor", daemon=True)
        self.workspace = workspace
        self.beat = beat
        self._stop_asked = threading.Event()

    def run(self) -> None:
        meter = Meter(self.workspace)
        log = Log(self.workspace.database)
        try:
            due = time.monotonic() + self.beat
            while not self._stop_asked.wait(max(0.0, due - time.monotonic())):
                try:
                    pids = {run["pid"]: run["id"] for run in log.runs(states=ACTIVE, archived=None) if run["pid"]}
                    pids.pop(os.getpid(), None)
                    log.add_machine(meter.sample(pids))
                except Exception:  # a full disk or a lost card must not end the watch over the rest
                    logger.exception("a machine sample was lost")
                # The beat is fixed: a late sample does not push the next, and a missed one is not made up.
                due += self.beat * max(1.0, (time.monotonic() - due) // self.beat + 1)
        finally:
            meter.close()
            log.close()

    def stop(self) -> None:
        self._stop_asked.set()
        self.join(timeout=5)
