"""What a run's state looks like everywhere: its icon, its colour and its word; and which colour a run keeps."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from PySide6.QtCore import QSettings


@dataclass(frozen=True)
class State:
    """One state of a run: its id in the log, the word that is shown, an icon's name and a token's name."""

    id: str
    word: str
    icon: str
    token: str


STATES: dict[str, State] = {
    state.id: state
    for state in (
        State("queued", "Queued", "state-queued", "muted"),
        State("starting", "Starting", "state-starting", "info"),
        State("training", "Training", "state-training", "accent"),
        State("paused", "Paused", "state-paused", "warning"),
        State("stopping", "Stopping", "state-stopping", "warning"),
        State("done", "Done", "state-done", "good"),
        State("stopped", "Stopped", "state-stopped", "muted"),
        State("diverged", "Diverged", "state-diverged", "bad"),
        State("failed", "Failed", "state-failed", "bad"),
        State("interrupted", "Interrupted", "state-interrupted", "warning"),
    )
}
ACTIVE = ("starting", "training", "paused", "stopping")
TERMINAL = ("done", "stopped", "diverged", "failed", "interrupted")
RESUMABLE = ("paused", "stopped", "interrupted", "failed", "diverged")


def state(name: str) -> State:
    """The state called so; one that this version does not know is shown by its own name."""
    return STATES.get(name) or State(name, name.capitalize(), "state-queued", "muted")


SERIES = 8  # colours before they repeat


class RunColours:
    """Hands every run one number of the series colours, in the order of their making, and remembers it."""

    def __init__(self, settings: QSettings | None = None):
        self._settings = settings
        text = str(settings.value("run_colours", "{}")) if settings is not None else "{}"
        try:
            self._numbers: dict[str, int] = {str(run): int(number) for run, number in json.loads(text).items()}
        except (ValueError, AttributeError, TypeError):
            self._numbers = {}

    def assign(self, runs: Iterable[str]) -> None:
        """Gives numbers to runs that have none; ids sort by the time of their making."""
        new = sorted(run for run in set(runs) if run not in self._numbers)
        if not new:
            return
        number = max(self._numbers.values(), default=-1) + 1
        for offset, run in enumerate(new):
            self._numbers[run] = number + offset
        if self._settings is not None:
            self._settings.setValue("run_colours", json.dumps(self._numbers))

    def index(self, run: str) -> int:
        """The run's number in the series colours."""
        if run not in self._numbers:
            self.assign([run])
        return self._numbers[run]

    def together(self, runs: Iterable[str]) -> list[int]:
        """Numbers for runs that are shown together: the same colours, dashed only where two would look alike."""
        seen: dict[int, int] = {}
        numbers = []
        for run in runs:
            colour = self.index(run) % SERIES
            numbers.append(colour + SERIES * seen.get(colour, 0))
            seen[colour] = seen.get(colour, 0) + 1
        return numbers
