"""Finds the parts by walking `engine/methods` and a person's own folder, and writes the catalog.

Part of the heavy wing: it imports every part. `python -m engine.registry OUT` writes the JSON that
`engine.catalog` reads.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from docstring_parser import parse as parse_docstring
from pydantic import TypeAdapter

import engine.methods
from engine.catalog import Catalog, Entry
from engine.errors import AthanorError
from engine.parts import GIVEN, Layer, Model, Offer, Procedure, Schedule, Value, info
from engine.settings import RESERVED, unwrapped
from engine.training import sources
from engine.training.settings import Budget, Training
from engine.workspace import own_parts

ROOT = Path(engine.methods.__file__).resolve().parent
SLOTS = {"procedures": "procedure", "losses": "loss", "adaptation": "adaptation", "data": "data", "nas": "nas"}
HEADINGS = ("helps", "hurts", "cost")


def _own_modules(folder: Path) -> tuple[ModuleType, ...]:
    modules = []
    for path in sorted(folder.glob("*.py")):
        name = f"own_parts.{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever a person's file raises, it must be told as theirs
            raise AthanorError(f"The part file {path} cannot be loaded: {type(error).__name__}: {error}.") from error
        modules.append(module)
    return tuple(modules)


@cache
def _method_modules() -> tuple[ModuleType, ...]:
    names = (m.name for m in pkgutil.walk_packages([str(ROOT)], "engine.methods.") if not m.ispkg)
    return tuple(importlib.import_module(name) for name in sorted(names))


@cache
def classes() -> dict[str, type]:
    """Every part's class by id. Raises AthanorError when two parts share an id."""
    found: dict[str, type] = {}
    own = own_parts()
    modules = _method_modules() + (_own_modules(own) if own else ())
    for module in modules:
        for cls in vars(module).values():
            if not (inspect.isclass(cls) and "__part__" in vars(cls) and cls.__module__ == module.__name__):
                continue
            id = info(cls).id
            if id in found:
                raise AthanorError(f"Two parts are called {id!r}: {found[id].__module__} and {module.__name__}.")
            found[id] = cls
    return found


def slot_of(cls: type) -> str:
    """The topic a part is filed under: its folder, in the singular; "own" for a person's part."""
    if not cls.__module__.startswith("engine.methods."):
        return "own"
    folder = cls.__module__.split(".")[2]
    return SLOTS.get(folder, folder.removesuffix("s"))


# -- the form ----------------------------------------------------------------------------------------------------------


@cache
def schema_of(cls: type) -> dict[str, Any]:
    """The JSON schema of a constructor's signature, without what the engine gives."""
    kind = info(cls).kind if "__part__" in vars(cls) else ""
    given = GIVEN.get(kind, ())
    hints = get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    words = {p.arg_name: p.description or "" for p in parse_docstring(inspect.getdoc(cls) or "").params}
    properties: dict[str, Any] = {}
    required = []
    for parameter in list(inspect.signature(cls).parameters.values()):
        if parameter.name in given or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in RESERVED:
            raise AthanorError(f"{cls.__module__}: {cls.__name__} has a parameter {parameter.name!r}, a reserved word.")
        if parameter.name not in hints:
            raise AthanorError(f"{cls.__module__}: {cls.__name__}'s parameter {parameter.name!r} has no type.")
        field = TypeAdapter(hints[parameter.name]).json_schema()
        field["title"] = parameter.name.replace("_", " ")
        field["description"] = " ".join(words.get(parameter.name, "").split())
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        else:
            field["default"] = _plain(parameter.default)
        properties[parameter.name] = field
    return {"type": "object", "properties": properties, "required": required}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _card(doc: str) -> dict[str, str]:
    """The parts of a docstring that the card shows: summary, formula, helps, hurts, cost."""
    card = {"summary": "", "formula": "", **dict.fromkeys(HEADINGS, "")}
    lines: list[str] = []
    for line in inspect.cleandoc(doc).splitlines():
        if line.rstrip() in ("Args:", "Raises:", "Returns:", "Attributes:"):
            break
        if re.match(r"(Helps|Hurts|Cost|Choices):", line):
            lines.append("")  # each of these is a paragraph, whether or not a blank line stands before it
        lines.append(line)
    for block in "\n".join(lines).split("\n\n"):
        if not block.strip():
            continue
        head, _, rest = block.partition(":")
        if head.strip().lower() in HEADINGS:
            card[head.strip().lower()] = " ".join(rest.split())
        elif block.startswith((" ", "\t")) and not card["formula"]:
            card["formula"] = inspect.cleandoc("\n" + block)
        elif not card["summary"]:
            card["summary"] = " ".join(block.split())
    return card


