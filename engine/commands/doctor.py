"""`main.py doctor`: versions, devices, display and database, with a remedy for each thing that is wrong."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from engine.commands.cli import DONE, FAILED, add_json, add_workspace, open_workspace
from engine.commands.display import display, obstacle
from engine.commands.output import print_json, size
from engine.service.processes import ROOT, environment, version
from engine.workspace import Workspace

PACKAGES = (
    *("torch", "numpy", "scikit-learn", "PySide6-Essentials", "pyqtgraph", "pydantic", "sqlite-utils", "tomlkit"),
    *("psutil", "nvidia-ml-py", "platformdirs", "docstring-parser", "rich", "filelock"),
)

LOW_DISK = 1 << 30

# Asked in a process of its own: importing torch takes seconds, and where it is broken it may take the process down.
TORCH = """
import json, torch
cuda = torch.cuda.is_available()
cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({
    "version": torch.__version__, "built_for_cuda": torch.version.cuda, "cuda": cuda,
    "threads": torch.get_num_threads(),
    "cards": [{"name": card.name, "memory": card.total_memory} for card in cards],
}))
"""

Problem = dict[str, str]


def arguments(parser: argparse.ArgumentParser) -> None:
    add_workspace(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    report = examine(open_workspace(options.workspace))
    if options.json:
        print_json(report)
    else:
        _print(report)
    return FAILED if report["problems"] else DONE


def examine(workspace: Workspace) -> dict[str, Any]:
    """Everything that was looked at; `problems` is a list of `{what, remedy}`, empty where all is well."""
    problems: list[Problem] = []
    return {
        "versions": versions(problems),
        "devices": devices(problems),
        "display": window(problems),
        "workspace": folder(workspace, problems),
        "database": database(workspace.database, problems),
        "engine": engine(workspace, problems),
        "problems": problems,
    }


def versions(problems: list[Problem]) -> dict[str, Any]:
    found: dict[str, Any] = {"athanor": version(), "python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
            remedy = f"Run `{sys.executable} -m pip install -e {ROOT}`."
            problems.append({"what": f"The package {package} is not installed.", "remedy": remedy})
    if found["PySide6-Essentials"] == "6.12.0":
        remedy = f"Run `{sys.executable} -m pip install 'PySide6-Essentials!=6.12.0'`."
        problems.append({"what": "PySide6 6.12.0 crashes windows with many charts.", "remedy": remedy})
    return found


def devices(problems: list[Problem]) -> dict[str, Any]:
    from engine.service.machine import gpu_count

    found: dict[str, Any] = {"cores": os.cpu_count(), "gpus": gpu_count(), "torch": None}
    try:
        done = subprocess.run(
            [sys.executable, "-c", TORCH], env=environment(), capture_output=True, text=True, timeout=120
        )
        found["torch"] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        why = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1] if "done" in locals() else "it hangs"
        remedy = f"Run `{sys.executable} -m pip install --force-reinstall torch`."
        problems.append({"what": f"torch cannot be used: {why}.", "remedy": remedy})
        return found
    if found["gpus"] and not found["torch"]["cuda"]:
        built = found["torch"]["built_for_cuda"]
        if built:
            what = f"There is a GPU, but torch (for CUDA {built}) cannot use it: its driver is too old for it."
            remedy = "Update the NVIDIA driver, or install the torch build for the driver's CUDA version."
        else:
            what = "There is a GPU, but the installed torch is the build for processors alone."
            remedy = "Install the CUDA build: https://pytorch.org/get-started tells the command for this system."
        problems.append({"what": what, "remedy": remedy})
    return found


def window(problems: list[Problem]) -> dict[str, Any]:
    """No display is no fault of a server: the commands work without one."""
    platform_name = display()
    trouble = obstacle(platform_name or "offscreen")
    if trouble and platform_name:
        what, _, remedy = trouble.partition(": ")
        problems.append({"what": f"{what}.", "remedy": f"{remedy[:1].upper()}{remedy[1:]}"})
    return {"platform": platform_name or None, "libraries": trouble or "all there"}


def folder(workspace: Workspace, problems: list[Problem]) -> dict[str, Any]:
    free = shutil.disk_usage(workspace.folder).free
    if free < LOW_DISK:
        remedy = "Delete old runs, or move the workspace with ATHANOR_WORKSPACE."
        problems.append({"what": f"Only {size(free)} are free on the workspace's disk.", "remedy": remedy})
    if not os.access(workspace.folder, os.W_OK):
        remedy = f"Give yourself the right to write to {workspace.folder}, or name another with --workspace."
        problems.append({"what": f"The workspace {workspace.folder} cannot be written to.", "remedy": remedy})
    return {"folder": str(workspace.folder), "free": free}


def database(path: Path, problems: list[Problem]) -> dict[str, Any]:
    """Looks at the file without changing it."""
    from engine.log import SCHEMA_VERSION

    if not path.exists():
        return {"file": str(path), "state": "not made yet"}
    found: dict[str, Any] = {"file": str(path), "bytes": path.stat().st_size, "state": "sound"}
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        found["version"] = connection.execute("PRAGMA user_version").fetchone()[0]
        wrong = [row[0] for row in connection.execute("PRAGMA quick_check(5)") if row[0] != "ok"]
        found["runs"] = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
    except sqlite3.DatabaseError as error:
        wrong = [str(error)]
    finally:
        connection.close()
    if found.get("version", 0) > SCHEMA_VERSION:
        found["state"] = "newer"
        what = f"{path} is of version {found['version']}; this Athanor reads up to {SCHEMA_VERSION}."
        problems.append({"what": what, "remedy": "Update Athanor, or use another workspace."})
    elif wrong:
        found["state"] = "damaged"
        remedy = (
            f"Close Athanor, copy {path} away, and save what can be read: "
            f"`sqlite3 {path.name} .recover | sqlite3 new.db`; then put new.db in its place."
        )
        problems.append({"what": f"The database {path} is damaged: {wrong[0]}.", "remedy": remedy})
    return found


def engine(workspace: Workspace, problems: list[Problem]) -> dict[str, Any]:
    """The background service; that none lives is normal."""
    from engine.errors import AthanorError
    from engine.service.client import Engine

    if not workspace.database.exists() or any(str(workspace.database) in problem["what"] for problem in problems):
        return {"alive": False}
    client = Engine(workspace)
    try:
        state = client.service()
    except AthanorError:
        return {"alive": False}
    finally:
        client.close()
    if state is None:
        return {"alive": False}
    if state["version"] != version():
        what = f"The background engine is of version {state['version']}, this is {version()}."
        problems.append({"what": what, "remedy": f"End it when its runs are done: `kill {state['pid']}`."})
    return {"alive": True, **state}


def _print(report: dict[str, Any]) -> None:
    versions, devices, torch = report["versions"], report["devices"], report["devices"]["torch"] or {}
    cards = ", ".join(f"{card['name']} ({size(card['memory'])})" for card in torch.get("cards", [])) or "none usable"
    database, engine = report["database"], report["engine"]
    print(f"Athanor {versions['athanor']}, Python {versions['python']}, {versions['system']}")
    print("packages   " + ", ".join(f"{name} {versions[name] or 'missing'}" for name in PACKAGES))
    print(f"processor  {devices['cores']} cores; torch uses {torch.get('threads', '?')} threads")
    print(f"GPUs       {cards}; the driver shows {devices['gpus']}")
    print(f"display    {report['display']['platform'] or 'none: the commands work, the window does not'}")
    print(f"libraries  {report['display']['libraries']}")
    print(f"workspace  {report['workspace']['folder']}, {size(report['workspace']['free'])} free")
    held = f", {size(database['bytes'])}, {database.get('runs', '?')} runs" if "bytes" in database else ""
    print(f"database   {database['state']}{held}")
    print(f"engine     {'process ' + str(engine['pid']) if engine['alive'] else 'not running'}")
    for problem in report["problems"]:
        print(f"\nWrong: {problem['what']}\n  {problem['remedy']}")
    if not report["problems"]:
        print("\nNothing is wrong.")
