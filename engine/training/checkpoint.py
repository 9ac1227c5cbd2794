"""Checkpoint files: written whole or not at all, read without running code."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.errors import CheckpointError

FORMAT = 1
STEP = re.compile(r"step-(\d+)\.pt$")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NotWritten(CheckpointError):
    """A checkpoint could not be written; what was there before is untouched."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a file beside the target, flushes it to the disk, and moves it into place in one step.

    Raises NotWritten where the disk does not take it; the file that was there before is then as it was.
    """
    beside = path.with_suffix(".part")
    try:
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
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        cause = _of_the_disk(error)
        if cause is None:
            raise
        raise NotWritten(_not_written(path, cause)) from error


def _of_the_disk(error: BaseException | None) -> OSError | None:
    """The disk's own complaint, which torch wraps into one about positions in an archive."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _not_written(path: Path, error: OSError) -> str:
    if error.errno in FULL:
        what, advice = "the disk is full", "Free some space"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        what, advice = "its folder may not be written to", "Make the folder writable"
    else:
        what, advice = error.strerror or str(error), "Check the disk"
    return f"The checkpoint {path} could not be written: {what}. {advice}; the checkpoints before it are as they were."


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint. Raises CheckpointError when it is missing, damaged or of another format."""
    try:
        _check_sums(path)
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"There is no checkpoint {path}.") from None
    except torch.OutOfMemoryError:
        raise  # says nothing of the file
    except UNREADABLE as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise CheckpointError(f"The checkpoint {path} is damaged or not one of ours: {reason}.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"The checkpoint {path} has a format that this Athanor does not read.")
    return content


# What a reader of archives and pickles raises on bytes that are none.
UNREADABLE = (
    *(RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError),
    *(zipfile.BadZipFile, OverflowError, MemoryError),
)


def _check_sums(path: Path) -> None:
    """Raises where a byte of the content is not what was written: torch itself reads past the sums that it stores."""
    with zipfile.ZipFile(path) as archive:
        wrong = archive.testzip()
    if wrong is not None:
        raise zipfile.BadZipFile(f"{wrong} is not what was written")


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


def tidy(folder: Path) -> None:
    """Removes what a process that was killed had half written. For the process that trains here, and no other."""
    for path in folder.glob("*.part"):
        if not path.name.startswith("transform-"):  # these are made beside the training
            path.unlink(missing_ok=True)


def newest(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest checkpoint that can be read; a damaged one gives way to the one before it."""
    return _newest(folder, device)[0]


def resume(folder: Path, device: torch.device | str, tell: Callable[[str], object]) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, to train on from. Damaged ones are set aside, and a person is told."""
    found, damaged = _newest(folder, device)
    for path, error in damaged:
        aside = path.with_suffix(".damaged")  # else it would be counted among those that are kept, and a good one go
        path.replace(aside)
        step = found["step"] if found else 0
        tell(f"{error} Training goes on from step {step}, the checkpoint before it. The file is kept as {aside.name}.")
    return found


def _newest(folder: Path, device: torch.device | str) -> tuple[dict[str, Any] | None, list[tuple[Path, str]]]:
    damaged: list[tuple[Path, str]] = []
    for _, path in reversed(step_files(folder)):
        try:
            return load(path, device), damaged
        except CheckpointError as error:
            damaged.append((path, str(error)))
    if damaged:
        some = "The only checkpoint" if len(damaged) == 1 else f"None of the {len(damaged)} checkpoints"
        raise CheckpointError(
            f"{some} in {folder} can{'not' if len(damaged) == 1 else ''} be read. {damaged[0][1]} "
            "Nothing was overwritten: put one back from a backup, or queue the recipe as a new run."
        )
    return None, damaged


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
