"""The registry: what becomes a field of a form, how a table becomes a part, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from torch import nn

from engine import fields, registry
from engine.catalog import KINDS, Catalog
from engine.errors import AthanorError
from engine.parts import GIVEN, Progress, Technique, Value, info, technique
from engine.settings import check_settings, fill

CATALOG = registry.catalog()


class Everything:
    """Takes one of each.

    Args:
        positive: Above nothing.
    """

    def __init__(
        self,
        positive: fields.Positive,
        non_negative: fields.NonNegative = 0.0,
        fraction: fields.Fraction = 0.5,
        decay: fields.Decay = 0.9,
        count: fields.Count = 1,
        whole: fields.Whole = 0,
        betas: fields.Betas = (0.9, 0.99),
        widths: fields.Widths = [1, 2],  # noqa: B006
        numbers: fields.Numbers = [0.5],  # noqa: B006
        rate: fields.Rate = 0.1,
        over_time: fields.OverTime = 1.0,
        non_negative_over_time: fields.NonNegativeOverTime = 1.0,
        fraction_over_time: fields.FractionOverTime = 1.0,
        sites: fields.Sites = "norm",
        space: fields.Space = {},  # noqa: B006
        live: fields.Live = {},  # noqa: B006
        source: fields.SourceField = None,
        sources: fields.SourcesField = [],  # noqa: B006
        layer: fields.LayerPart = None,
        loss: fields.LossPart = None,
        schedule: fields.SchedulePart = None,
        optimizer: fields.OptimizerPart = None,
        model: fields.ModelPart = None,
        task: fields.TaskPart = None,
        language: fields.LanguagePart = None,
        lines: fields.Lines = "",
        endpoint: fields.Endpoint = "http://localhost",
        secret: fields.SecretName = "",
        replay: fields.Replay = "record",
        several: Annotated[Any, fields.parts_of("layer")] = [],  # noqa: B006
        choice: Literal["a", "b"] = "a",
        flag: bool = True,
        text: str = "",
        maybe: fields.Count | None = None,
    ):
        pass


EXPECTED: dict[str, dict[str, Any]] = {
    "positive": {"type": "number", "exclusiveMinimum": 0},
    "non_negative": {"type": "number", "minimum": 0},
    "fraction": {"type": "number", "minimum": 0, "maximum": 1},
    "decay": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "count": {"type": "integer", "minimum": 1},
    "whole": {"type": "integer", "minimum": 0},
    "betas": {
        "type": "array",
        "minItems": 2,
        "maxItems": 2,
        "prefixItems": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}] * 2,
    },
    "widths": {"type": "array", "items": {"type": "integer", "minimum": 1}},
    "numbers": {"type": "array", "items": {"type": "number"}},
    "rate": {"type": "number", "exclusiveMinimum": 0, "x-log": True},
    "over_time": {"type": "number", "x-value": True},
    "non_negative_over_time": {"type": "number", "minimum": 0, "x-value": True},
    "fraction_over_time": {"type": "number", "minimum": 0, "maximum": 1, "x-value": True},
    "sites": {"type": "string", "x-sites": True},
    "space": {"type": "object", "x-space": True},
    "live": {"type": "object", "x-space": True, "x-live": True},
    "source": {"type": "string", "x-source": True},
    "sources": {"type": "array", "items": {"type": "string", "x-source": True}},
    "layer": {"x-part": "layer"},
    "loss": {"x-part": "loss"},
    "schedule": {"x-part": "schedule"},
    "optimizer": {"x-part": "optimizer"},
    "model": {"x-part": "model"},
    "task": {"x-part": "task"},
    "language": {"x-part": "language-model"},
    "lines": {"type": "string", "x-lines": True},
    "endpoint": {"type": "string", "pattern": r"^https?://[^\s/?#@]+(/[^\s?#@]*)?$", "x-endpoint": True},
    "secret": {"type": "string", "pattern": r"^([a-z0-9][a-z0-9-]*)?$", "x-secret": True},
    "replay": {"type": "string", "enum": ["record", "only"], "x-replay": True},
    "several": {"x-parts": "layer"},
    "choice": {"type": "string", "enum": ["a", "b"]},
    "flag": {"type": "boolean"},
    "text": {"type": "string"},
    "maybe": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
}


def test_every_kind_of_annotation_becomes_its_field() -> None:
    schema = registry.schema_of(Everything)
    assert schema["required"] == ["positive"] and set(schema["properties"]) == set(EXPECTED)
    for name, expected in EXPECTED.items():
        found = dict(schema["properties"][name])
        assert found.pop("title") == name.replace("_", " ")
        assert found.pop("description") == ("Above nothing." if name == "positive" else "")
        if name != "positive":
            default = found.pop("default")
            assert default == ([0.9, 0.99] if name == "betas" else default) and not isinstance(default, tuple)
        assert found == expected, name
    public = {
        name for name in vars(fields) if name[0].isupper() and name not in ("Annotated", "Any", "Field", "Literal")
    }
    used = set(Everything.__init__.__annotations__.values())
    missing = {name for name in public - {"WithJsonSchema"} if not any(f"fields.{name}" in str(text) for text in used)}
    assert not missing, f"not covered here: {missing}"


def test_what_the_engine_gives_is_no_field_and_a_missing_type_is_refused() -> None:
    class Untyped:
        def __init__(self, width=3):  # type: ignore[no-untyped-def]
            pass

    with pytest.raises(AthanorError, match="Untyped's parameter 'width' has no type"):
        registry.schema_of(Untyped)
    for kind, given in GIVEN.items():
        for entry in CATALOG.of_kind(kind):
            assert not set(given) & set(entry.schema["properties"]), entry.id


def test_the_catalog_survives_its_file(tmp_path: Path) -> None:
    registry.main([str(tmp_path / "catalog.json")])
    read = Catalog.read(tmp_path / "catalog.json")
    assert {e.id: e.to_json() for e in read.parts.values()} == {e.id: e.to_json() for e in CATALOG.parts.values()}
    assert read.sections == CATALOG.sections and set(read.sections) == {"training", "budget"}
    for entry in read.parts.values():
        assert entry.kind in KINDS and entry.slot != "own" and not Path(entry.file).is_absolute()


OWN = '''
from engine.parts import Technique, technique

@technique(id={id!r})
class Mine(Technique):
    """Does nothing at all.

    Args:
        often: How often.
    """

    def __init__(self, often: int = 1):
        self.often = often
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A person's folder of parts, named as a person names it."""
    monkeypatch.setenv("ATHANOR_PARTS", str(tmp_path))
    registry.classes.cache_clear()
    yield tmp_path
    registry.classes.cache_clear()


