"""The engine as the window and the terminal see it: everything goes through the workspace's database."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.endpoints import Contact, Permissions
from engine.errors import ServiceError
from engine.log import Log
from engine.log.log import new_id
from engine.service.processes import lives, python, spawn
from engine.service.verbs import find
from engine.workspace import Workspace, open_private

logger = logging.getLogger(__name__)

START_PATIENCE = 10.0
"""Seconds that a service may take to show itself before another one is started in its place."""

LOG_LIMIT = 5_000_000

KEPT_BESIDE = ("phases/*.pt", "sources/*.checkpoint", "sources/*.json")
"""What a branch needs beside the checkpoint: moments of earlier phases, and what was resolved of other runs."""

LOOKS = 3
"""How often a checkpoint that is replaced meanwhile is looked for again."""


class Engine:
    """Asks the background service of one workspace. Every method returns at once and any thread may call it.

    What is asked lands in the database; `answer` gives the service's word on it once there is one.
    """

    def __init__(self, workspace: Workspace, *, service_command: Sequence[str] | None = None):
        self.workspace = workspace
        self.service_command = list(service_command or python("engine.service"))
        self._client = uuid.uuid4().hex[:12]
        self._local = threading.local()
        self._lock = threading.Lock()
        self._started: subprocess.Popen[bytes] | None = None
        self._patience_ends = 0.0
        self._greeted: int | None = None

    @property
    def log(self) -> Log:
        """This thread's connection."""
        log: Log | None = getattr(self._local, "log", None)
        if log is None:
            log = self._local.log = Log(self.workspace.database)
        return log

    def close(self) -> None:
        """Closes this thread's connection; the service goes on."""
        log: Log | None = getattr(self._local, "log", None)
        if log is not None:
            log.close()
            self._local.log = None

    # ---------------------------------------------------------------- the service

    def service(self) -> dict[str, Any] | None:
        """What the living service says of itself (pid, started, heartbeat, version, spare, slots), or None."""
        state: dict[str, Any] | None = self.log.meta("service")
        if not state or not lives(state.get("pid"), state.get("heartbeat")):
            return None
        self._patience_ends = 0.0  # it came up: when it is gone, it is gone
        return state

    def alive(self) -> bool:
        return self.service() is not None

    def ensure(self) -> None:
        """Starts the service, detached, when none lives; returns at once. Tells it that this client is here."""
        with self._lock:
            state = self.service()
            if state is not None:
                if self._greeted != state["pid"]:
                    self._greeted = state["pid"]
                    self.log.command("hello", pid=os.getpid())
                return
            starting = self._started is not None and self._started.poll() is None
            if not starting or time.monotonic() > self._patience_ends:
                self._start()

    def _start(self) -> None:
        output = self.workspace.folder / "engine.log"
        try:
            if output.exists() and output.stat().st_size > LOG_LIMIT:
                output.replace(output.with_suffix(".old.log"))
            with open_private(output, append=True) as file:
                command = [*self.service_command, "--workspace", str(self.workspace.folder)]
                self._started = spawn([*command, "--client", str(os.getpid())], file)
        except OSError as error:
            reason = error.strerror or error
            raise ServiceError(f"The background engine could not be started: {reason}. See {output}.") from None
        self._patience_ends = time.monotonic() + START_PATIENCE

    def shutdown(self, *, now: bool = False) -> int:
        """Asks the service to end after the last run; `now`: at once, and workers train on without it."""
        return self.log.command("shutdown", now=now)

    # ---------------------------------------------------------------- runs

    def queue(
        self,
        recipe_text: str,
        *,
        seed: int | None = None,
        priority: int = 0,
        device: str | None = None,
        name: str | None = None,
        allow: Sequence[Contact] = (),
    ) -> str:
        """Puts a recipe into the queue and returns the run's id. Raises RecipeError when the text is no TOML.

        `allow` are the machines that this run, and those that it plans, may talk to, beside what is allowed for good.
        """
        run = new_id()
        for contact in allow:  # before a worker can see the run
            Permissions().allow(contact.origin, contact.secret, run)
        create_run(self.log, recipe_text, id=run, seed=seed, priority=priority, device=device, name=name)
        self.ensure()
        return run

    def branch(self, run: str, changes: Mapping[str, Any], step: int | str = "last") -> str:
        """A new run that goes on from a checkpoint of this one (`last`, or a step) with other settings."""
        parent = find(self.log, run)
        child = new_id()
        at = self._take_checkpoint(parent, step, child)
        create_run(self.log, parent["recipe"], id=child, changes=changes, parent=parent["id"], parent_step=at)
        self.ensure()
        return child

    def _take_checkpoint(self, parent: Mapping[str, Any], step: int | str, child: str) -> int:
        """Puts the checkpoint where the branch finds it, also when its parent has trained on, or was deleted."""
        for _ in range(LOOKS):
            entry = checkpoint_entry(parent, step)
            file = self.workspace.run_folder(parent["id"]) / f"{entry['name']}.pt"
            try:
                keep(file, self.workspace.origin(child))
                for kept in KEPT_BESIDE:
                    for other in file.parent.glob(kept):
                        place = self.workspace.run_folder(child) / other.relative_to(file.parent)
                        place.parent.mkdir(mode=0o700, exist_ok=True)
                        keep(other, place)
                return int(entry["step"])
            except FileNotFoundError:  # the parent trains, and has just replaced it by a newer one
                parent = find(self.log, parent["id"])
        raise ServiceError(f"The checkpoint {file} is not there any more. Branch from another one.")

    def pause(self, run: str) -> int:
        return self._ask("pause", run)

    def resume(self, run: str) -> int:
        return self._ask("resume", run)

    def stop(self, run: str, *, force: bool = False) -> int:
        """Stop with a checkpoint; `force` ends the process at once."""
        return self._ask("stop", run, force=force)

    def checkpoint(self, run: str) -> int:
        return self._ask("checkpoint", run)

    def prioritize(self, run: str, priority: int | None = None, position: float | None = None) -> int:
        """Runs of a higher priority start first; among equals, those of a lower position."""
        return self._ask("prioritize", run, priority=priority, position=position)

    def delete(self, run: str) -> int:
        """Takes an ended run away, with all that was logged of it."""
        # A run's commands go with it: this one must stay, to be answered, and so belongs to none.
        return self._ask("delete", None, target=run)

    def configure(self, *, slots: int) -> int:
        """How many runs may train on the processor at the same time."""
        return self._ask("configure", None, slots=slots)

    # ---------------------------------------------------------------- questions

    def preview(self, recipe_text: str) -> int:
        """Asks for model, schedule, data and problems of a recipe; a newer question replaces one not yet begun."""
        return self._ask("preview", None, recipe=recipe_text, client=self._client)

    def fits(self, recipe_text: str, section: str) -> int:
        """Asks which parts a section of a recipe cannot take, and why; a newer question replaces an older one."""
        return self._ask("fits", None, recipe=recipe_text, section=section, client=self._client)

    def probe(self, run: str, probe: Mapping[str, Any]) -> int:
        """Asks for a probe of a saved run; its figures appear in the log."""
        return self._ask("probe", run, probe=dict(probe))

    def evaluate(self, run: str, split: str = "test", changes: Mapping[str, Any] | None = None) -> int:
        """Asks for the metrics of a saved run, with other settings of its decoder, normalization or data."""
        return self._ask("evaluate", run, split=split, changes=dict(changes or {}))

    def transform(self, run: str, transform: Mapping[str, Any]) -> int:
        """Asks for a transform of a saved run's model; what it makes is kept in the run's folder."""
        return self._ask("transform", run, transform=dict(transform))

    def answer(self, command: int) -> dict[str, Any] | None:
        """The answer to a command; None while there is none. A failed one has the key `error` with a sentence."""
        state = self.log.command_state(command)
        if state["state"] in ("new", "taken"):
            return None
        answer: dict[str, Any] = state["answer"] or {}
        return answer

    def _ask(self, verb: str, run: str | None, **details: Any) -> int:
        number = self.log.command(verb, run=run, **details)
        self.ensure()
        return number


