"""What a recipe would do, without training it: sizes, the schedule's curves, samples, the order of techniques."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from engine import registry
from engine.catalog import Catalog, Entry
from engine.errors import Problem, RecipeError
from engine.kit.anatomy import Anatomy, anatomy_of, example_input
from engine.kit.cost import cost_of
from engine.parts import Procedure, Progress, Schedule, Splits, Task
from engine.recipe import BY_NAME, Recipe
from engine.settings import fill_use
from engine.training import phases
from engine.training.assemble import (
    batches_per_epoch,
    build_search,
    build_study,
    build_task,
    build_techniques,
    clashes,
    enabled,
    fitting_sketch,
    planned,
    procedure_problems,
    sketch,
    unbuildable,
    with_model,
)
from engine.training.data import Columns, some
from engine.training.roles import order_of

POINTS = 200
ROLES = ("norm", "activation", "conv", "linear", "attention", "embedding")


def preview(text: str) -> dict[str, Any]:
    """Everything that the builder shows beside a recipe; problems first."""
    try:
        recipe = Recipe.parse(text)
        catalog = registry.catalog()
        found = recipe.check(catalog)
        if found:
            raise RecipeError(found)
        document = with_model(recipe.filled(catalog))
        task = build_task(document)
        model = fitting_sketch(document, task)
        runs = None
        if document["search"]:
            runs = build_search(document).total()
        if document["study"]:
            runs = check_study(recipe, document)
        anatomy = anatomy_of(model)
        for each in (document, *(phase["recipe"] for phase in document["phases"])):
            if found := unbuildable(each):
                raise RecipeError(found)
        found = clashes(document, task, anatomy)
        drawn = _without_samplers(document) if found else document
        per_epoch = batches_per_epoch(drawn, task)
    except RecipeError as error:
        return {"problems": [_problem(problem) for problem in error.problems]}
    course = phases.Course(drawn, task)
    lengths = [course.length(stage) for stage in course.stages]
    steps = None if None in lengths else sum(length or 0 for length in lengths)
    return {
        "problems": [_problem(problem) for problem in found],
        "model": describe_model(model, task, document),
        "schedule": phases.curves_over(drawn, task, curves),
        "data": {
            "stream": task.stream,
            "splits": {s: task.size(s) for s in Splits if task.size(s)},
            "figure": task.figure(),
        },
        "order": order_of(build_techniques(document)),
        "runs": runs,
        "steps": steps,
        "steps_per_epoch": per_epoch,
        "phases": [{"name": s.label, "steps": n} for s, n in zip(course.stages, lengths, strict=True) if s.name],
        "sites": _sites(anatomy),
        "calls": _calls(document, task, steps or 0) * (runs or 1),
    }


def _calls(document: Mapping[str, Any], task: Task, steps: int) -> int:
    """Roughly how often the recipe's language models will be asked."""
    uses = (document[name] for name in ("procedure", "decoder") if document[name])
    parts = ((registry.classes()[use["use"]], use) for use in uses)
    return sum(
        cls.calls(registry.settings_of(use), task, document, steps) for cls, use in parts if hasattr(cls, "calls")
    )


def _sites(anatomy: Anatomy) -> dict[str, list[str]]:
    try:
        return {role: [site.path for site in anatomy.sites(role)] for role in ROLES}
    except ValueError:  # the model does not tell
        return {}


def check_study(recipe: Recipe, document: Mapping[str, Any]) -> int:
    """How many runs a study plans. Raises RecipeError for the first run of a study's plan that is no valid recipe."""
    catalog = registry.catalog()
    plan = planned(document, build_study(document))
    for ask in plan:
        trial = recipe.copy()
        trial.remove("study")
        for path, value in ask.changes.items():
            trial.set(path, value)
        trial.require(catalog)
    return len(plan)


def fits(text: str, section: str) -> dict[str, str]:
    """Which parts a section of a recipe cannot take as the rest of it stands: id -> why. The others fit.

    A part is judged with its default settings in the section's place (in a list: after what is there), by the problems
    that it adds. What it lacks only because a setting must still be chosen is no reason against it, and a task is
    judged by nothing.
    """
    catalog = registry.catalog()
    recipe = Recipe.parse(text)
    at = BY_NAME[section]
    if not at.many:
        recipe.remove(section)
    document = recipe.filled(catalog)
    if at.kind == "task" or not document["task"]:
        return _lacking(catalog, at.kind)
    try:
        task = build_task(with_model(document))
        if at.kind == "procedure":
            return _fitting_procedures(document, task, catalog)
        anatomy = None if at.kind == "model" else anatomy_of(sketch(document, task))
        before = [] if anatomy is None else clashes(document, task, anatomy)
    except RecipeError:
        return {}  # what stands there must be mended before anything else can be judged
    found = _lacking(catalog, at.kind)
    for entry in _ready(catalog, at.kind):
        use = fill_use({"use": entry.id}, catalog)
        trial = {**document, section: [*document[section], use] if at.many else use}
        added = [problem for problem in _clashes(trial, task, anatomy) if problem not in before]
        if added:
            found[entry.id] = added[0].message
    return found


