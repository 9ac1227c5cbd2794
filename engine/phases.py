"""The phases of a recipe: stretches of a run with parts and a budget of their own, one after the other.

    [[phases]]
    name = "dense"
    budget = { epochs = 5 }

    [[phases]]
    name = "sparse"
    rewind = "phase:dense@200"      # begin with the weights of an earlier moment
    repeat = 3                      # and do it three times; with back_to = "dense" from there on
    optimizer = { lr = 0.01 }       # any section may be changed for the phase
    techniques = [{ use = "...", enabled = false }]

A phase says what it changes in the recipe around it. A technique of the same id is changed, another one is added, one
with `enabled = false` is left out. A budget replaces the recipe's whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import sources
from engine.errors import Problem
from engine.settings import did_you_mean, show

CHANGES = ("task", "sampler", "loss", "optimizer", "schedule", "procedure", "techniques", "training", "budget")
OWN = ("name", "repeat", "back_to", "rewind", "inherit")
INHERIT = ("weights", "all")
# Settings that belong to the whole run: where it computes, what it keeps, what it began with.
WHOLE: Mapping[str, tuple[str, ...]] = {
    "training": ("device", "threads", "compile", "checkpoint_every", "keep", "start_from", "outer"),
    "budget": ("share",),
}
MOST = 1000


_EXAMPLES = {
    "budget": "{ epochs = 5 }",
    "optimizer": "{ lr = 0.01 }",
    "techniques": '[{ use = "...", enabled = false }]',
    "training": "{ batch_size = 128 }",
}


def _change(name: str) -> dict[str, Any]:
    example = f", such as {_EXAMPLES[name]}" if name in _EXAMPLES else ""
    return {"title": name, "description": f"What is different in [{name}], written as TOML{example}. Empty: nothing."}


def _text(title: str, words: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "title": title, "description": words, **more}


# The form of one phase. What it changes in other sections is written as TOML, as in the recipe's text.
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": _text("name", "What the phase is called; others name it so."),
        "repeat": {
            "type": "integer",
            "minimum": 1,
            "default": 1,
            "title": "repeat",
            "description": "How many times it is carried out.",
        },
        "back_to": _text("back to", "The phase from which on all is repeated with it. Empty: it alone.", default=""),
        "rewind": _text(
            "rewind",
            "The moment of an earlier phase to begin with, as phase:NAME@STEP. Empty: where the last one ended.",
            default="",
        ),
        "inherit": _text(
            "inherit",
            "What goes on from before: the weights, or the optimizer and the techniques too.",
            enum=list(INHERIT),
            default="weights",
        ),
        **{name: _change(name) for name in CHANGES},
    },
}


@dataclass(frozen=True)
class Stage:
    """One phase as it is carried out: which time, with what recipe, from what."""

    index: int
    number: int  # of the phase in the recipe
    name: str
    time: int
    times: int
    document: Mapping[str, Any]  # the recipe of the phase, filled, without phases
    rewind: str = ""
    inherit: str = "weights"
    origins: Mapping[str, str] = field(default_factory=dict)  # paths in `document` -> paths in the recipe

    @property
    def label(self) -> str:
        return f"{self.name} ({self.time} of {self.times})" if self.times > 1 else self.name


def merged(base: Mapping[str, Any], phase: Mapping[str, Any], number: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The recipe of one phase, and where in the document its sections stand."""
    from engine.recipe import merge

    document = {key: value for key, value in base.items() if key not in ("phases", "search", "study")}
    origins: dict[str, str] = {}
    for name in CHANGES:
        if name not in phase:
            continue
        if name == "techniques":
            document[name], places = _techniques(base.get(name) or [], phase[name])
            origins |= {f"techniques.{i}": f"phases.{number}.techniques.{j}" for i, j in places.items()}
        else:
            whole = name == "budget" or not isinstance(document.get(name), Mapping)
            document[name] = phase[name] if whole else merge({name: document[name]}, {name: phase[name]})[name]
            origins[name] = f"phases.{number}.{name}"
    return document, origins


