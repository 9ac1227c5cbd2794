"""Drives a recipe with phases: what the next one takes over from the one before, and the moments that are kept.

Each phase is a run of its own in memory, assembled from the phase's recipe; the weights, the random streams, the state
of techniques that go on, and, where asked for, the optimizer's state pass from one to the next. Steps, the log and the
checkpoints go on as those of one run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from engine.errors import AthanorError, CheckpointError, Problem
from engine.parts import Task, info
from engine.phases import Stage, needed, stages, told
from engine.sources import Named, parse
from engine.training import checkpoint, sources
from engine.training.random import set_global_state
from engine.training.state import restore

if TYPE_CHECKING:
    from engine.training.run import Run
    from engine.training.surgery import Entry

FOLDER = "phases"


class Course:
    """The phases of a run in their order, and the moments of earlier ones that later ones name."""

    def __init__(self, document: Mapping[str, Any], task: Task, folder: Path | None = None):
        self.stages = stages(document)
        self.share: float = document["budget"]["share"]
        self.folder: Path | None = None
        self.store(folder)
        self.current = 0
        self._states: dict[str, dict[str, Any]] = {}
        self._tasks = {_key(self.stages[0].document["task"]): task}

    def store(self, folder: Path | None) -> None:
        """Where moments are kept: in a run's folder, or in memory."""
        self.folder = folder / FOLDER if folder is not None else None

    # -- how long ------------------------------------------------------------------------------------------------------

    def task(self, stage: Stage) -> Task:
        """The task of a phase, built once."""
        from engine.training.assemble import build_task

        key = _key(stage.document["task"])
        if key not in self._tasks:
            self._tasks[key] = build_task(stage.document)
        return self._tasks[key]

    def length(self, stage: Stage) -> int | None:
        """The steps of a phase, None where only the clock or an early stop ends it."""
        from engine.training.assemble import batches_per_epoch, steps_of

        return steps_of(stage.document, batches_per_epoch(stage.document, self.task(stage)))

    def place(self, run: Run, begin: int, epochs: float) -> None:
        """Tells a run where its phase lies among all steps."""
        run.begin, run.epochs_before = begin, epochs
        lengths = [self.length(stage) for stage in self.stages[run.stage.index :]]
        run.end = None if lengths[0] is None else begin + lengths[0]
        known = [length for length in lengths if length is not None]
        run.steps = begin + sum(known) if len(known) == len(lengths) else None

    def epochs(self, run: Run) -> float | None:
        """Passes over the training split in all, None where the number of steps is not known."""
        if run.steps is None:
            return None
        from engine.training.assemble import batches_per_epoch

        total = run.epochs_before
        for stage in self.stages[run.stage.index :]:
            total += (self.length(stage) or 0) / batches_per_epoch(stage.document, self.task(stage))
        return total

    # -- moments: `engine.training.sources.Points` -----------------------------------------------------------------

    def document(self, phase: str) -> dict[str, Any]:
        """The recipe of a phase that came before."""
        found = [s for s in self.stages[: self.current] if s.name == phase]
        if not found:
            there = ", ".join(dict.fromkeys(f'"{s.name}"' for s in self.stages[: self.current])) or "none"
            raise AthanorError(f'there is no phase "{phase}" before this one. There are: {there}.')
        return dict(found[-1].document)

    def look(self, named: Named) -> None:
        """Raises AthanorError where a moment will not have come."""
        self.document(named.name)
        length = self.length(next(s for s in self.stages if s.name == named.name))
        if isinstance(named.moment, int) and length is not None and named.moment > length:
            raise AthanorError(f"the phase {named.name} has {length} steps: there is no step {named.moment} in it.")

    def state(self, phase: str, moment: str | int) -> dict[str, Any]:
        key = f"{phase}@{moment}"
        if self.folder is None:
            if key not in self._states:
                raise CheckpointError(f"The moment {key} was not kept: that phase ended before it.")
            return self._states[key]
        return checkpoint.load(self.folder / f"{key}.pt")

    def due(self, run: Run) -> dict[int, int]:
        """The steps of this phase, counted over the run, whose state is to be kept: step -> step in the phase."""
        later = (named for stage in self.stages[run.stage.index :] for named in needed(stage))
        steps = {n.moment for n in later if n.name == run.stage.name and n.moment != "last"}
        return {run.begin + int(step): int(step) for step in steps}

    def wants_last(self, stage: Stage) -> bool:
        later = (named for each in self.stages[stage.index + 1 :] for named in needed(each))
        return any(named.name == stage.name and named.moment == "last" for named in later)

    def keep(self, stage: Stage, moment: str | int, state: Mapping[str, Any]) -> None:
        """Keeps a moment of a phase, in the place of the same one of its time before."""
        key = f"{stage.name}@{moment}"
        if self.folder is None:
            self._states[key] = _copied(state)
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        checkpoint.save(self.folder / f"{key}.pt", dict(state))

    def drop(self) -> None:
        """Lets go of what neither this phase nor a later one names."""
        wanted = {f"{n.name}@{n.moment}" for stage in self.stages[self.current :] for n in needed(stage)}
        for key in [key for key in self._states if key not in wanted]:
            del self._states[key]
        for path in self.folder.glob("*.pt") if self.folder is not None and self.folder.exists() else ():
            if path.stem not in wanted:
                path.unlink(missing_ok=True)


