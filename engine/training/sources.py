"""What a recipe's sources name: found in the workspace, or trained first, and handed to parts as objects.

A source is resolved against its surroundings (the workspace, the run that asks, its device and seed), which `around`
sets for a stretch of work. What a run has once resolved is pinned in its folder: whatever happens to the other run or
to the recipe's file, it goes on with the same weights.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock, Timeout
from torch import nn

from engine import catalog
from engine.around import Around
from engine.errors import AthanorError, Problem, RecipeError
from engine.log import Log
from engine.parts import Source
from engine.recipe import Recipe
from engine.service.client import keep
from engine.sources import Named, named_in, parse, recipe_file
from engine.training import checkpoint
from engine.training.random import forked
from engine.training.recorder import Memory, Sink
from engine.workspace import Workspace, cache_folder, own_parts

LOCK_POLL = 0.2
CPU = torch.device("cpu")


class SourceStopped(Exception):
    """A person stopped the run while a source of it was being trained."""


class Points(Protocol):
    """The moments of earlier phases that a run keeps."""

    def look(self, named: Named) -> None: ...
    def document(self, phase: str) -> dict[str, Any]: ...
    def state(self, phase: str, moment: str | int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Surroundings:
    """What a source is resolved against."""

    workspace: Workspace | None = None
    folder: Path | None = None  # of the run that asks, where sources are pinned
    device: torch.device = CPU
    seed: int = 0
    sink: Sink | None = None
    points: Points | None = None
    within: tuple[Path, ...] = ()  # the recipes that are being trained as sources around this one
    told: list[dict[str, Any]] = field(default_factory=list)  # what was resolved, for the run's own record


_held = Around("sources", Surroundings)
surroundings, around = _held.now, _held.changed


def source(text: str) -> Source:
    """The source that a text names, resolved when it is first used. Raises ValueError for no source."""
    return Trained(parse(text), surroundings())


def several(text: str) -> list[Source]:
    """One source, or, for a tag, every run that has it, the oldest first."""
    named = parse(text)
    if named.kind != "tag":
        return [source(text)]
    runs = [row for row in _log_rows(named, surroundings()) if named.name in (row["tags"] or [])]
    if not runs:
        raise AthanorError(f'No run has the tag "{named.name}". Tag those that are meant, in the list of runs.')
    return [source(f"run:{row['id']}") for row in reversed(runs)]


def problems(document: Mapping[str, Any]) -> list[Problem]:
    """What the sources of a recipe name that is not there. Trains nothing."""
    found = []
    for path, text in named_in(document):
        try:
            for each in several(text):
                each.recipe  # noqa: B018 - looks it up
                assert isinstance(each, Trained)
                each.look()
        except (AthanorError, ValueError) as error:
            found.append(Problem(path, text, str(error)))
    return found


# -- one source --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A source on the disk: its recipe's text, what was measured, and its checkpoint (None: as it began)."""

    recipe: str
    metrics: dict[str, float]
    file: Path | None


class Trained:
    """A source; see `engine.parts.Source`."""

    def __init__(self, named: Named, around: Surroundings):
        self.named = named
        self._around = around
        self._metrics: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Trained({self.label})"

    @property
    def label(self) -> str:
        return str(self.named)

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        if self.named.kind == "phase":
            return _points(self.named, self._around).document(self.named.name)
        pinned = _pinned(self.named, self._around)
        if pinned is not None:
            return self._filled(pinned.recipe)
        if self.named.kind == "recipe":
            return self._filled(_read(self.named, self._around).text())
        return self._filled(_row(self.named, self._around)["recipe"])

    @property
    def metrics(self) -> Mapping[str, float]:
        return self._found.metrics if self.named.kind != "phase" else {}

    def look(self) -> None:
        """Raises AthanorError where it is not there; trains nothing."""
        if self.named.kind == "phase":
            _points(self.named, self._around).look(self.named)
            return
        if _pinned(self.named, self._around) is not None:
            return
        if self.named.kind == "run":
            _run_checkpoint(self.named, self._around)
        if self.named.kind == "recipe":
            file = recipe_file(self.named.name, self._around.workspace).resolve()
            with around(points=None, folder=None, within=(*self._around.within, file)):
                found = problems(self.recipe)
            if found:
                raise AthanorError(f"The recipe {file} has a source that cannot be used. {found[0].message}")

    def model(self) -> nn.Module:
        from engine.training.assemble import rebuilt

        state = None if self.named.moment == "init" else self.state()
        with forked(self._around.device), around(sink=None, folder=None):
            model = rebuilt(self.recipe, state, self._around.device)
        return model.eval().requires_grad_(False)

    def state(self) -> Mapping[str, Any]:
        if self.named.kind == "phase":
            return _points(self.named, self._around).state(self.named.name, self.named.moment)
        if self._found.file is None:
            raise AthanorError(f"{self.label} is a model before its first step: it has no checkpoint.")
        return checkpoint.load(self._found.file, self._around.device)

    @cached_property
    def _found(self) -> Found:
        here = self._around
        found = _pinned(self.named, here)
        if found is None:
            found = _trained(self.named, here) if self.named.kind == "recipe" else _of_run(self.named, here)
            found = _pin(self.named, here, found)
            here.told.append({"source": self.label, "metrics": found.metrics})
        return found

    def _filled(self, text: str) -> dict[str, Any]:
        from engine.training.assemble import filled

        with around(**{name: getattr(self._around, name) for name in ("workspace", "device", "seed", "within")}):
            return filled(Recipe.parse(text))


