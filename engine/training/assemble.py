"""From a recipe to a run: builds the parts in the order in which they depend on each other, and says what clashes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from engine import registry
from engine.catalog import Catalog
from engine.errors import AthanorError, CheckpointError, Problem, RecipeError
from engine.kit.anatomy import Anatomy, anatomy_of
from engine.kit.calibration import norms_of
from engine.parts import (
    Ask,
    Batch,
    Offer,
    Procedure,
    Sampler,
    Schedule,
    Search,
    Splits,
    Study,
    Task,
    Technique,
    give_side,
    info,
    is_part,
    matches,
    named_modules_with,
    with_side,
)
from engine.recipe import Recipe
from engine.settings import show
from engine.training import live, phases, rules, sources, surgery
from engine.training.carry import Carried, carry
from engine.training.data import (
    Columns,
    Endless,
    Sampled,
    Shuffled,
    Stream,
    epoch_of,
    metadata,
    set_apart,
    some,
    training_columns,
)
from engine.training.random import derive_seed, forked
from engine.training.recorder import Memory, Recorder
from engine.training.roles import AFTER, BEFORE
from engine.training.run import Run
from engine.training.workers import from_group, layer_stream

DEFAULT_EPOCHS = 10.0  # where a recipe sets no limit at all


def pick_device(wanted: str) -> torch.device:
    """The device that a recipe asks for; auto is the first GPU, or the CPU."""
    if wanted == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            there = f"there are {count}, cuda:0 to cuda:{count - 1}" if count else "this machine has no CUDA GPU"
            sentence = f'"{wanted}" is not a device here: {there}. Write "auto" or "cpu".'
            raise RecipeError([Problem("training.device", wanted, sentence)])
    return device


def enabled(parts: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The parts of a list that are switched on."""
    return [part for part in parts if part.get("enabled", True)]


def filled(recipe: Recipe, catalog: Catalog | None = None) -> dict[str, Any]:
    """The checked recipe with every default; raises RecipeError for what is wrong without building anything."""
    catalog = catalog or registry.catalog()
    recipe.require(catalog)
    return with_model(recipe.filled(catalog))


def with_model(document: dict[str, Any]) -> dict[str, Any]:
    """A filled recipe whose model, where it names none, is that of the source that it starts from."""
    if document["model"] is None and needs("model", document):
        text = document["training"]["start_from"]
        with refusing("training.start_from", text):
            document["model"] = dict(sources.source(text).recipe["model"])
        for phase in document["phases"]:
            phase["recipe"]["model"] = document["model"]
    return document


def needs(section: str, document: Mapping[str, Any]) -> bool:
    """Whether the procedure of a recipe needs a section that not every one does: a model, an optimizer."""
    procedure: Any = registry.classes()[document["procedure"]["use"]]
    return section in procedure.uses


def build_task(document: Mapping[str, Any]) -> Task:
    """The task with its data."""
    use = document["task"]["use"]
    task: Task = _build("task", document["task"])
    with refusing("task", use):
        task.load()
    if task.stream in ("rows", "whole") and not task.size("train"):
        raise RecipeError([Problem("task", use, "its settings leave no sample to train on; leave more for training.")])
    share = document["training"]["outer"]
    with refusing("training.outer", share):
        set_apart(task, share, document["seed"])
    return task


def build_search(document: Mapping[str, Any]) -> Search:
    """What plans the runs of a sweep. Raises RecipeError for a space that it cannot search."""
    search: Search = _build("search", document["search"])
    return search


def build_study(document: Mapping[str, Any]) -> Study:
    """What asks a question of many runs."""
    study: Study = _build("study", document["study"])
    return study


def planned(document: Mapping[str, Any], study: Study) -> list[Ask]:
    """The runs of a study. Raises RecipeError for a plan that it cannot make of this recipe."""
    with refusing("study", document["study"]["use"]):
        return study.plan(document)