def _key(use: Mapping[str, Any]) -> str:
    return json.dumps(use, sort_keys=True, default=str)


def _copied(value: Any) -> Any:
    """A state whose tensors nothing writes to any more."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(each) for each in value)
    return value


def document_at(document: Mapping[str, Any], state: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The recipe of the phase that a checkpoint is from; the first one where there is no checkpoint."""
    index = state.get("phase", {"index": 0})["index"] if state is not None and document.get("phases") else 0
    return stages(document)[index].document


# -- from one to the next ----------------------------------------------------------------------------------------------


def at(run: Run, index: int, structure: Sequence[Entry] = ()) -> Run:
    """The run of another phase, as it is assembled; a checkpoint with this structure log is loaded into it next."""
    from engine.training.assemble import assemble_stage

    if index >= len(run.course.stages):
        raise CheckpointError(f"The checkpoint is from phase {index + 1}, and the recipe has {len(run.course.stages)}.")
    run.course.current = index
    return assemble_stage(run.course, index, run.recorder, run.device, structure=structure)


def follow(run: Run, state: Mapping[str, Any]) -> Run:
    """The next phase's run, with what it takes over; `state` is the whole state of the one that ends."""
    from engine.training.assemble import assemble_stage

    course = run.course
    stage = course.stages[run.stage.index + 1]
    course.current = stage.index
    with sources.around(points=course, device=run.device, seed=run.seed):
        model, earlier = run.model, state
        if stage.rewind:
            moment = sources.source(stage.rewind)
            model, earlier = moment.model(), moment.state()
        structure = earlier.get("structure", [])
        new = assemble_stage(course, stage.index, run.recorder, run.device, model, structure)
    new.step, new.seconds, new.counts = run.step, run.seconds, run.counts
    course.place(new, run.step, run.epoch)
    _hand_on(run, new, state)
    if stage.inherit == "all":
        _hand_on_optimizers(run, new, earlier)
    new.note(_sentence(new), kind="phase")
    return new


def _hand_on(old: Run, new: Run, state: Mapping[str, Any]) -> None:
    """Random streams, and the state of the techniques, procedure and loss that go on."""
    from engine.training.assemble import stream

    new.streams.load(state["streams"])
    if new.stream is not None and _draws_alike(old, new):
        new.stream.load(state["stream"])
    else:  # a new epoch, its order from where the generator stands
        new.stream = stream(new.recipe, new.task, new.columns_of("train"), new.rng("data order"))
    for key, saved in state["further"].items():
        split, _, name = key.partition("/")
        new.stream_of(split, name, saved["size"]).load(saved)
    for path, tensor in state["live"].items():
        if path in new.live:
            new.live[path].tensor = tensor.to(new.device)
    set_global_state(state["torch"], new.device)
    saved_by_id = dict(zip(_ids(old.techniques), state["techniques"], strict=True))
    for id, technique in zip(_ids(new.techniques), new.techniques, strict=True):
        if id in saved_by_id:
            restore(technique, saved_by_id[id], new.device)
    if info(old.procedure).id == info(new.procedure).id:
        restore(new.procedure, state["procedure"], new.device)
    if old.loss is not None and new.loss is not None and info(old.loss).id == info(new.loss).id:
        restore(new.loss, state["loss"], new.device)


def _draws_alike(old: Run, new: Run) -> bool:
    """Whether a sampler goes on: what it has learned of the samples stays."""
    kept = [(run.recipe["sampler"], run.recipe["task"], run.recipe["training"]["batch_size"]) for run in (old, new)]
    return kept[0] == kept[1] and bool(new.recipe["sampler"] or new.task.stream != "rows")


