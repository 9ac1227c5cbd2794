"""The recipe: the document that says what to train and how.

It is TOML, edited in place, so that a person's comments and order stay. Reading it needs no catalog; checking it does,
because what a part takes is known to the catalog alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import AoT, Array, InlineTable, Table

from engine import phases
from engine.catalog import Catalog
from engine.errors import Problem, RecipeError
from engine.settings import a_kind, check_settings, check_use, did_you_mean, fill, fill_use, show

SCHEMA = 1
# What to do with a document of an older version: version -> a function that edits the plain TOML document.
MIGRATIONS: dict[int, Callable[[Any], None]] = {}


DEEPEST = 50
"""Levels of tables and lists in a recipe: what goes through them all needs no limit of its own."""


@dataclass(frozen=True)
class Section:
    """One heading of a recipe. `kind` is the kind of part it names, or empty where it holds settings of its own."""

    name: str
    kind: str
    title: str
    words: str
    many: bool = False
    required: bool = False


SECTIONS = (
    Section("task", "task", "Task", "What is learned: the data, the objective and the metrics.", required=True),
    Section("model", "model", "Model", "The architecture that learns it.", required=True),
    Section("loss", "loss", "Loss", "What is minimized, where it is not the task's own objective."),
    Section("optimizer", "optimizer", "Optimizer", "How gradients become steps."),
    Section("schedule", "schedule", "Schedule", "How the learning rate changes over the run."),
    Section("sampler", "sampler", "Batches", "Which samples each step sees; where none is named, all once an epoch."),
    Section("procedure", "procedure", "Procedure", "Who computes the step; backpropagation where none is named."),
    Section("decoder", "decoder", "Decoder", "How the trained model answers, where it is not by its plain output."),
    Section("techniques", "technique", "Techniques", "Whatever hooks into the step, in any number.", many=True),
    Section("probes", "probe", "Probes", "What looks at the run and its result.", many=True),
    Section("transforms", "transform", "Transforms", "What is done to the trained model, and measured.", many=True),
    Section("search", "search", "Search", "Which settings to vary, over many runs."),
    Section("study", "study", "Study", "Which question to ask of many runs."),
    Section("training", "", "Training", "Batch, precision, device, evaluation and checkpoints."),
    Section("budget", "", "Budget", "How long to train."),
)
BY_NAME = {section.name: section for section in SECTIONS}
# Sections that a procedure may do without, and what it then does not name among what it uses.
OPTIONAL = {"model": "model", "optimizer": "optimizer", "schedule": "optimizer"}
PLANS = ("search", "study")  # the sections that make a recipe a plan of many runs, carried out as one sweep
PHASES = "phases"  # stretches of the run, each with changes of its own to these sections: see `engine.phases`
TOP: dict[str, type] = {"schema": int, "name": str, "notes": str, "seed": int}


@dataclass(frozen=True)
class Difference:
    """One path at which two recipes differ; None where one of them does not have it."""

    path: str
    mine: Any
    theirs: Any


class Recipe:
    """A recipe document. Edit it by paths such as ``optimizer.lr`` and ``techniques.0.n``."""

    def __init__(self, toml: tomlkit.TOMLDocument):
        self._toml = toml

    # -- reading and writing ---------------------------------------------------------------------------------------

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Reads TOML; raises RecipeError for what is not TOML or of a newer version."""
        try:
            toml = tomlkit.parse(text)
            deep = _depth(toml.unwrap())
        except RecursionError:
            deep = DEEPEST + 1
        except Exception as error:  # on some texts that are no TOML tomlkit stumbles, instead of saying so
            raise RecipeError([Problem("", None, f"the recipe is not valid TOML: {_reason(text, error)}.")]) from None
        if deep > DEEPEST:
            sentence = f"the recipe has tables or lists over {DEEPEST} levels deep, and no recipe needs so many."
            raise RecipeError([Problem("", None, sentence)])
        recipe = cls(toml)
        recipe._migrate()
        return recipe

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Reads a file; raises RecipeError when it is not there or cannot be read."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RecipeError([Problem("", str(path), f"there is no recipe file {path}.")]) from None
        except IsADirectoryError:
            raise RecipeError([Problem("", str(path), f"{path} is a folder, not a recipe file.")]) from None
        except UnicodeDecodeError:
            raise RecipeError([Problem("", str(path), f"{path} is not text in UTF-8, so not a recipe.")]) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise RecipeError([Problem("", str(path), f"{path} cannot be read: {reason}.")]) from None
        return cls.parse(text)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Recipe:
        """A recipe from plain data, its sections in the usual order."""
        order = [*TOP, *BY_NAME, PHASES]
        ranked = sorted(document.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))
        return cls(tomlkit.parse(tomlkit.dumps(dict(ranked))))

    def copy(self) -> Recipe:
        return Recipe(tomlkit.parse(self.text()))

    def text(self) -> str:
        """The TOML, comments and order kept."""
        return tomlkit.dumps(self._toml)

    @property
    def document(self) -> dict[str, Any]:
        """The recipe as plain data."""
        return self._toml.unwrap()

    @property
    def name(self) -> str:
        name = self.document.get("name")
        return name if isinstance(name, str) else ""

    @property
    def seed(self) -> int:
        seed = self.document.get("seed", 0)
        return seed if isinstance(seed, int) else 0

    @property
    def plan(self) -> str:
        """The section that makes it a plan of many runs; empty where it trains one."""
        return next((name for name in PLANS if name in self.document), "")

    def digest(self) -> str:
        """A digest of what the recipe trains: names, notes and the order of keys do not count."""
        rest = {key: value for key, value in self.document.items() if key not in ("name", "notes", "schema")}
        return hashlib.sha256(json.dumps(rest, sort_keys=True, default=str).encode()).hexdigest()

    def _migrate(self) -> None:
        version = self.document.get("schema", SCHEMA)
        if not isinstance(version, int) or isinstance(version, bool) or version < 0:
            raise RecipeError([Problem("schema", version, f"{show(version)} is not a recipe version; write {SCHEMA}.")])
        if version > SCHEMA:
            sentence = (
                f"the recipe has version {version}, this Athanor reads up to {SCHEMA}. Update Athanor to open it."
            )
            raise RecipeError([Problem("schema", version, sentence)])
        for older in range(version, SCHEMA):
            if older in MIGRATIONS:
                MIGRATIONS[older](self._toml)
        if "schema" in self._toml:
            self._toml["schema"] = SCHEMA

    # -- editing ---------------------------------------------------------------------------------------------------

    def get(self, path: str, default: Any = None) -> Any:
        """The plain value at a path."""
        here: Any = self.document
        for key in path.split("."):
            here = _step(here, key)
            if here is None:
                return default
        return here

    def set(self, path: str, value: Any) -> None:
        """Writes a value; tables on the way are made where there are none. Raises RecipeError where none can be."""
        *parents, last = path.split(".")
        if not parents and isinstance(value, Mapping | list) and last in (*BY_NAME, PHASES):
            self._write_section(last, value)
            return
        here: Any = self._toml
        for depth, key in enumerate(parents):
            below = _step(here, key)
            if below is None and depth == 0 and key in BY_NAME:
                self._write_section(key, {})
                here = self._toml
                below = _step(here, key)
            elif below is None and isinstance(here, Mapping):
                here[key] = tomlkit.table()  # type: ignore[index]
                below = here[key]
            here = below
        if isinstance(here, AoT | Array | list) and last.isdecimal() and int(last) < len(here):
            here[int(last)] = value
        elif isinstance(here, Table | InlineTable | Mapping):
            here[last] = value  # type: ignore[index]
        else:
            raise RecipeError([Problem(path, value, f"the recipe has no place {path!r} to set.")])

    def remove(self, path: str) -> None:
        """Takes away what a path names, if it is there."""
        *parents, last = path.split(".")
        here: Any = self._toml
        for key in parents:
            here = _step(here, key)
        if isinstance(here, list) and last.isdecimal() and int(last) < len(here):
            del here[int(last)]
            if not here and len(parents) == 1:
                del self._toml[parents[0]]
        elif isinstance(here, Mapping) and last in here:
            del here[last]  # type: ignore[attr-defined]

    def choose(self, section: str, use: str, catalog: Catalog) -> None:
        """Puts another part into a section (or ``techniques.0``) and keeps the settings that it takes as well."""
        old = self.get(section)
        entry = catalog.parts[use]
        kept = {}
        for name, value in (old or {}).items():
            if name in entry.schema.get("properties", {}):
                trial = check_settings(entry.schema, {name: value}, section, catalog, use)
                if not [problem for problem in trial if problem.value is not None]:
                    kept[name] = value
        self.set(section, {"use": use, **kept})

    def insert_part(self, section: str, index: int, part: Mapping[str, Any]) -> None:
        """Adds a part to a list section at an index."""
        if section not in self._toml:
            self._write_section(section, [dict(part)])
        else:
            self._toml[section].insert(index, tomlkit.item(dict(part)))

    def move_part(self, section: str, index: int, to: int) -> None:
        """Moves a part of a list section from one index to another."""
        parts = self.document[section]
        parts.insert(to, parts.pop(index))
        self.set(section, parts)

    def _write_section(self, name: str, value: Any) -> None:
        """Writes a whole section at its usual place among those that are there."""
        if name in self._toml:
            if isinstance(value, list) and not value:
                del self._toml[name]
                return
            self._toml[name] = tomlkit.item(value)
            if isinstance(value, list):
                self._toml = tomlkit.parse(self.text())
            return
        if isinstance(value, list) and not value:
            return
        addition = tomlkit.dumps({name: dict(value) if isinstance(value, Mapping) else value})
        lines = self.text().splitlines()
        at = _place_of(name, lines)
        before = [] if at == 0 or not lines[at - 1].strip() else [""]
        lines[at:at] = [*before, *addition.rstrip().splitlines(), *([""] if at < len(lines) else [])]
        self._toml = tomlkit.parse("\n".join(lines) + "\n")

    # -- checking --------------------------------------------------------------------------------------------------

    def check(self, catalog: Catalog) -> list[Problem]:
        """Everything wrong that can be seen without building the parts."""
        problems = []
        for key, value in self.document.items():
            if key in TOP:
                if not isinstance(value, TOP[key]) or isinstance(value, bool):
                    right = "text" if TOP[key] is str else "a whole number"
                    problems.append(Problem(key, value, f"{show(value)} is not {right}."))
                elif key == "seed" and not 0 <= self.seed < 2**63:
                    problems.append(Problem(key, value, f"{show(value)} is not a whole number from 0 to 2^63 - 1."))
            elif key == PHASES:
                problems += phases.check(self.document, partial(self._check_named, catalog))
            elif key not in BY_NAME:
                hint = did_you_mean(key, [*BY_NAME, PHASES, *TOP]) or f" A recipe has {', '.join(BY_NAME)}, {PHASES}."
                problems.append(Problem(key, value, f"a recipe has no section {key!r}.{hint}"))
            else:
                problems += self._check_section(BY_NAME[key], value, catalog)
        for section in SECTIONS:
            given = section.name in self.document or self._given(section.name)
            if section.required and not given and _takes(self.document, catalog, section.name):
                choices = ", ".join(entry.id for entry in catalog.of_kind(section.kind))
                sentence = f"the recipe has no [{section.name}]; name {a_kind(section.kind)}: {choices}."
                problems.append(Problem(section.name, None, sentence))
        if all(name in self.document for name in PLANS):
            sentence = "the recipe has a [search] and a [study]; a sweep carries out one of them: take the other away."
            problems.append(Problem(PLANS[-1], None, sentence))
        if self.plan and not problems:
            problems += self._check_space(catalog)
        return problems

    def _given(self, section: str) -> bool:
        """Whether a section that is left out comes from elsewhere: the model of what training starts from."""
        return section == "model" and bool(self.get("training.start_from"))

    def unused(self, catalog: Catalog) -> list[str]:
        """The sections that the recipe's procedure needs none of; what stands there is kept, and takes no part."""
        return [name for name in OPTIONAL if not _takes(self.document, catalog, name)]

    def _check_space(self, catalog: Catalog) -> list[Problem]:
        """Whatever a search varies must be a value that the recipe may have at that path."""
        plan = self.document[self.plan]
        fields = catalog.parts[plan["use"]].schema["properties"]
        problems: dict[str, Problem] = {}
        for name in (n for n, field in fields.items() if field.get("x-space")):
            space = plan.get(name, {})
            for path, choice in space.items():
                where = f'{self.plan}.{name}."{path}"'
                for beside in _settings_beside(space, path):
                    for value in _values_of(choice):
                        reason = self._refused({**beside, path: value}, catalog)
                        if reason:
                            problems.setdefault(where, Problem(where, value, reason))
        return list(problems.values())

    def _refused(self, changes: Mapping[str, Any], catalog: Catalog) -> str:
        """Why values cannot stand at their paths; empty when they can."""
        trial = self.copy()
        for name in PLANS:
            trial.remove(name)
        try:
            for path, value in changes.items():
                trial.set(path, value)
        except RecipeError as error:
            return error.problems[0].message
        found = trial.check(catalog)
        return found[0].message if found else ""

    def _check_named(self, catalog: Catalog, name: str, value: Any, path: str) -> list[Problem]:
        return self._check_section(BY_NAME[name], value, catalog)

    def _check_section(self, section: Section, value: Any, catalog: Catalog) -> list[Problem]:
        if section.many:
            if not isinstance(value, list):
                return [Problem(section.name, value, f"write each of the {section.name} as [[{section.name}]].")]
            checked = (check_use(v, section.kind, f"{section.name}.{i}", catalog) for i, v in enumerate(value))
            return [problem for problems in checked for problem in problems]
        if not isinstance(value, Mapping):
            return [Problem(section.name, value, f"{show(value)} is not a table; write [{section.name}].")]
        if section.kind:
            return check_use(value, section.kind, section.name, catalog)
        schema = catalog.sections.get(section.name, {})
        return check_settings(schema, value, section.name, catalog, f"[{section.name}]")

    def require(self, catalog: Catalog) -> None:
        """Raises RecipeError with every problem, when there is any."""
        problems = self.check(catalog)
        if problems:
            raise RecipeError(problems)

    def filled(self, catalog: Catalog) -> dict[str, Any]:
        """The whole recipe with every default written out, those of sections that it leaves out too."""
        document = self.document
        filled = self._filled(document, catalog)
        filled[PHASES] = []
        for number, phase in enumerate(document.get(PHASES) or []):
            after, origins = phases.merged(document, phase, number)
            own = {"repeat": 1, "back_to": phase["name"], "rewind": "", "inherit": "weights"}
            own |= {key: phase[key] for key in phases.OWN if key in phase}
            filled[PHASES].append({**own, "origins": origins, "recipe": {**self._filled(after, catalog), PHASES: []}})
        return filled

    def _filled(self, document: Mapping[str, Any], catalog: Catalog) -> dict[str, Any]:
        filled: dict[str, Any] = {"name": self.name, "seed": self.seed, "notes": document.get("notes", "")}
        for section in SECTIONS:
            value = document.get(section.name)
            if section.many:
                filled[section.name] = [fill_use(v, catalog) for v in value or []]
            elif not section.kind:
                filled[section.name] = fill(catalog.sections.get(section.name, {}), value or {}, catalog)
            else:
                default = catalog.default(section.kind)
                if section.name in PLANS or self._given(section.name):
                    default = None
                if not _takes(document, catalog, section.name):
                    default = value = None
                value = value or ({"use": default} if default else None)
                filled[section.name] = fill_use(value, catalog) if value else None
        return filled

    def difference(self, other: Recipe) -> list[Difference]:
        """Every path at which the two documents differ, `name` and `notes` left out."""
        mine, theirs = flatten(self.document), flatten(other.document)
        paths = [*mine, *(path for path in theirs if path not in mine)]
        return [
            Difference(path, mine.get(path), theirs.get(path))
            for path in paths
            if path not in ("name", "notes", "schema") and mine.get(path) != theirs.get(path)
        ]