def _points(named: Named, here: Surroundings) -> Points:
    if here.points is None:
        raise AthanorError(f"{named} names a phase, but this recipe has none before it.")
    return here.points


def _checkpoint(named: Named, folder: Path, owner: str) -> Path | None:
    """The file of a moment; None for the first one, which is built anew."""
    if named.moment == "init":
        return None
    steps = dict(checkpoint.step_files(folder))
    moment = max(steps, default=-1) if named.moment == "last" else named.moment
    file = folder / "best.pt" if moment == "best" else steps.get(int(moment))
    if file is None or not file.exists():
        there = [f"@{step}" for step in sorted(steps)] + (["@best"] if (folder / "best.pt").exists() else [])
        raise AthanorError(f"{named} is not kept: of {owner} there is {', '.join(there) or 'no checkpoint yet'}.")
    return file


# -- runs --------------------------------------------------------------------------------------------------------------


def _log_rows(named: Named, here: Surroundings) -> list[dict[str, Any]]:
    if here.workspace is None:
        raise AthanorError(f"{named} stands for runs of a workspace, and there is none here.")
    with Log(here.workspace.database) as log:
        return log.runs(archived=None)


def _row(named: Named, here: Surroundings) -> dict[str, Any]:
    rows = _log_rows(named, here)
    matches = [row for row in rows if row["id"] == named.name] or [r for r in rows if r["id"].startswith(named.name)]
    if len(matches) != 1:
        many = f"is the start of {len(matches)} runs" if matches else "is no run of this workspace"
        raise AthanorError(f'{named} cannot be used: "{named.name}" {many}. `python main.py runs` lists them.')
    return matches[0]


def _run_checkpoint(named: Named, here: Surroundings) -> Path | None:
    row = _row(named, here)
    assert here.workspace is not None
    folder = here.workspace.run_folder(row["id"])
    return _checkpoint(named, folder, f"run {row['id']}")


def _of_run(named: Named, here: Surroundings) -> Found:
    row = _row(named, here)
    return Found(row["recipe"], dict(row["metrics"] or {}), _run_checkpoint(named, here))


# -- recipes, trained first --------------------------------------------------------------------------------------------


def _read(named: Named, here: Surroundings) -> Recipe:
    """The recipe of a file, with the seed that it is trained with."""
    file = recipe_file(named.name, here.workspace)
    if file.resolve() in here.within:
        raise AthanorError(f"{named} is trained from itself: the recipe {file} names a source that needs {file}.")
    recipe = Recipe.load(file)
    recipe.remove("search")
    if named.follow:
        recipe.set("seed", here.seed)
    return recipe


def _trained(named: Named, here: Surroundings) -> Found:
    """Trains a recipe once for everyone: what it gave is kept under the digest of recipe, seed and code."""
    recipe = _read(named, here)
    folder = _store(recipe, here)
    with _locked(folder, here):
        if not (folder / "outcome.json").exists():
            _train(named, recipe, folder, here)
    outcome = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    return Found(recipe.text(), outcome["metrics"], _checkpoint(named, folder, "that recipe"))