def test_a_persons_parts_are_there_when_their_folder_is_named(own: Path) -> None:
    (own / "mine.py").write_text(OWN.format(id="all-mine"))
    entry = registry.catalog().parts["all-mine"]
    assert (entry.slot, entry.kind, entry.defaults()) == ("own", "technique", {"often": 1})
    assert entry.summary == "Does nothing at all." and Path(entry.file) == own / "mine.py"
    assert registry.build({"use": "all-mine", "often": 3}).often == 3


def test_and_not_otherwise(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN.format(id="all-mine"))
    assert "all-mine" not in registry.classes() and "all-mine" not in registry.catalog().parts


def test_two_parts_with_one_id_are_refused(own: Path) -> None:
    taken = next(iter(CATALOG.parts))
    (own / "again.py").write_text(OWN.format(id=taken))
    with pytest.raises(AthanorError, match=rf"Two parts are called '{taken}': engine\.methods.* and own_parts\.again"):
        registry.classes()


def test_a_part_file_that_cannot_be_loaded_is_named(own: Path) -> None:
    (own / "broken.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(AthanorError, match=rf"The part file {own / 'broken.py'} cannot be loaded: ModuleNotFoundError"):
        registry.classes()


@technique(id="holder")
class Holder(Technique):
    """Keeps what it is given."""

    def __init__(
        self,
        layer: fields.LayerPart,
        loss: fields.LossPart,
        optimizer: fields.OptimizerPart,
        model: fields.ModelPart,
        several: Annotated[Any, fields.parts_of("layer")],
        level: fields.FractionOverTime = 0.5,
        betas: fields.Betas = (0.9, 0.99),
        rate: fields.Rate = 1.0,
        other: Annotated[Any, fields.part_of("layer")] | None = None,
    ):
        self.kept = dict(locals())


@pytest.fixture
def holder(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {**registry.classes(), "holder": Holder}
    monkeypatch.setattr(registry, "classes", lambda: found)


@pytest.mark.usefixtures("holder")
def test_a_table_becomes_a_part_with_all_that_it_names() -> None:
    schedule = next(e.id for e in CATALOG.of_kind("schedule") if not e.default and "floor" in e.schema["properties"])
    layer = CATALOG.of_kind("layer")[0].id
    use = {
        "use": "holder",
        "enabled": True,
        "layer": {"use": layer},
        "loss": {"use": CATALOG.of_kind("loss")[0].id},
        "optimizer": {"use": CATALOG.default("optimizer"), "betas": [0.5, 0.25]},
        "model": {"use": CATALOG.default("model"), "hidden": [3]},
        "several": [{"use": layer}, {"use": layer}],
        "level": {"value": 0.25, "schedule": {"use": schedule, "floor": 0.5}},
        "betas": [0.1, 0.2],
        "rate": 2,
    }
    schema = registry.schema_of(Holder)
    settings = {name: value for name, value in use.items() if name not in ("use", "enabled")}
    assert check_settings(schema, settings, "", CATALOG, "holder") == []
    kept = registry.build({"use": "holder", **fill(schema, settings, CATALOG)}).kept
    assert kept["betas"] == (0.1, 0.2) and isinstance(kept["betas"], tuple)
    assert kept["rate"] == 2.0 and isinstance(kept["rate"], float), "TOML's 2 is a number like 2.0"
    level = kept["level"]
    assert isinstance(level, Value) and level.value == 0.25 and level.schedule is not None
    assert info(level.schedule).id == schedule
    assert level.at(Progress(99, 100)) == pytest.approx(0.125, rel=1e-3), "it ends at half of what it began with"
    assert info(kept["loss"]).kind == "loss", "what needs nothing from the engine is built"
    assert kept["other"] is None

    weight = nn.Parameter(torch.ones(3))
    optimizer = kept["optimizer"]([weight])
    assert isinstance(optimizer, torch.optim.Optimizer) and optimizer.param_groups[0]["params"][0] is weight
    assert tuple(optimizer.param_groups[0]["betas"]) == (0.5, 0.25)
    for factory in (kept["layer"], *kept["several"], kept["model"]):
        assert isinstance(factory, registry.Factory)
    assert issubclass(kept["model"].cls, nn.Module) and kept["model"].settings["hidden"] == [3]


def test_a_plain_number_over_time_stays_one() -> None:
    assert registry._argument({"type": "number", "x-value": True}, 3) == 3.0
    value = registry._argument({"type": "number", "x-value": True}, {"value": 3})
    assert value == Value(3.0, None) and value.at(Progress(5, 10)) == 3.0


OPTIONAL = ("pymoo", "gymnasium", "torchdiffeq", "networkx", "keyring")
WITHOUT = """
import sys
for name in sys.argv[1:]:
    sys.modules[name] = None  # as if it were not installed
from engine import registry
catalog = registry.catalog()
print(*(f"{entry.id}:{','.join(entry.packages)}" for entry in catalog.parts.values() if entry.lacks))
"""


def test_a_machine_without_the_packages_of_some_parts_has_all_the_others() -> None:
    command = [sys.executable, "-c", WITHOUT, *OPTIONAL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lacking = dict(each.split(":") for each in done.stdout.split())
    assert {name for names in lacking.values() for name in names.split(",")} <= set(OPTIONAL)
    declared = {entry.id: ",".join(entry.packages) for entry in registry.catalog().parts.values() if entry.packages}
    assert lacking == declared and {"gymnasium", "linas", "neural-ode"} <= set(lacking)
