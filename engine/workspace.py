"""A workspace: the folder that holds the database, the runs' checkpoints and a person's own parts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from platformdirs import user_cache_path, user_config_path, user_data_path

from engine.errors import AthanorError

RESOURCES = Path(__file__).resolve().parent.parent / "resources"


class Workspace:
    """Paths inside one workspace folder. Creates the folder, readable by its owner alone, when it is not there."""

    def __init__(self, folder: str | Path):
        try:
            self.folder = Path(folder).expanduser().resolve()
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise AthanorError(
                f"The workspace {folder} cannot be used: {getattr(error, 'strerror', None) or error}. "
                "Name a folder that you may write to with --workspace."
            ) from None

    @classmethod
    def default(cls) -> Workspace:
        """The folder in ATHANOR_WORKSPACE, or the one in the user's data directory."""
        chosen = os.environ.get("ATHANOR_WORKSPACE")
        return cls(chosen) if chosen else cls(user_data_path("athanor", appauthor=False))

    @property
    def database(self) -> Path:
        return self.folder / "athanor.db"

    @property
    def replies(self) -> Path:
        """What language models have answered: see `engine.replies`."""
        return self.folder / "replies.db"

    def run_folder(self, run: str) -> Path:
        """The folder of one run's checkpoints, made when first asked for."""
        folder = self.folder / "runs" / run
        folder.parent.mkdir(mode=0o700, exist_ok=True)  # a parent that is made on the way would be open to others
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def origin(self, run: str) -> Path:
        """The checkpoint of another run that this one, a branch, goes on from."""
        return self.run_folder(run) / "origin.checkpoint"


def open_private(path: Path, *, append: bool = False) -> IO[bytes]:
    """Opens a file to write to it; where there is none it is made for its owner alone."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o600), "ab" if append else "wb")


def own_parts() -> Path | None:
    """The folder of a person's own part files: the one that ATHANOR_PARTS names, so that nothing is loaded unasked."""
    chosen = os.environ.get("ATHANOR_PARTS")
    if not chosen:
        return None
    folder = Path(chosen).expanduser().resolve()
    if not folder.is_dir():
        raise AthanorError(f"ATHANOR_PARTS names {folder}, which is not a folder. Make it, or unset ATHANOR_PARTS.")
    return folder


def cache_folder() -> Path:
    """Where what can be made again is kept (the catalog); ATHANOR_CACHE overrides."""
    chosen = os.environ.get("ATHANOR_CACHE")
    folder = Path(chosen).expanduser() if chosen else user_cache_path("athanor", appauthor=False)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def settings_folder() -> Path:
    """Where a person's own settings are kept, which belong to no workspace; ATHANOR_SETTINGS overrides."""
    chosen = os.environ.get("ATHANOR_SETTINGS")
    folder = Path(chosen).expanduser() if chosen else user_config_path("athanor", appauthor=False)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