def _lacking(catalog: Catalog, kind: str) -> dict[str, str]:
    """The parts of a kind that need what this machine does not have, and why."""
    return {entry.id: entry.lacks for entry in catalog.of_kind(kind) if entry.lacks}


def _ready(catalog: Catalog, kind: str) -> list[Entry]:
    """The parts of a kind that can be judged as they are: this machine has what they need, and so have their forms."""
    entries = [entry for entry in catalog.of_kind(kind) if not entry.lacks]
    return [entry for entry in entries if all(name in entry.defaults() for name in entry.schema["required"])]


def _fitting_procedures(document: Mapping[str, Any], task: Task, catalog: Catalog) -> dict[str, str]:
    """Procedures are judged by what they say of tasks, and by the other parts where the model fits what they want of
    it: the one that stands there may want another model."""
    before = _clashes_beside(document, task)
    found = _lacking(catalog, "procedure")
    for entry in _ready(catalog, "procedure"):
        trial = {**document, "procedure": fill_use({"use": entry.id}, catalog)}
        added = procedure_problems(trial, task)
        if not added:
            problems = _clashes_beside(trial, task) or []
            added = [p for p in problems if (p not in before if before is not None else p.path == "procedure")]
        if added:
            found[entry.id] = added[0].message
    return found


def _clashes_beside(document: Mapping[str, Any], task: Task) -> list[Problem] | None:
    """What clashes with the procedure of a recipe; None where the model is not made for it."""
    try:
        return clashes(document, task, anatomy_of(sketch(document, task)))
    except RecipeError:
        return None


def _clashes(document: Mapping[str, Any], task: Task, anatomy: Anatomy | None) -> list[Problem]:
    """What is wrong with a filled recipe; without an anatomy, whether its model can be built for the task."""
    try:
        if anatomy is not None:
            return clashes(document, task, anatomy)
        sketch(document, task)
    except RecipeError as error:
        return error.problems
    return []


def _without_samplers(document: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe whose length is known also where a sampler refuses the data."""
    inner = [{**phase, "recipe": {**phase["recipe"], "sampler": None}} for phase in document["phases"]]
    return {**document, "sampler": None, "phases": inner}


def _problem(problem: Any) -> dict[str, Any]:
    return {"path": problem.path, "value": problem.value, "message": problem.message}


def describe_model(model: nn.Module, task: Task, document: Mapping[str, Any]) -> dict[str, Any]:
    """Layers with their output shapes, parameters, multiply-adds of one sample (times two), and memory for a batch."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    cost = cost_of(model, *_inputs(document, task, device))
    layers = [
        {
            "path": path,
            "type": type(module).__name__,
            "parameters": sum(p.numel() for p in module.parameters(recurse=False)),
            "output": cost.shapes.get(path),
        }
        for path, module in model.named_modules()
        if path and (cost.shapes.get(path) is not None) and not any(True for _ in module.children())
    ]
    batch = document["training"]["batch_size"] // document["training"]["accumulate"] or 1
    # Weights, gradients and the two moments that most optimizers keep, and what the backward pass needs of the layers.
    memory = 4 * (4 * cost.parameters + cost.activations * batch)
    return {
        "parameters": cost.parameters,
        "trainable": cost.trainable,
        "flops": cost.flops,
        "memory_bytes": memory,
        "layers": layers,
    }


def _inputs(document: Mapping[str, Any], task: Task, device: torch.device) -> list[torch.Tensor]:
    """What one sample brings the model: the task's, or what the procedure gives it instead."""
    procedure: Procedure = registry.build(document["procedure"])
    offer = procedure.offer(task)
    if offer != task.offer or (task.stream == "none" and offer.input != "none"):  # what it acts on is no batch
        return [example_input(offer, 1, device.type)]
    cpu = torch.device("cpu")
    batch = some(task, Columns(task, "train", cpu), 1, torch.Generator().manual_seed(0))
    return [tensor.to(device) for tensor in batch.inputs.values()]


def curves(document: Mapping[str, Any], steps: int, per_epoch: int) -> dict[str, Any]:
    """The schedule's curve over a phase, and that of every value that changes over time."""
    if not steps:
        return {"steps": [], "series": {}}
    at = sorted({round(i * (steps - 1) / (POINTS - 1)) for i in range(POINTS)}) if steps > 1 else [0]
    moments = [Progress(step, steps, step / per_epoch) for step in at]
    series: dict[str, list[float]] = {}
    optimizer, schedule = document["optimizer"], document["schedule"]
    if optimizer and schedule and "lr" in optimizer:
        curve: Schedule = registry.build(schedule)
        for moment in moments:
            for name, value in curve.options(moment, optimizer["lr"]).items():
                series.setdefault(name, []).append(value)
    for use in enabled(document["techniques"]):
        for name, value in registry.build(use).values().items():
            series[f"{use['use']}.{name}"] = [value.at(moment) for moment in moments]
    return {"steps": at, "series": series}
