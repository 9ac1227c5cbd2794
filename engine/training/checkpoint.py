"""Checkpoint files: written whole or not at all, read without running code."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from engine.errors import CheckpointError

FORMAT = 1
STEP = re.compile(r"step-(\d+)\.pt$")


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a file beside the target, flushes it to the disk, and moves it into place in one step."""
    beside = path.with_suffix(".part")
    with beside.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint. Raises CheckpointError when it is missing, damaged or of another format."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"There is no checkpoint {path}.") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"The checkpoint {path} is damaged or not one of ours: {reason}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"The checkpoint {path} has a format that this Athanor does not read.")
    return content


def step_files(folder: Path) -> list[tuple[int, Path]]:
    """The periodic checkpoints in a run's folder, oldest first."""
    found = ((STEP.search(path.name), path) for path in folder.glob("step-*.pt"))
    return sorted((int(match[1]), path) for match, path in found if match)


def step_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.pt"


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest periodic checkpoints."""
    for _, path in step_files(folder)[:-keep]:
        path.unlink(missing_ok=True)


def newest(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest checkpoint that can be read; a damaged one gives way to the one before it."""
    files = step_files(folder)
    last_error = None
    for _, path in reversed(files):
        try:
            return load(path, device)
        except CheckpointError as error:
            last_error = error
    if last_error is not None:
        raise last_error
    return None


def listing(folder: Path, best: tuple[float, int] | None = None) -> list[dict[str, Any]]:
    """What the log says of a run's checkpoints; `whole` are those that a run can go on from."""
    rows: list[dict[str, Any]] = []
    last = max((step for step, _ in step_files(folder)), default=0)
    for path in sorted(folder.glob("*.pt")):
        match = STEP.search(path.name)
        step = int(match[1]) if match else best[1] if best and path.stem == "best" else last
        stat = path.stat()
        row = {
            "name": path.stem,
            "step": step,
            "time": stat.st_mtime,
            "bytes": stat.st_size,
            "whole": match is not None,
        }
        rows.append(row)
    return rows


def fingerprint(state: dict[str, Any]) -> str:
    """The SHA-256 of a state dict: names, shapes, types and bytes."""
    mixed = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        if not isinstance(tensor, torch.Tensor):
            mixed.update(f"{name}={tensor!r};".encode())
            continue
        flat = tensor.detach().cpu().contiguous()
        mixed.update(f"{name}:{tuple(flat.shape)}:{flat.dtype};".encode())
        mixed.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return mixed.hexdigest()