def build_techniques(document: Mapping[str, Any]) -> list[Technique]:
    """The techniques that are switched on, each bound to the roles that the recipe names for it."""
    found = []
    for i, use in enumerate(enabled(document["techniques"])):
        made: Technique = _build(f"techniques.{i}", use)
        made._on = tuple(use.get("on", ()))
        found.append(made)
    return found


def _build(where: str, use: Mapping[str, Any], *given: Any) -> Any:
    """Builds a part; a constructor's ValueError becomes a problem of the recipe."""
    with refusing(where, use.get("use")):
        return registry.build(use, *given)


@contextmanager
def refusing(where: str, value: Any) -> Iterator[None]:
    """A part's ValueError, by which it refuses what it was given, becomes a problem of the recipe."""
    try:
        yield
    except RecipeError:
        raise
    except (ValueError, TypeError, AthanorError) as error:
        raise RecipeError([Problem(where, value, str(error))]) from error
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        sentence = "its settings ask for more memory than there is; make smaller what it holds."
        raise RecipeError([Problem(where, value, sentence)]) from error


def _out_of_memory(error: Exception) -> bool:
    """Whether something did not fit; torch has no class of its own for the CPU's memory, and counts in 64 bits."""
    said = ("not enough memory", "t allocate memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


# -- cross-checks ------------------------------------------------------------------------------------------------------


def sketch(document: Mapping[str, Any], task: Task) -> nn.Module:
    """The model without its numbers (on the meta device); with them where its constructor needs them."""
    procedure: Procedure = _build("procedure", document["procedure"])
    with forked(torch.device("cpu")):
        with suppress(NotImplementedError, RuntimeError), torch.device("meta"):
            return _model(document, task, procedure)
        return _model(document, task, procedure)


def fitting_sketch(document: Mapping[str, Any], task: Task) -> nn.Module:
    """The sketch, once it is known that the procedure can work on the task at all: what it wants of a model is second.
    Raises RecipeError."""
    found = [] if document.get("phases") else procedure_problems(document, task)
    if found:
        raise RecipeError(found)
    return sketch(document, task)


def _model(document: Mapping[str, Any], task: Task, procedure: Procedure) -> nn.Module:
    """The recipe's model, for what the procedure wants of it; or the one that the procedure makes."""
    id = info(procedure).id
    with refusing("procedure", id):
        if "model" in procedure.uses:
            offer = procedure.offer(task)
        else:  # whether it takes the task at all is asked first: it makes the model of what the task tells
            found = _kinds("procedure", id, type(procedure), task.offer)
            requires = getattr(procedure, "requires", None)
            settings = registry.settings_of(document["procedure"])
            reason = requires(settings, task, anatomy_of(nn.Identity()), document) if requires and not found else None
            if found or reason:
                raise RecipeError(found or [Problem("procedure", id, str(reason))])
            return procedure.make_model(task)
    use = document["model"]["use"]
    unfit = _kinds("model", use, registry.classes()[use], offer)
    if unfit:
        raise RecipeError(unfit)
    model: nn.Module = _build("model", document["model"], offer)
    return model


def problems(document: Mapping[str, Any]) -> list[Problem]:
    """What clashes in a filled recipe: parts that refuse the task, the model or each other."""
    try:
        task = build_task(document)
        model = fitting_sketch(document, task)
    except RecipeError as error:
        return error.problems
    return clashes(document, task, anatomy_of(model))


def clashes(document: Mapping[str, Any], task: Task, anatomy: Anatomy) -> list[Problem]:
    """What the parts say against each other: their own `requires` first, then the rules that hold for all."""
    if document.get("phases"):
        return phases.clashes(document, task)
    found = sources.problems(document) + _trainless(document)
    if found:
        return found
    found = procedure_problems(document, task) or unbuildable(document)
    if found:
        return found
    for path, use in _uses(document):
        cls: Any = registry.classes()[use["use"]]
        requires = getattr(cls, "requires", None)
        try:
            reason = requires(registry.settings_of(use), task, anatomy, document) if requires else None
        except ValueError as error:  # the model does not tell what the part asks
            reason = str(error)
        if reason:
            found.append(Problem(path, use["use"], reason))
        elif missing := _lacking(task, getattr(cls, "needs_side", ())):
            found.append(Problem(path, use["use"], missing))
    found += _needs(document, task) + _features(document, anatomy)
    found += _precision(document) + _horizon(document) + _loss(document, task)
    found += _offers(document) + _again(document) + _outer(document, task) + _other_structure(document, task)
    found += live.problems(_uses(document)) + surgery.problems(_uses(document), anatomy)
    found += _decoder(document, task) + _normalization(document, anatomy)
    return found + rules.problems(document, _uses(document), task)


def unbuildable(document: Mapping[str, Any]) -> list[Problem]:
    """What the constructors say against their settings, of all that is built before it meets the model."""
    found = []
    for name in ("loss", "sampler", "schedule", "decoder", "techniques", "probes", "transforms"):
        here = document.get(name) or []
        uses = [(name, here)] if isinstance(here, Mapping) else [(f"{name}.{i}", use) for i, use in enumerate(here)]
        for path, use in uses:
            try:
                _ = _build(path, use) if use.get("enabled", True) else None
            except RecipeError as error:
                found += error.problems
    return found


def procedure_problems(document: Mapping[str, Any], task: Task) -> list[Problem]:
    """Whether the procedure can work on the task: the kinds that it takes, and a loss that somebody brings."""
    use = document["procedure"]["use"]
    cls: Any = registry.classes()[use]
    found = _kinds("procedure", use, cls, task.offer)
    if not found and not task.has_objective and not cls.brings_objective:
        fitting = [
            id
            for id, other in registry.classes().items()
            if getattr(other, "brings_objective", False) and not _kinds("procedure", id, other, task.offer)
        ]
        sentence = (
            f"{document['task']['use']} has no loss to descend, so {use} cannot train it; choose a procedure that "
            f"brings its own: {_either(fitting)}."
        )
        found.append(Problem("procedure", use, sentence))
    return found


def _kinds(path: str, use: str, cls: Any, offer: Offer) -> list[Problem]:
    """Whether a part takes what is offered, and answers with what is wanted."""
    for takes, offered, what in (
        (cls.inputs, offer.input, "takes"),
        (cls.outputs, offer.output, "answers with"),
    ):
        if takes and offered not in takes:
            wanted = "offers" if takes is cls.inputs else "asks for"
            sentence = f"it {what} {' or '.join(takes)}, but the task {wanted} {offered}."
            return [Problem(path, use, sentence)]
    return []


def _uses(document: Any, path: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    """Every part of a recipe with its path, those inside other parts too; what is switched off is none."""
    if isinstance(document, list):
        document = {str(i): value for i, value in enumerate(document)}
    if not isinstance(document, Mapping) or not document.get("enabled", True):
        return []
    found: list[tuple[str, Mapping[str, Any]]] = [(path, document)] if isinstance(document.get("use"), str) else []
    if path == "search":
        return found  # what it tries is no part of this recipe
    return found + [use for name, value in document.items() for use in _uses(value, f"{path}.{name}" if path else name)]


def _lacking(task: Task, names: Iterable[str]) -> str:
    """Why a task cannot give these side inputs; empty where it can."""
    for split in Splits:
        columns = training_columns(task) if split == "train" else task.columns(split)
        there = [name.removeprefix("meta.") for name in columns if name.startswith("meta.")]
        missing = sorted(set(names).difference(there)) if columns else []
        if missing:
            has = f"it has {', '.join(there)}" if there else "it has none"
            wanted = " and ".join(f'"{name}"' for name in missing)
            return (
                f"it needs {wanted} beside every sample, and the task's {split} split does not tell: {has}. "
                "Choose a task with this metadata."
            )
    return ""


def _precision(document: Mapping[str, Any]) -> list[Problem]:
    wanted = document["training"]["precision"]
    if wanted == "fp32":
        return []
    return [
        Problem("training.precision", wanted, f'{use["use"]} needs full precision; write precision = "fp32".')
        for _, use in _uses(document)
        if info(registry.classes()[use["use"]]).precision != "any"
    ]


def _horizon(document: Mapping[str, Any]) -> list[Problem]:
    """Curves over the whole run need to know its length."""
    if steps_of(document, 1) is not None:
        return []
    return [
        Problem(path, use["use"], f"{use['use']} needs to know the number of steps; set budget.epochs or budget.steps.")
        for path, use in _uses(document)
        if getattr(registry.classes()[use["use"]], "needs_total", False)
    ]


def _trainless(document: Mapping[str, Any]) -> list[Problem]:
    """A procedure that trains nothing has no budget: 0 steps elsewhere mean no limit."""
    if getattr(registry.classes()[document["procedure"]["use"]], "trains", True):
        return []
    sentence = f"{document['procedure']['use']} trains nothing: it acts once. Leave [budget] out."
    limits = {name: document["budget"][name] for name in ("epochs", "steps", "seconds")}
    return [Problem(f"budget.{name}", value, sentence) for name, value in limits.items() if value]


def _again(document: Mapping[str, Any]) -> list[Problem]:
    """What asks for the loss of a batch at other weights gets the recipe's: not one that the procedure makes."""
    owner = document["procedure"]["use"]
    cls: Any = registry.classes()[owner]
    if not cls.brings_objective or cls.objective is not Procedure.objective:
        return []  # the recipe's loss, or one that can be asked for
    sentence = f"it asks for the loss of a batch again, at other weights, and that of {owner} is made in its own step."
    return [
        Problem(path, use["use"], sentence)
        for path, use in _uses(document)
        if any(getattr(registry.classes()[use["use"]], name, False) for name in ("asks_again", "closure"))
    ]


def _outer(document: Mapping[str, Any], task: Task) -> list[Problem]:
    """What tunes inside a run needs samples that are neither trained on nor reported."""
    if task.size("outer"):
        return []
    sentence = (
        "it tunes on the split outer, which this recipe has not; write training.outer = 0.2, a share of the training "
        "samples, or choose a task that keeps one."
    )
    return [
        Problem(path, use["use"], sentence)
        for path, use in _uses(document)
        if getattr(registry.classes()[use["use"]], "needs_outer", False)
    ]


def _either(names: Iterable[str]) -> str:
    return " or ".join(sorted(names)) or "a loss of your own"


def _loss(document: Mapping[str, Any], task: Task) -> list[Problem]:
    use = document.get("loss")
    if not use and task.needs_loss:
        losses = {id: cls for id, cls in registry.classes().items() if info(cls).kind == "loss"}
        fitting = [id for id, cls in losses.items() if task.offer.output in getattr(cls, "outputs", ())]
        sentence = f"{document['task']['use']} has no objective of its own; write [loss] with {_either(fitting)}."
        return [Problem("loss", None, sentence)]
    if not use:
        return []
    cls: Any = registry.classes()[use["use"]]
    found = []
    owner: Any = registry.classes()[document["procedure"]["use"]]
    if owner.brings_objective:
        sentence = f"{document['procedure']['use']} brings its own objective and would not use it; leave [loss] out."
        found.append(Problem("loss", use["use"], sentence))
    if cls.outputs and task.offer.output not in cls.outputs:
        takes = " or ".join(cls.outputs)
        found.append(Problem("loss", use["use"], f"it takes {takes}, but the task offers {task.offer.output}."))
    return found


def _needs(document: Mapping[str, Any], task: Task) -> list[Problem]:
    """The columns that parts read from a batch: the task must have them in its training split."""
    there = metadata(training_columns(task))
    found = []
    if document["sampler"] and task.stream != "rows":
        sentence = f"{document['task']['use']} hands out its training samples itself; leave [sampler] out."
        return [Problem("sampler", document["sampler"]["use"], sentence)]
    for path, use in _uses(document):
        cls: Any = registry.classes()[use["use"]]
        needs = _build(path, use).needs if issubclass(cls, Sampler) else getattr(cls, "needs", ())
        missing = [name for name in needs if name not in there]
        if not missing and path == "sampler":
            found += _refused_data(document, task)
        if missing:
            names, has = " and ".join(missing), ", ".join(there) or "none"
            sentence = f"it needs the column {names}, which {document['task']['use']} does not have; there is {has}."
            found.append(Problem(path, use["use"], sentence))
    return found


def _refused_data(document: Mapping[str, Any], task: Task) -> list[Problem]:
    """What a sampler says against the data when it starts on them."""
    try:
        batches_per_epoch(document, task)
    except RecipeError as error:
        return error.problems
    return []


def _features(document: Mapping[str, Any], anatomy: Anatomy) -> list[Problem]:
    """What enters the head can be read only where the model has one."""
    reading = [(path, use) for path, use in _uses(document) if reads_features(registry.classes()[use["use"]])]
    reason = ""
    if reading:
        try:
            head = anatomy.head
            reason = "" if isinstance(head, nn.Module) else "its answer comes from no head"
        except ValueError as error:
            reason = str(error).rstrip(".")
    model = document["model"]["use"] if document["model"] else document["procedure"]["use"]
    sentence = f"it reads the features that the model's head takes, which {model} does not tell: {reason}."
    return [Problem(path, use["use"], sentence) for path, use in reading if reason]


def reads_features(part: Any) -> bool:
    """Whether a part, or its class, reads what the model's head takes."""
    return "features" in getattr(part, "reads", ())


def _offers(document: Mapping[str, Any]) -> list[Problem]:
    """What techniques and probes need of the procedure: what they read of its step, and roles to act on."""
    procedure: Any = registry.classes()[document["procedure"]["use"]]
    found = []
    for path, use in _uses(document):
        cls: Any = registry.classes()[use["use"]]
        kind = info(cls).kind
        if kind not in ("technique", "probe", "decoder", "loss", "transform"):
            continue
        needs = {*cls.reads, *(("output",) if kind == "transform" or hasattr(cls, "on_terms") else ())}
        needs |= {"terms"} if getattr(cls, "per_term", False) else set()
        missing = sorted(needs.difference(procedure.offers))
        if missing:
            owner = document["procedure"]["use"]
            sentence = f"it reads the {' and '.join(missing)} of the step, which {owner} does not offer."
            found.append(Problem(path, use["use"], sentence))
        acts = any(hasattr(cls, position) for position in (*BEFORE, *AFTER))
        roles = tuple(use.get("on", ())) or info(cls).roles
        if acts and not any(matches(role, procedure.makes) for role in roles):
            owner, named = document["procedure"]["use"], " and ".join(roles)
            found.append(Problem(path, use["use"], f"it acts on the updates of {named}, which {owner} does not make."))
    return found


def _other_structure(document: Mapping[str, Any], task: Task) -> list[Problem]:
    """The structure comes from the source that a run starts from: a model that says otherwise is refused."""
    text = document["training"]["start_from"]
    if not text:
        return []
    theirs = sources.source(text).recipe["model"]
    mine = document["model"]
    if theirs == mine:
        return []
    sketches = [sketch({**document, "model": use}, task) for use in (theirs, mine)]
    shapes = [{n: t.shape for n, t in model.state_dict().items()} for model in sketches]
    if shapes[0] == shapes[1]:  # they differ in what no weight depends on
        return []
    names = [n for n in {**theirs, **mine} if theirs.get(n) != mine.get(n)]
    said = ", ".join(f"{n} = {show(theirs.get(n))}" for n in names)
    sentence = f"{text}, which the weights come from, has {said}. Write the same, or leave [model] out."
    return [Problem(f"model.{names[0]}", mine.get(names[0]), sentence)]


def _decoder(document: Mapping[str, Any], task: Task) -> list[Problem]:
    use = document.get("decoder")
    if not use:
        return []
    return _kinds("decoder", use["use"], registry.classes()[use["use"]], task.offer)


NO_STATISTICS = (
    'the model has no layer with running statistics, which is what this would change; write normalization = "running".'
)


def _normalization(document: Mapping[str, Any], anatomy: Anatomy) -> list[Problem]:
    """A mode of normalization needs statistics; techniques that change the model are asked when they have done so."""
    mode = document["training"]["normalization"]
    uses = enabled(document["techniques"])
    changing = any(registry.classes()[use["use"]].prepare_model is not Technique.prepare_model for use in uses)  # type: ignore[attr-defined]
    if mode == "running" or changing or norms_of(anatomy.module):
        return []
    return [Problem("training.normalization", mode, NO_STATISTICS)]


def _require_statistics(run: Run) -> None:
    if run.normalization != "running" and not norms_of(*run.modules()):
        raise RecipeError([Problem("training.normalization", run.normalization, NO_STATISTICS)])


# -- building ----------------------------------------------------------------------------------------------------------


def assemble(document: Mapping[str, Any], recorder: Recorder, device: torch.device | None = None) -> Run:
    """A run ready for its first step, in its first phase. Raises RecipeError where parts clash."""
    device = device or pick_device(document["training"]["device"])
    with sources.around(device=device, seed=document["seed"], sink=recorder.sink) as here:
        task = build_task(document)
        found = clashes(document, task, anatomy_of(fitting_sketch(document, task)))
        if found:
            raise RecipeError(found)
        return assemble_stage(phases.Course(document, task, here.folder), 0, recorder, device)


def assemble_stage(
    course: phases.Course,
    index: int,
    recorder: Recorder,
    device: torch.device,
    weights: nn.Module | None = None,
    structure: Sequence[surgery.Entry] = (),
) -> Run:
    """The run of one phase; its model is changed by a structure log, and takes the weights of another one, where they
    are given."""
    stage = course.stages[index]
    document = stage.document
    with sources.around(device=device, seed=document["seed"], sink=recorder.sink, points=course):
        torch.manual_seed(derive_seed(document["seed"], layer_stream()))
        with forked(device, derive_seed(document["seed"], "initial weights")):
            run = _build_run(document, course.task(stage), recorder, device)
            run.structure.replay(run, structure)
            _check_side(run, run.model)
            _start_from_data(run, carry(weights, run.model) if weights is not None else _start_from(run))
        run.course, run.stage = course, stage
        course.place(run, 0, 0.0)
        _make_players(run)
        for role in run.roles.values():
            _check_side(run, role.module)
        if run.loss is not None and hasattr(run.loss, "setup"):
            with refusing("loss", info(run.loss).id):
                run.loss.setup(run)
        for i, technique in enumerate(run.techniques):
            with refusing(f"techniques.{i}", info(technique).id):
                technique.setup(run)
        if run.decoder is not None:
            with refusing("decoder", info(run.decoder).id):
                run.decoder.setup(run)
        for i, use in enumerate(enabled(document["probes"])):
            run.probes.append(_build(f"probes.{i}", use))
            if hasattr(run.probes[-1], "setup"):
                with refusing(f"probes.{i}", use["use"]):
                    run.probes[-1].setup(run)
    _require_statistics(run)
    run.make_ready()
    if any(reads_features(registry.classes()[use["use"]]) for _, use in _uses(document)):
        run.keep_features()
    for sentence in rules.notes(run):
        run.note(sentence, "warning")
    if document["training"]["compile"]:
        run.compile()
    return run


def _build_run(document: Mapping[str, Any], task: Task, recorder: Recorder, device: torch.device) -> Run:
    """The parts, and the model as the techniques prepare it."""
    values = live.values(_uses(document), device)
    parts = live.placed(document, values)
    procedure = _build("procedure", parts["procedure"])
    model = _model(parts, task, procedure)
    techniques = build_techniques(parts)
    loss = _build("loss", parts["loss"]) if parts["loss"] else None
    decoder = _build("decoder", parts["decoder"]) if parts["decoder"] else None
    run = Run(document, task, model, procedure, techniques, loss, device, recorder, decoder)
    run.live = values
    run.stream = stream(document, task, run.columns_of("train"), run.rng("data order"))
    run.workers = from_group(document["training"]["workers"], partial(run.count, "bytes-sent"))
    for i, technique in enumerate(techniques):
        with refusing(f"techniques.{i}", info(technique).id):
            run.model = technique.prepare_model(run, run.model)
    with refusing("procedure", info(procedure).id):
        run.model = procedure.prepare_model(run, run.model)
    run.model.to(device)
    return run


def rebuilt(document: Mapping[str, Any], state: Mapping[str, Any] | None, device: torch.device) -> nn.Module:
    """The model of a recipe with the weights of a checkpoint; as it begins where there is none."""
    document = phases.document_at(document, state)
    with sources.around(device=device, seed=document["seed"], sink=None):
        torch.manual_seed(derive_seed(document["seed"], layer_stream()))
        with forked(device, derive_seed(document["seed"], "initial weights")):
            run = _build_run(document, build_task(document), Recorder(Memory()), device)
            if state is None:
                _start_from_data(run, _start_from(run))
    if state is not None:
        with fitting():
            run.structure.replay(run, state.get("structure", []))
            run.model.load_state_dict(state["model"])
    return run.model


@contextmanager
def fitting() -> Iterator[None]:
    """What a state that does not fit raises becomes one sentence."""
    try:
        yield
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"The checkpoint does not fit this recipe: {reason}") from None


def stream(document: Mapping[str, Any], task: Task, columns: Columns, generator: torch.Generator) -> Stream:
    """The training batches: the sampler's, or each sample once an epoch in random order, or the task's own."""
    size, use = document["training"]["batch_size"], document.get("sampler")
    if task.stream != "rows":
        return Endless(task, columns, size, generator)
    if not use:
        return Shuffled(columns, size, generator)
    sampler: Sampler = _build("sampler", use)
    with refusing("sampler", use["use"]):
        return Sampled(columns, size, sampler, generator)


def batches_per_epoch(document: Mapping[str, Any], task: Task) -> int:
    """How many steps an epoch will have. Raises RecipeError where the sampler refuses the data."""
    if task.stream != "rows":
        return epoch_of(task)
    if not document.get("sampler"):
        return max(-(-task.size("train") // document["training"]["batch_size"]), 1)
    columns = Columns(task, "train", torch.device("cpu"))
    return max(stream(document, task, columns, torch.Generator().manual_seed(document["seed"])).batches, 1)


def steps_of(document: Mapping[str, Any], per_epoch: int) -> int | None:
    """Optimizer steps of a recipe, or of a phase: none where its procedure trains nothing."""
    if not getattr(registry.classes()[document["procedure"]["use"]], "trains", True):
        return 0
    pace: dict[str, float] = {}
    if document["budget"]["amount"]:
        procedure: Procedure = _build("procedure", document["procedure"])
        pace = procedure.pace()
    return total_steps(document["budget"], per_epoch, pace)


def total_steps(budget: Mapping[str, Any], per_epoch: int, pace: Mapping[str, float] | None = None) -> int | None:
    """Optimizer steps in all, None where only the clock ends the run, or a counter with no `pace` a step."""
    epochs = budget["epochs"]
    amount = budget.get("amount", 0.0)
    each = (pace or {}).get(budget.get("count", ""), 0.0)
    if not (epochs or budget["steps"] or budget["seconds"] or amount):
        epochs = DEFAULT_EPOCHS
    limits = [budget["steps"] or math.inf, round(epochs * per_epoch) if epochs else math.inf]
    if amount and each:
        limits.append(math.ceil(amount / each))
    least = min(limits)
    return max(int(least), 0) if least < math.inf else None


def _make_players(run: Run) -> None:
    """The procedure's roles, or the one that most runs have: the model under the name main."""
    document = run.recipe
    run._call = run.model
    if document["optimizer"]:
        run.default_optimizer = partial(_optimizer, document["optimizer"])
    if document["schedule"]:
        run.default_schedule = partial(_schedule, document["schedule"])
    with refusing("procedure", info(run.procedure).id):
        run.procedure.setup(run)
    if not run.roles:
        run.add_role("main", run.model, optimizer=None if "optimizer" in run.procedure.uses else False)


def _optimizer(use: Mapping[str, Any], groups: Any) -> torch.optim.Optimizer:
    return _build("optimizer", use, groups)


def _schedule(use: Mapping[str, Any]) -> Schedule:
    return _build("schedule", use)


def _start_from(run: Run) -> Carried:
    """Takes the weights of the source that the recipe names, where it names one."""
    text = run.recipe["training"]["start_from"]
    if not text:
        return Carried()
    with refusing("training.start_from", text):
        source = sources.source(text)
        state: Mapping[str, Any] = {}
        with suppress(AthanorError):  # a model before its first step has no checkpoint: there is nothing to replay
            state = source.state()
        run.structure.replay(run, state.get("structure", []))
        carried = carry(source.model(), run.model)
        if not carried.count:
            total = len(carried.fresh) + len(carried.reshaped)
            raise ValueError(f"None of the model's {total} tensors is in {text} under the same name and in its shape.")
    run.note(carried.sentence(text), kind="start")
    return carried


def _start_from_data(run: Run, carried: Carried) -> None:
    """Lets the layers that ask for it start from the first training batch, one after the other, as it passes."""
    names = list(run.model.state_dict())
    waiting = [
        (path, module)
        for path, module in named_modules_with(run.model, "init_from")
        if not carried.same or any(n.startswith(f"{path}.") and n not in carried.same for n in names)
    ]
    if not waiting:
        return
    if run.procedure.offer(run.task) != run.task.offer:
        paths = ", ".join(path for path, _ in waiting)
        sentence = f"{paths} starts from training samples, and {info(run.procedure).id} gives the model something else."
        raise RecipeError([Problem("model", run.recipe["model"]["use"], sentence)])
    columns, size = run.columns_of("train"), run.recipe["training"]["batch_size"]
    rng = run.rng("layers from data")
    rows = run.task.stream == "rows"
    batch: Batch = Shuffled(columns, size, rng).next() if rows else some(run.task, columns, size, rng)
    give_side(with_side(run.model), batch)
    hooks: dict[nn.Module, RemovableHandle] = {}
    for _, module in waiting:
        hooks[module] = module.register_forward_pre_hook(lambda m, inputs: _start(m, inputs, hooks))
    try:
        with torch.no_grad():
            batch.call(run.model)
    finally:
        for hook in hooks.values():
            hook.remove()


def _start(module: nn.Module, inputs: tuple[Any, ...], hooks: dict[nn.Module, RemovableHandle]) -> None:
    hooks.pop(module).remove()  # once, also where the module is passed several times
    module.init_from(*inputs)  # type: ignore[operator]


def _check_side(run: Run, module: nn.Module) -> None:
    """Raises RecipeError where a layer inside needs what the task's samples do not have beside them."""
    for inner in with_side(module):
        missing = _lacking(run.task, inner.needs_side)  # type: ignore[arg-type]
        if missing:
            name = info(inner).id if is_part(inner) else type(inner).__name__
            raise RecipeError([Problem("task", run.recipe["task"]["use"], f"The layer {name} cannot work: {missing}")])