def create_run(
    log: Log,
    recipe_text: str,
    *,
    seed: int | None = None,
    priority: int = 0,
    device: str | None = None,
    name: str | None = None,
    id: str | None = None,
    changes: Mapping[str, Any] | None = None,
    state: str = "queued",
    parent: str | None = None,
    parent_step: int | None = None,
) -> str:
    """Writes a run with this recipe, and the settings given here in it, into the database."""
    from engine.recipe import Recipe

    recipe = Recipe.parse(recipe_text)
    for path, value in (changes or {}).items():
        recipe.set(path, value)
    for path, value in (("seed", seed), ("training.device", device), ("name", name)):
        if value is not None:
            recipe.set(path, value)
    document = recipe.document
    # A run is kept with whatever its recipe says: what is wrong with that, its worker says in full.
    training, number = document.get("training"), document.get("seed")
    chosen = training.get("device") if isinstance(training, Mapping) else None
    return log.create_run(
        recipe.text(),
        id=id,
        name=recipe.name,
        kind="sweep" if recipe.plan else "run",
        seed=number if type(number) is int and 0 <= number < 2**63 else 0,
        state=state,
        priority=priority,
        device=chosen if chosen and isinstance(chosen, str) else "auto",
        parent=parent,
        parent_step=parent_step,
        digest=recipe.digest(),
    )


def checkpoint_entry(run: Mapping[str, Any], step: int | str) -> Mapping[str, Any]:
    """What the log says of a checkpoint that training can go on from, by name or number."""
    checkpoints = [entry for entry in run["checkpoints"] or [] if entry.get("whole", True)]
    if not checkpoints:
        raise ServiceError(f"Run {run['id']} has no checkpoint yet to branch from. Wait for one, or pause the run.")
    newest: Mapping[str, Any] = max(checkpoints, key=lambda entry: entry["step"])
    for entry in [newest] if step == "last" else checkpoints:
        if step in ("last", entry["step"], entry["name"]):
            return entry
    known = ", ".join(str(number) for number in sorted({entry["step"] for entry in checkpoints}))
    raise ServiceError(f"Run {run['id']} has no checkpoint {step!r} to go on from. It has those of steps {known}.")


def keep(file: Path, place: Path) -> None:
    """A second name for a file that is never written to; a copy where the file system has no such names."""
    try:
        place.hardlink_to(file)
    except FileNotFoundError:
        raise
    except OSError:
        with file.open("rb") as source, open_private(place) as copy:
            shutil.copyfileobj(source, copy)
