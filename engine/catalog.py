"""Every part there is, as data: its form, its papers, its words. Read from JSON, so that nothing here imports torch.

The heavy wing's registry writes the JSON; this module keeps it cached under the digest of the sources that it came
from and asks for a new one, in a process of its own, when they change.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from engine.errors import AthanorError
from engine.workspace import cache_folder, own_parts

ENGINE = Path(__file__).resolve().parent
FORMAT = 1
KINDS = (
    "task",
    "model",
    "layer",
    "loss",
    "sampler",
    "optimizer",
    "schedule",
    "technique",
    "procedure",
    "decoder",
    "transform",
    "search",
    "probe",
    "study",
    "language-model",
)
TAKING = ("technique", "procedure")  # the kinds whose parts put others to work


@dataclass(frozen=True)
class Entry:
    """One part's card: what a form, the library and the checks need to know of it."""

    id: str
    name: str
    slot: str
    kind: str
    summary: str
    import_: str
    schema: dict[str, Any]
    papers: list[dict[str, str]] = field(default_factory=list)
    formula: str = ""
    helps: str = ""
    hurts: str = ""
    cost: str = ""
    doc: str = ""
    default: bool = False
    recommends: dict[str, Any] = field(default_factory=dict)
    example: dict[str, Any] = field(default_factory=dict)
    precision: str = "any"
    graph: str = "safe"
    nondeterministic: str = ""
    lr: str = "external"
    roles: list[str] = field(default_factory=list)
    # Of a procedure: what it needs of a recipe that not every one does.
    uses: list[str] = field(default_factory=lambda: ["model", "optimizer"])
    packages: list[str] = field(default_factory=list)
    file: str = ""

    @property
    def lacks(self) -> str:
        """Why it cannot be used on this machine, and what to do; empty where it can."""
        missing = [name for name in self.packages if not _installed(name)]
        if not missing:
            return ""
        what = f"the package {missing[0]}" if len(missing) == 1 else f"the packages {' and '.join(missing)}"
        return f"it needs {what}, which this machine does not have; install it by: pip install {' '.join(missing)}."

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Entry:
        known = {f.name for f in fields(cls)}
        data = {("import_" if name == "import" else name): value for name, value in data.items()}
        return cls(**{name: value for name, value in data.items() if name in known})

    def to_json(self) -> dict[str, Any]:
        """The entry as the registry writes it; `import_` is called `import` there."""
        return {("import" if f.name == "import_" else f.name): getattr(self, f.name) for f in fields(self)}

    def defaults(self) -> dict[str, Any]:
        """The default of every field that has one."""
        return {n: f["default"] for n, f in self.schema.get("properties", {}).items() if "default" in f}


@cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


class Catalog:
    """The parts by id, and the forms of the recipe's own sections (training, budget)."""

    def __init__(self, entries: Iterable[Entry], sections: dict[str, dict[str, Any]] | None = None):
        self.parts = {entry.id: entry for entry in entries}
        self.sections = sections or {}

    @classmethod
    def load(cls) -> Catalog:
        """The catalog of these sources (and of a person's own part files), made anew when they changed."""
        path = cache_folder() / f"catalog-{digest(own_parts())}.json"
        if not path.exists():
            _make(path)
        try:
            return cls.read(path)
        except (ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)  # damaged: a cache can always be made again
            _make(path)
            return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> Catalog:
        """The catalog in one JSON file."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls((Entry.from_json(entry) for entry in data["parts"]), data["sections"])

    def of_kind(self, kind: str) -> list[Entry]:
        return [entry for entry in self.parts.values() if entry.kind == kind]

    def default(self, kind: str) -> str | None:
        """The part that a recipe gets where it names none of a kind."""
        return next((entry.id for entry in self.parts.values() if entry.kind == kind and entry.default), None)

    def example(self, id: str) -> dict[str, Any]:
        """The smallest recipe that exercises a part: default parts, the part in its place, its own `example` over it.

        A part of a kind that has no section of its own (a layer, a language model) is put into one that takes it.
        """
        from engine.recipe import SECTIONS, merge

        entry = self.parts[id]
        base: dict[str, Any] = {kind: {"use": self.default(kind)} for kind in ("task", "model", "optimizer")}
        base |= {"training": {"batch_size": 64, "evaluate_every": 0}, "budget": {"steps": 8}}
        section = next((s for s in SECTIONS if s.kind == entry.kind), None)
        if section is not None:
            base[section.name] = [{"use": id}] if section.many else {"use": id}
        else:
            base = merge(base, self._placing(entry))
        return merge(base, entry.example)

    def _placing(self, entry: Entry) -> dict[str, Any]:
        """A recipe patch with a part that takes parts of this one's kind, and whatever that one's example needs: a
        technique that puts a layer into a model, a procedure that asks a language model."""
        from engine.recipe import SECTIONS, merge

        for section in (section for section in SECTIONS if section.kind in TAKING):
            for taking in self.of_kind(section.kind):
                fields = taking.schema["properties"]
                slot = next((name for name, f in fields.items() if f.get("x-part") == entry.kind), None)
                if slot:
                    use = {"use": taking.id, slot: {"use": entry.id}}
                    there: dict[str, Any] = {section.name: [use] if section.many else use}
                    return there if section.many else merge(taking.example, there)
        raise AthanorError(f"No part takes a {entry.kind}.")

    def slots(self) -> list[str]:
        return sorted({entry.slot for entry in self.parts.values()})


def digest(own: Path | None = None) -> str:
    """A digest of every source that the catalog is made from."""
    mixed = hashlib.sha256(f"{FORMAT} {sys.version_info[:2]}".encode())
    files = sorted(ENGINE.rglob("*.py")) + (sorted(own.glob("*.py")) if own else [])
    for path in files:
        if path.is_relative_to(ENGINE / "log") or path.is_relative_to(ENGINE / "service"):
            continue
        mixed.update(str(path).encode())
        mixed.update(path.read_bytes())
    return mixed.hexdigest()[:16]


def _make(path: Path) -> None:
    """Lets a process with torch write the catalog, then puts it in place in one step."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    command = [sys.executable, "-m", "engine.registry", name]
    done = subprocess.run(command, cwd=ENGINE.parent, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        Path(name).unlink(missing_ok=True)
        reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise AthanorError(f"The catalog of parts could not be made. {reason}")
    Path(name).replace(path)