def _takes(document: Mapping[str, Any], catalog: Catalog, section: str) -> bool:
    """Whether a recipe's procedure takes what a section says: some need no model, or no optimizer."""
    procedure = document.get("procedure") or {}
    id = procedure.get("use") if isinstance(procedure, Mapping) else None
    entry = catalog.parts.get((id if isinstance(id, str) else "") or catalog.default("procedure") or "")
    return section not in OPTIONAL or entry is None or OPTIONAL[section] in entry.uses


def flatten(document: Any, path: str = "") -> dict[str, Any]:
    """Paths to plain values; lists of numbers and words count as one value."""
    if isinstance(document, Mapping):
        pairs = list(document.items())
    elif isinstance(document, list) and any(isinstance(item, Mapping) for item in document):
        pairs = [(str(i), item) for i, item in enumerate(document)]
    else:
        return {path: document}
    return {k: v for key, value in pairs for k, v in flatten(value, f"{path}.{key}" if path else str(key)).items()}


def merge(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Plain documents: `patch` over `base`. A table that names another part than the old one replaces it whole."""
    merged = dict(base)
    for key, value in patch.items():
        old = merged.get(key)
        swapped = (
            isinstance(value, Mapping)
            and isinstance(old, Mapping)
            and "use" in old
            and value.get("use", old["use"]) != old["use"]
        )
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not swapped:
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def _values_of(choice: Any) -> list[Any]:
    """The values that an axis of a space lists, or the ends of its range."""
    if isinstance(choice, Mapping):
        if "values" not in choice:
            return [choice[end] for end in ("low", "high") if end in choice]
        choice = choice["values"]
    return list(choice) if isinstance(choice, list) else []


def _settings_beside(space: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    """What the axes that a conditional one depends on must be for it to count: each value of its conditions once."""
    conditions = _conditions(space, path)
    if not conditions:
        return [{}]
    first = {owner: values[0] for owner, values in conditions.items()}
    further = [{**first, owner: value} for owner, values in conditions.items() for value in values[1:]]
    return [first, *further]


def _conditions(space: Mapping[str, Any], path: str, seen: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    """The axes that decide whether another counts, and those that decide on these, with the values that let it."""
    choice = space.get(path)
    when = choice.get("when") if isinstance(choice, Mapping) else None
    found: dict[str, list[Any]] = {}
    for inner, wanted in when.items() if isinstance(when, Mapping) else ():
        owner = next((p for p in space if inner == p or inner.startswith(f"{p}.")), None)
        if owner is None or owner in seen or not isinstance(wanted, list):
            continue  # the search itself says what is wrong with it
        rest = [key for key in inner[len(owner) :].split(".") if key]
        fitting = [value for value in _values_of(space[owner]) if _at(value, rest) in wanted]
        if fitting:
            found = {**_conditions(space, owner, (*seen, path)), **found, owner: fitting}
    return found


def _at(value: Any, keys: list[str]) -> Any:
    for key in keys:
        value = _step(value, key)
    return value


def _reason(text: str, error: Exception) -> str:
    """What is wrong with a text that is no TOML, and where; Python's own parser says it more plainly than tomlkit."""
    try:
        tomllib.loads(text)
    except Exception as plain:
        return str(plain)
    return str(error)


def _depth(value: Any) -> int:
    """How many tables and lists lie within each other."""
    if not isinstance(value, Mapping | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, Mapping) else value), default=0)


def _step(here: Any, key: str) -> Any:
    """One key down a path, or None."""
    if isinstance(here, list):
        return here[int(key)] if key.isdecimal() and int(key) < len(here) else None
    return here.get(key) if isinstance(here, Mapping) else None


def _place_of(name: str, lines: list[str]) -> int:
    """The line at which a new section goes: before the first one that usually follows it, above its comments."""
    order = [*BY_NAME, PHASES]
    following = order[order.index(name) + 1 :]
    for number, line in enumerate(lines):
        header = re.match(r"\s*\[{1,2}\s*([A-Za-z_]+)", line)
        if header and header[1] in following:
            while number and lines[number - 1].lstrip().startswith("#"):
                number -= 1
            return number
    return len(lines)