def _techniques(base: Sequence[Any], changes: Sequence[Any]) -> tuple[list[Any], dict[int, int]]:
    """The techniques of a phase, and for each one that the phase names its place there."""
    found, places = [dict(each) for each in base], {}
    taken: set[int] = set()
    for j, change in enumerate(changes):
        same = [i for i, each in enumerate(found) if each.get("use") == change.get("use") and i not in taken]
        at = same[0] if same else len(found)
        found[at:] = [{**found[at], **change}, *found[at + 1 :]] if same else [dict(change)]
        taken.add(at)
        places[at] = j
    return found, places


# -- checking ----------------------------------------------------------------------------------------------------------


Checked = Callable[[str, Any, str], list[Problem]]


def check(document: Mapping[str, Any], checked: Checked) -> list[Problem]:
    """Everything wrong with the phases; `checked(section, value, path)` checks one section of the recipe."""
    phases = document["phases"]
    if not isinstance(phases, list) or not all(isinstance(phase, Mapping) for phase in phases):
        return [Problem("phases", phases, "write each of the phases as [[phases]].")]
    found: list[Problem] = []
    names: list[str] = []
    for number, phase in enumerate(phases):
        path = f"phases.{number}"
        found += _check_own(phase, path, names)
        names.append(phase["name"] if isinstance(phase.get("name"), str) else "")
        found += _check_changes(document, phase, number, checked)
    times = _times(phases) if not found else 1
    if times > MOST:
        found.append(Problem("phases", times, f"with their repetitions they are over {MOST} stretches: too many."))
    return found


def _check_own(phase: Mapping[str, Any], path: str, before: list[str]) -> list[Problem]:
    found = []
    for key, value in phase.items():
        if key not in (*OWN, *CHANGES):
            found.append(Problem(f"{path}.{key}", value, _strange(key)))
    name = phase.get("name")
    if not isinstance(name, str) or not name or set(name) & set("@:?"):
        right = 'a phase needs a name, a text without "@", ":" and "?".'
        found.append(Problem(f"{path}.name", name, right if name is None else f"{show(name)} is no name: {right}"))
    elif name in before:
        found.append(Problem(f"{path}.name", name, f'there is a phase "{name}" already; give this one another name.'))
    repeat = phase.get("repeat", 1)
    if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
        found.append(Problem(f"{path}.repeat", repeat, f"{show(repeat)} is not a whole number of at least 1."))
    inherit = phase.get("inherit", "weights")
    if inherit not in INHERIT:
        found.append(Problem(f"{path}.inherit", inherit, f'{show(inherit)} is not one of "weights", "all".'))
    if "back_to" in phase and phase["back_to"] not in (*before, name):
        found.append(Problem(f"{path}.back_to", phase["back_to"], _unknown(phase["back_to"], before)))
    if "rewind" in phase:
        found += _check_rewind(phase["rewind"], f"{path}.rewind", [*before, *([str(name)] if repeat != 1 else [])])
    return found


def _strange(key: str) -> str:
    if key in ("model", "probes", "decoder", "search", "study"):
        why = "the structure goes on from phase to phase" if key == "model" else "they are those of the whole run"
        return f"a phase has no [{key}] of its own: {why}."
    known = (*OWN, *CHANGES)
    return f"a phase has no field {key!r}.{did_you_mean(key, known) or ' It has ' + ', '.join(known) + '.'}"


def _check_rewind(value: Any, path: str, before: list[str]) -> list[Problem]:
    try:
        named = sources.parse(value)
    except ValueError as error:
        return [Problem(path, value, str(error))]
    if named.kind != "phase":
        return [Problem(path, value, f'{show(value)} is no phase of this recipe; write "phase:NAME@STEP".')]
    return [] if named.name in before else [Problem(path, value, _unknown(named.name, before))]


def _unknown(name: Any, before: Sequence[str]) -> str:
    there = ", ".join(show(each) for each in before if each) or "none"
    return f"there is no phase {show(name)} before this one.{did_you_mean(str(name), before)} There are: {there}."