@cache
def entry_of(cls: type) -> Entry:
    """A part's card."""
    said = info(cls)
    source = Path(inspect.getsourcefile(cls) or "")
    return Entry(
        id=said.id,
        name=said.name,
        slot=slot_of(cls),
        kind=said.kind,
        import_=f"{cls.__module__}:{cls.__qualname__}",
        schema=schema_of(cls),
        papers=[dict(paper) for paper in said.papers],
        doc=inspect.cleandoc(cls.__doc__ or ""),
        default=said.default,
        recommends=dict(said.recommends),
        example=dict(said.example),
        precision=said.precision,
        graph=said.graph,
        nondeterministic=said.nondeterministic,
        lr=said.lr,
        roles=list(said.roles),
        packages=list(said.packages),
        uses=list(getattr(cls, "uses", Procedure.uses)),
        file=str(source.relative_to(ROOT.parent.parent)) if source.is_relative_to(ROOT.parent.parent) else str(source),
        **_card(cls.__doc__ or ""),
    )


def catalog() -> Catalog:
    """The catalog of everything that can be imported here."""
    entries = [entry_of(cls) for cls in classes().values()]
    entries.sort(key=lambda entry: (entry.slot, entry.name.lower()))
    return Catalog(entries, {"training": schema_of(Training), "budget": schema_of(Budget)})


# -- building ----------------------------------------------------------------------------------------------------------


class Factory:
    """A nested part whose first argument the engine or another part gives: an optimizer, a model, a layer."""

    def __init__(self, cls: type, settings: dict[str, Any]):
        self.cls = cls
        self.settings = settings

    def __call__(self, *given: Any) -> Any:
        if issubclass(self.cls, Model):
            self._fits(*given)
        if issubclass(self.cls, Layer):
            return self.cls.for_site(*given, **self.settings)
        return self.cls(*given, **self.settings)

    def _fits(self, offer: Offer) -> None:
        """Raises ValueError for a model that another part has made for what it does not take."""
        cls: Any = self.cls
        for takes, offered, what in ((cls.inputs, offer.input, "take"), (cls.outputs, offer.output, "give")):
            if takes and offered not in takes:
                wanted = f"{info(self.cls).id} {what}s {' or '.join(takes)}"
                raise ValueError(f"{wanted}, and here it would have to {what} {offered}. Choose another model.")


def build(use: Mapping[str, Any], *given: Any) -> Any:
    """The part that a filled table ``{use = ..., settings}`` names, its nested parts built first."""
    cls = classes()[use["use"]]
    settings = settings_of(use)
    if info(cls).kind in GIVEN and not given:
        return Factory(cls, settings)
    return Factory(cls, settings)(*given)


def settings_of(use: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from a filled table: nested parts built, values over time made, tuples restored."""
    cls = classes()[use["use"]]
    fields = schema_of(cls)["properties"]
    rest = {name: value for name, value in use.items() if name not in RESERVED}
    return {name: _argument(fields[name], value) for name, value in rest.items()}


def _argument(field: Mapping[str, Any], value: Any) -> Any:
    field = unwrapped(field)
    if isinstance(value, Value):  # one that is learned in the run: whoever reads it shares it
        return value
    if "x-part" in field:
        return build(value) if value is not None else None
    if "x-parts" in field:
        return [build(each) for each in value]
    if field.get("x-source"):
        return sources.source(value) if value is not None else None
    if field.get("items", {}).get("x-source"):
        return [found for each in value for found in sources.several(each)]
    if field.get("x-value") and isinstance(value, Mapping):
        schedule = build(value["schedule"]) if "schedule" in value else None
        assert schedule is None or isinstance(schedule, Schedule)
        return Value(float(value["value"]), schedule)
    if "prefixItems" in field and isinstance(value, list):
        return tuple(value)
    if field.get("type") == "number" and isinstance(value, int):
        return float(value)
    return value


def main(arguments: list[str]) -> None:
    """Writes the catalog to a file."""
    (out,) = arguments
    made = catalog()
    data = {"parts": [entry.to_json() for entry in made.parts.values()], "sections": made.sections}
    Path(out).write_text(json.dumps(data, indent=1), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AthanorError as error:
        sys.exit(str(error))