def _ids(techniques: list[Any]) -> list[tuple[str, int]]:
    """Each technique's id, and the how many-th of it it is."""
    ids = [info(technique).id for technique in techniques]
    return [(id, ids[:i].count(id)) for i, id in enumerate(ids)]


def leaving(run: Run) -> list[Any]:
    """The techniques, and the procedure, that do not go on in the next phase."""
    following = run.course.stages[run.stage.index + 1].document
    kept = [use["use"] for use in following["techniques"] if use.get("enabled", True)]
    numbered = [(id, kept[:i].count(id)) for i, id in enumerate(kept)]
    ended = [t for id, t in zip(_ids(run.techniques), run.techniques, strict=True) if id not in numbered]
    return ended if following["procedure"]["use"] == info(run.procedure).id else [run.procedure, *ended]


def _hand_on_optimizers(old: Run, new: Run, state: Mapping[str, Any]) -> None:
    for name, role in new.roles.items():
        before, saved = old.roles.get(name), state["roles"].get(name)
        if role.optimizer is None or saved is None or saved["optimizer"] is None:
            continue
        if before is None or before.names != role.names:
            raise AthanorError(
                f'The phase "{new.stage.name}" cannot go on with the optimizer\'s state (inherit = "all"): it has '
                'other weights than the one before. Write inherit = "weights".'
            )
        role.load_optimizer(_copied(saved), keep_options=True)  # what is kept is taken again in a repetition


def _sentence(run: Run) -> str:
    words = f"Phase {run.stage.label} begins"
    if run.end is not None:
        words += f": {run.end - run.begin} steps"
    return words + (f", from the weights of {run.stage.rewind}." if run.stage.rewind else ".")


# -- what clashes ------------------------------------------------------------------------------------------------------


def clashes(document: Mapping[str, Any], task: Task) -> list[Problem]:
    """What clashes in any phase, told where the recipe says it."""
    from engine.training.assemble import anatomy_of, sketch
    from engine.training.assemble import clashes as inside

    course = Course(document, task)
    found: list[Problem] = []
    seen: set[tuple[int, bool]] = set()
    for stage in course.stages:
        course.current = stage.index
        found += _moments(course, stage)
        if (stage.number, stage.time == 1) in seen:  # a later time differs from the second in nothing
            continue
        seen.add((stage.number, stage.time == 1))
        own = course.task(stage)
        if own.offer != task.offer:
            sentence = "a phase's task must offer what the recipe's does: inputs and answers of its kind and shape."
            found.append(Problem(f"phases.{stage.number}.task", stage.document["task"]["use"], sentence))
            continue
        with sources.around(points=course):
            problems = inside(stage.document, own, anatomy_of(sketch(stage.document, own)))
        found += [told(problem, stage.origins) for problem in problems]
    return list({(p.path, p.message): p for p in found}.values())


def _moments(course: Course, stage: Stage) -> list[Problem]:
    """Whether the earlier moments that a phase names come; and whether it can take over what it asks for."""
    path = f"phases.{stage.number}"
    found = []
    if stage.rewind:
        try:
            course.look(parse(stage.rewind))
        except AthanorError as error:
            found.append(Problem(f"{path}.rewind", stage.rewind, str(error)))
    if stage.inherit == "all" and stage.index and not found:
        rewound = parse(stage.rewind).name if stage.rewind else ""
        before = [s for s in course.stages[: stage.index] if not rewound or s.name == rewound][-1]
        uses = [(each.document["optimizer"] or {}).get("use") for each in (before, stage)]
        if uses[0] != uses[1]:
            sentence = f'the optimizer changes from {uses[0]} to {uses[1]}, so its state cannot pass on: "weights" can.'
            found.append(Problem(f"{path}.inherit", "all", sentence))
    return found


def curves_over(document: Mapping[str, Any], task: Task, curves: Any) -> dict[str, Any]:
    """The curves of every phase behind each other; a series is not a number where a phase has it not."""
    from engine.training.assemble import batches_per_epoch

    course = Course(document, task)
    steps: list[int] = []
    series: dict[str, list[float]] = {}
    begin = 0
    for stage in course.stages:
        length = course.length(stage)
        if length is None:
            break
        course.current = stage.index
        with sources.around(points=course):
            found = curves(stage.document, length, batches_per_epoch(stage.document, course.task(stage)))
        for name in {**series, **found["series"]}:
            values = series.setdefault(name, [float("nan")] * len(steps))
            values += found["series"].get(name, [float("nan")] * len(found["steps"]))
        steps += [begin + step for step in found["steps"]]
        begin += length
    return {"steps": steps, "series": series}