def _check_changes(
    document: Mapping[str, Any],
    phase: Mapping[str, Any],
    number: int,
    checked: Checked,
) -> list[Problem]:
    """The sections as they are after the phase's changes, told at the places of the phase."""
    found = []
    techniques = phase.get("techniques", [])
    if not isinstance(techniques, list) or not all(isinstance(each, Mapping) for each in techniques):
        return [Problem(f"phases.{number}.techniques", techniques, "write a list, each technique as a table.")]
    base = document.get("techniques")
    if not isinstance(base, list) or not all(isinstance(each, Mapping) for each in base):
        document = {**document, "techniques": []}  # told where it stands
    after, origins = merged(document, phase, number)
    for inner, outer in origins.items():
        section, _, index = inner.partition(".")
        if index:
            problems = checked("techniques", [after["techniques"][int(index)]], "techniques")
            found += [_moved(p, "techniques.0", outer) for p in problems]
        else:
            found += [_moved(p, section, outer) for p in checked(section, after[section], section)]
    for section, names in WHOLE.items():
        said: Any = phase.get(section)
        for name in names:
            if isinstance(said, Mapping) and name in said:
                sentence = f"{name} is a setting of the whole run; write it in [{section}]."
                found.append(Problem(f"phases.{number}.{section}.{name}", said[name], sentence))
    return found


def _moved(problem: Problem, inner: str, outer: str) -> Problem:
    if problem.path == inner or problem.path.startswith(f"{inner}."):
        return Problem(outer + problem.path[len(inner) :], problem.value, problem.message)
    return problem


def told(problem: Problem, origins: Mapping[str, str]) -> Problem:
    """A problem of a phase's own recipe, at the place in the document that it comes from."""
    for inner in sorted(origins, key=len, reverse=True):
        if problem.path == inner or problem.path.startswith(f"{inner}."):
            return _moved(problem, inner, origins[inner])
    return problem


# -- the order ---------------------------------------------------------------------------------------------------------


def _order(phases: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """The phases as they follow each other: number in the recipe, and which time it is."""
    names = [phase["name"] for phase in phases]
    order: list[int] = []
    begins: dict[int, int] = {}  # number -> where in the order it first stands
    for number, phase in enumerate(phases):
        begins[number] = len(order)
        order.append(number)
        start = begins[names.index(phase.get("back_to", phase["name"]))]
        stretch = order[start:]
        for _ in range(phase.get("repeat", 1) - 1):
            if len(order) > MOST:
                break
            order += stretch
    seen: dict[int, int] = {}
    found = []
    for number in order:
        seen[number] = seen.get(number, 0) + 1
        found.append((number, seen[number]))
    return found


def _times(phases: Sequence[Mapping[str, Any]]) -> int:
    return len(_order(phases))


def stages(document: Mapping[str, Any]) -> list[Stage]:
    """A filled recipe as the stretches that it is carried out in; one, of no name, where it has no phases."""
    phases = document.get("phases") or []
    if not phases:
        return [Stage(0, 0, "", 1, 1, document)]
    order = _order(phases)
    times = {number: sum(n == number for n, _ in order) for number, _ in order}
    found = []
    for index, (number, time) in enumerate(order):
        phase = phases[number]
        own = phase["rewind"] and sources.parse(phase["rewind"]).name == phase["name"]
        rewind = "" if own and time == 1 else phase["rewind"]  # its own moment comes with its first time
        said = (phase["recipe"], rewind, phase["inherit"], phase["origins"])
        found.append(Stage(index, number, phase["name"], time, times[number], *said))
    return found


def needed(stage: Stage) -> list[sources.Named]:
    """The moments of phases that a stage names: what it rewinds to, and what its parts take as sources."""
    texts = [text for _, text in sources.named_in(stage.document)] + [stage.rewind] * bool(stage.rewind)
    named = (sources.parse(text) for text in texts)
    return list(dict.fromkeys(each for each in named if each.kind == "phase"))