def _store(recipe: Recipe, here: Surroundings) -> Path:
    parts = (recipe.digest(), str(recipe.seed), catalog.digest(own_parts()), torch.__version__, here.device.type)
    digest = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:24]
    base = here.workspace.folder if here.workspace is not None else cache_folder()
    folder = base / "sources" / digest
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@contextmanager
def _locked(folder: Path, here: Surroundings) -> Iterator[None]:
    """One process trains a source; the others wait, and still hear a stop."""
    lock = FileLock(folder / "lock", mode=0o600)
    while True:
        try:
            lock.acquire(timeout=LOCK_POLL)
            break
        except Timeout:
            if here.sink is not None and here.sink.requested == "stop":
                raise SourceStopped from None
    try:
        yield
    finally:
        lock.release()


def _train(named: Named, recipe: Recipe, folder: Path, here: Surroundings) -> None:
    from engine.training.assemble import filled
    from engine.training.loop import Trainer, train

    file = recipe_file(named.name, here.workspace).resolve()
    sink = Inner(here.sink)

    def go_on(trainer: Trainer) -> None:
        state = checkpoint.resume(folder, trainer.run.device, lambda text: _tell(here, text))
        if state is not None:
            trainer.load(state)

    began = time.perf_counter()
    with around(workspace=here.workspace, sink=sink, points=None, within=(*here.within, file)):
        try:
            document = filled(recipe)
        except RecipeError as error:
            raise AthanorError(f"The recipe {file} of the source {named} is not in order. {error}") from error
        document["training"] = {**document["training"], "device": str(here.device)}
        _tell(here, f"Training the source {named} first; it is kept for the next time.")
        with torch.enable_grad():  # who asks may stand in a stretch without
            outcome = train(document, sink, folder, go_on, here.workspace)
    if outcome.state == "stopped":
        raise SourceStopped
    if outcome.state != "done":
        raise AthanorError(f"The source {named} could not be trained: it {outcome.state}. {outcome.message}")
    seconds = time.perf_counter() - began
    row = {"recipe": str(file), "metrics": outcome.metrics, "steps": outcome.steps, "seconds": round(seconds, 3)}
    _write(folder / "outcome.json", row)
    _tell(here, f"The source {named} is trained: {outcome.steps} steps in {seconds:.1f} s, not counted in this run.")


def _tell(here: Surroundings, text: str) -> None:
    if here.sink is not None:
        here.sink.event(text, kind="source")
        here.sink.flush(wait=False)


class Inner(Memory):
    """The log of a source that is trained inside a run: kept in memory; a stop of the run stops it too."""

    def __init__(self, outer: Sink | None):
        self._outer = outer
        super().__init__()

    @property
    def requested(self) -> str:
        return "stop" if self._outer is not None and self._outer.requested == "stop" else ""

    @requested.setter
    def requested(self, value: str) -> None:
        """Nothing is asked of a source itself."""

    def answered(self, verb: str) -> None:
        """The run around it answers, once it has ended."""


# -- pins --------------------------------------------------------------------------------------------------------------


def _pin_names(named: Named, here: Surroundings) -> tuple[Path, Path] | None:
    if here.folder is None or named.kind == "phase":
        return None
    key = hashlib.sha256(str(named).encode()).hexdigest()[:16]
    return here.folder / "sources" / f"{key}.json", here.folder / "sources" / f"{key}.checkpoint"


def _pinned(named: Named, here: Surroundings) -> Found | None:
    """What the run that asks has resolved before."""
    names = _pin_names(named, here)
    if names is None or not names[0].exists():
        return None
    said = json.loads(names[0].read_text(encoding="utf-8"))
    return Found(said["recipe"], said["metrics"], names[1] if said["checkpoint"] else None)


def _pin(named: Named, here: Surroundings, found: Found) -> Found:
    """A second name for the checkpoint in the folder of the run that asks; the words are written last."""
    names = _pin_names(named, here)
    if names is None:
        return found
    words, place = names
    words.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    if found.file is not None:
        try:
            keep(found.file, place)
        except FileNotFoundError:
            raise AthanorError(f"{named} was removed just now: its run trains on. Start again.") from None
    row = {"source": str(named), "recipe": found.recipe, "metrics": found.metrics}
    _write(words, {**row, "checkpoint": found.file is not None})
    return replace(found, file=place if found.file is not None else None)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content, default=float), encoding="utf-8")
    beside.replace(path)
