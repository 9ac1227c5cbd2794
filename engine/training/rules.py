"""The rules that settle conflicts between parts: who may own what, and what a step may be split into.

Each rule reads declarations of the parts, never their names, and answers in sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from engine import registry
from engine.errors import Problem
from engine.parts import Task, info
from engine.training.roles import AFTER, BEFORE

if TYPE_CHECKING:
    from engine.training.run import Run

Document = Mapping[str, Any]
Use = Mapping[str, Any]


def problems(document: Document, uses: list[tuple[str, Use]], task: Task) -> list[Problem]:
    """What clashes in a filled recipe, by the declarations of its parts; `uses` are all of them with their paths."""
    found = _bindings(document) + _owners(document) + _terms(document)
    return found + _splitting(document, uses, task) + _sharing(document, task)


def notes(run: Run) -> list[str]:
    """What is ignored because another part owns it: no conflict, but nothing to keep silent about."""
    schedule = run.recipe["schedule"]
    if not schedule or info(registry.classes()[schedule["use"]]).default:
        return []
    found = []
    for role in run.roles.values():
        if role.optimizer is not None and not role.external:
            owner = info(role.optimizer)
            how = "sets its learning rate itself" if owner.lr == "internal" else "has no learning rate"
            found.append(f"The schedule {schedule['use']} is not used for {role.name}: {owner.id} {how}.")
    return found


def _techniques(document: Document) -> list[tuple[str, Use, Any]]:
    """The techniques that are switched on: path, table, class."""
    listed = enumerate(document["techniques"])
    return [(f"techniques.{i}", use, registry.classes()[use["use"]]) for i, use in listed if use.get("enabled", True)]


def _bindings(document: Document) -> list[Problem]:
    """`on` needs a technique that acts on updates, and on any role that it is bound to."""
    found = []
    for path, use, cls in _techniques(document):
        if "on" not in use:
            continue
        declared = info(cls).roles
        acts = any(hasattr(cls, position) for position in (*BEFORE, *AFTER))
        if not acts and not cls.any_role:
            sentence = f"{use['use']} does not act on the updates of a role; leave out `on`."
            found.append(Problem(f"{path}.on", use["on"], sentence))
        elif not cls.any_role and not set(use["on"]) <= set(declared):
            sentence = f"{use['use']} acts on {' and '.join(declared)} alone and cannot be bound to another role."
            found.append(Problem(f"{path}.on", use["on"], sentence))
    return found


def _owners(document: Document) -> list[Problem]:
    """One part makes one gradient out of those of the workers, and one out of those of the terms."""
    owned: dict[str, Callable[[Any], bool]] = {
        "reduces the gradients of the workers to one": lambda cls: hasattr(cls, "reduce"),
        "combines the gradients of the terms to one": lambda cls: cls.per_term,
    }
    found = []
    for what, owns in owned.items():
        owners = [(path, use) for path, use, cls in _techniques(document) if owns(cls)]
        for path, use in owners[1:]:
            first = owners[0][1]["use"]
            sentence = f"{use['use']} {what}, which {first} does already; there can be one."
            found.append(Problem(path, use["use"], sentence))
    return found


def _terms(document: Document) -> list[Problem]:
    """Gradients of the terms are differentiated one by one, past what acts on their sum."""
    training = document["training"]
    techniques = _techniques(document)
    earlier = ("reduce", "privatize")
    found = []
    for _, use, cls in techniques:
        if not cls.per_term:
            continue
        needs = f"{use['use']} takes the gradient of each term by itself"
        if training["precision"] == "fp16":
            sentence = f'{needs}, without the scaling that fp16 needs; write precision = "bf16" or "fp32".'
            found.append(Problem("training.precision", "fp16", sentence))
        if training["workers"] > 1:
            sentence = f"{needs}, and workers share only their sum; write workers = 1."
            found.append(Problem("training.workers", training["workers"], sentence))
        for path, other, owner in techniques:
            position = next((p for p in earlier if hasattr(owner, p)), "")
            if position:
                sentence = f"{needs}, so what {other['use']} does to their sum before, at {position}, would be lost."
                found.append(Problem(path, other["use"], sentence))
    return found


def _splitting(document: Document, uses: list[tuple[str, Use]], task: Task) -> list[Problem]:
    """A step may be split where its loss is a mean over samples and its update looks at the batch once."""
    found = []
    splits = {"accumulate": "micro-batches", "workers": "workers"}
    for name, pieces in splits.items():
        wanted = document["training"][name]
        if wanted == 1:
            continue
        whole = [f"{document['task']['use']} is handed out whole"] if task.stream in ("whole", "none") else []
        for why in [*whole, *_indivisible(uses)]:
            sentence = f"{why}, so a step cannot be split into {pieces}; write {name} = 1."
            found.append(Problem(f"training.{name}", wanted, sentence))
    return found


def _indivisible(uses: list[tuple[str, Use]]) -> list[str]:
    """Why a step must stay whole."""
    reasons = []
    for _, use in uses:
        cls: Any = registry.classes()[use["use"]]
        if not getattr(cls, "additive", True):
            reasons.append(f"{use['use']} couples the samples of a batch")
        if not getattr(cls, "divisible", True):
            reasons.append(f"{use['use']} takes its steps on whole batches")
        if hasattr(cls, "attach") or getattr(cls, "closure", False):
            reasons.append(f"{use['use']} asks for the loss of the whole batch again")
    return reasons


def _sharing(document: Document, task: Task) -> list[Problem]:
    """Every worker has at least one sample of every batch, and one sum of gradients."""
    training = document["training"]
    workers = training["workers"]
    if workers == 1 or task.stream in ("whole", "none"):
        return []
    samples = task.size("train") or training["batch_size"]
    size = min(training["batch_size"], samples)
    found: list[Problem] = []
    if training["precision"] == "fp16":
        sentence = 'the gradients of workers are taken without the scaling that fp16 needs; write precision = "bf16".'
        found.append(Problem("training.precision", "fp16", sentence))
    if document.get("sampler"):  # its batches have sizes of their own
        return found
    last = samples % size if size else 0
    if size < workers or 0 < last < workers:
        least = size if size < workers else last
        sentence = f"a batch of {least} samples (of {samples}) cannot be shared by {workers} workers."
        found.append(Problem("training.workers", workers, sentence + " Choose another batch size, or fewer workers."))
    return found
